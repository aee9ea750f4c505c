"""The one reader of recipes: a YAML file and a command line become dataclasses of arguments, and these a recipe again."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .. import parsing
from ..errors import ConfigError
from ..extras import needed_by
from ..tokenization_chatgpt import load_tokenizer
from . import recipe_fields
from .ranges import RANGES, check_ranges
from .recipe_fields import FieldParser, RecipeMistake, recipes_folder

with needed_by("Training"):
    from trl import TrlParser

# Fields that a recipe never holds.
SECRETS = ("hub_token", "push_to_hub_token")


class RecipeParser(FieldParser, TrlParser):
    """`TrlParser` that names the field, and the nearest one, in a single sentence when something is wrong."""

    parsing = parsing


@contextmanager
def _config_errors() -> Iterator[None]:
    try:
        yield
    except RecipeMistake as mistake:
        raise ConfigError(str(mistake)) from mistake


def parse_recipe(
    dataclass_types: Sequence[type], recipe: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Any, ...]:
    """Reads a recipe file and command-line overrides into instances of `dataclass_types`.

    If pretraining is given a `depth`, `scaling.dial` sets the fields that neither of them sets.

    Args:
        recipe: A YAML file, the name of a recipe that the package ships (with or without `.yaml`), or None.
        overrides: `["--learning_rate", "1e-3", ...]`; wins over the recipe.

    Raises:
        ConfigError: Naming the file, or the field that is unknown or has an impossible value.
    """
    parser = RecipeParser(tuple(dataclass_types))
    with _config_errors():
        content, set_by_hand = parser.check(recipe, overrides)
    for name, value in content.pop("env", {}).items():
        os.environ[name] = str(value)
    # Only pretraining reads a corpus, and only there does `depth` set anything.
    try:
        dialed = _turn_dial(set_by_hand) if "corpus" in parser.fields else {}
        parser.set_defaults_with_config(**dialed | content)
        return parser.parse_args_and_config(list(overrides))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{recipe or 'The command line'}: {error}") from error


def given_fields(dataclass_type: type, arguments: Sequence[str]) -> dict[str, Any]:
    """The fields of one dataclass that a command line sets, as the dataclass holds them.

    Raises:
        ConfigError: As `parse_recipe`.
    """
    (parsed,) = parse_recipe((dataclass_type,), None, arguments)
    return {name: getattr(parsed, name) for name in RecipeParser((dataclass_type,)).given(arguments)}


def _turn_dial(set_by_hand: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `--depth` sets, of those that are not set by hand; none without it."""
    if set_by_hand.get("depth") is None or set_by_hand.get("model_name_or_path") is not None:
        return {}
    from .scaling import dial

    # It computes with them.
    check_ranges(SimpleNamespace(**set_by_hand), RANGES)

    others = {name: value for name, value in set_by_hand.items() if name not in ("depth", "vocab_size")}
    if others.get("tokenizer") is not None:
        others["vocab_size"] = len(load_tokenizer(others["tokenizer"]))
    elif "vocab_size" in set_by_hand:
        others["vocab_size"] = set_by_hand["vocab_size"]
    # A plan may be for more processes than there are here.
    world_size = max(1, set_by_hand.get("gpus") or int(os.environ.get("WORLD_SIZE", "1")))
    return dial(set_by_hand["depth"], world_size=world_size, **others)


def find_recipe(recipe: str | Path) -> Path:
    """The file that `recipe` names: a path, or a recipe that the package ships.

    Raises:
        ConfigError: When there is none; the message lists the shipped recipes.
    """
    with _config_errors():
        return recipe_fields.find_recipe(recipe)


def resolve_recipe(*arguments: Any) -> dict[str, Any]:
    """Every field that differs from its dataclass' default, as a recipe that gives the same arguments again."""
    resolved: dict[str, Any] = {}
    for group in arguments:
        default = default_arguments(type(group))
        for item in fields(group):
            value = getattr(group, item.name)
            # Their defaults depend on the base model, and the rate on the optimizer.
            differs = value != getattr(default, item.name) or item.name in ("optim", "learning_rate")
            # A recipe is for others to read.
            if item.name in SECRETS:
                continue
            if item.init and differs and isinstance(value, str | int | float | list | dict | None):
                resolved[item.name] = getattr(value, "value", value)
    return resolved


def default_arguments(kind: type) -> Any:
    """An instance of a dataclass of arguments with its defaults.

    A plain `TrainingArguments()` would set up the devices again, and undo what the arguments of this process have set: CPU,
    backend and processes.
    """
    return type(kind.__name__, (kind,), {"_setup_devices": torch.device("cpu"), "distributed_state": None})()


__all__ = [
    "SECRETS",
    "RecipeParser",
    "default_arguments",
    "find_recipe",
    "given_fields",
    "parse_recipe",
    "recipes_folder",
    "resolve_recipe",
]
