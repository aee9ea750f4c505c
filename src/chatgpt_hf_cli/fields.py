"""The fields of a recipe, read without importing the library: for the help, and to check what was given."""

import gc
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import get_annotations
from pathlib import Path
from types import ModuleType
from typing import Any

from . import static
from ._paths import check_model
from .errors import UsageMistake
from .help import fill, section

LIBRARY = "chatgpt_hf"
TITLES = {
    "ModelArguments": "Model",
    "ChatModelArguments": "Model",
    "TaskModelArguments": "Model",
    "ArchitectureArguments": "Architecture of a new model",
    "CorpusArguments": "Data",
    "ConversationArguments": "Data",
    "ConversationDataArguments": "Data",
    "TaskArguments": "Task and data",
    "PlanArguments": "Plan",
    "PreferenceArguments": "Data",
    "PreferenceModelArguments": "Model",
    "PromptArguments": "Data and rewards",
    "RewardModelArguments": "Model",
}
MORE = "More fields of "
UPSTREAM = {"transformers": "transformers' TrainingArguments", "trl": "TRL's {config}"}


def check_recipe(types: tuple[str, ...], recipe: str | None, arguments: list[str]) -> None:
    """Checks a recipe and a command line against the fields that `types` name.

    What passes is read again by the library's parser, which decides. If the fields cannot be read without importing the
    library, it is the only one that checks.

    Raises:
        UsageMistake: With the same message as the library's.
    """
    reader = recipe_reader()
    try:
        parser = light_parser(types)
    except (static.Unreadable, ImportError, RuntimeError):
        return
    try:
        _, given = parser.check(recipe, arguments)
    except reader.RecipeMistake as mistake:
        raise UsageMistake(str(mistake)) from None
    if isinstance(model := given.get("model_name_or_path"), str):
        check_model(model)


def light_parser(types: tuple[str, ...]) -> Any:
    """A parser like the library's `RecipeParser`, made of the same parts without importing any package.

    Raises:
        Unreadable: When a dataclass, or the base class of `TrlParser`, cannot be read.
    """
    trl, definition = static.load("trl").definition("TrlParser")
    # Written so that it finds the class where TRL has it.
    base = definition.bases[0].id  # type: ignore[attr-defined]
    module, _ = trl.definition(base)
    arguments_of_dataclasses = getattr(_execute(module.path), base)

    parts = (recipe_reader().FieldParser, arguments_of_dataclasses)
    light_parser_class = type("LightParser", parts, {"parsing": parsing()})
    return light_parser_class(read_types(types))


@cache
def recipe_reader() -> ModuleType:
    """The library's module that reads recipes, which needs no other part of it."""
    return _execute(static.load(LIBRARY).path.parent / "training" / "recipe_fields.py")


@cache
def parsing() -> ModuleType:
    """The library's module that parses YAML, which needs no other part of it."""
    return _execute(static.load(LIBRARY).path.parent / "parsing.py")


def _execute(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"{__package__}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_types(types: tuple[str, ...]) -> tuple[type, ...]:
    """The dataclasses that `types` name, with their fields only."""
    names = [name.split(":") for name in types]
    # Syntax trees are many small objects, which the collector of garbage would walk through again and again.
    gc.disable()
    try:
        return tuple(static.read_dataclass(f"{LIBRARY}.{module}", name) for module, name in names)
    finally:
        gc.enable()


def fields_help(types: tuple[str, ...]) -> str:
    """Every field that a recipe or the command line may set: ours first, then those of transformers and TRL."""
    try:
        found = read_types(types)
    except static.Unreadable:
        # Slower, but never wrong: some release of transformers or TRL is written in a way that `static` does not know.
        found = imported_types(types)
    note = fill(
        "Fields. Each can stand in a recipe as `field: value`, or on the command line as --field value. Of the fields of "
        "transformers and TRL, this shows the first sentence; their documentation has the rest."
    )
    parts = [
        section(title, [(f"--{item.name}", _text(item, short=title.startswith(MORE))) for item in items])
        for title, items in groups(found)
    ]
    return "\n" + "\n\n".join([note, *parts]) + "\n"


def imported_types(types: tuple[str, ...]) -> tuple[type, ...]:
    """The dataclasses themselves, from the library."""
    names = [name.split(":") for name in types]
    return tuple(getattr(import_module(f"{LIBRARY}.{module}"), name) for module, name in names)


def groups(dataclasses: tuple[type, ...]) -> Iterator[tuple[str, list[Field[Any]]]]:
    """Titles and fields, in the order of the help."""
    for kind in dataclasses[:-1]:
        yield TITLES[kind.__name__], list(fields(kind))
    config = next((kind.__name__ for kind in dataclasses[-1].__mro__ if kind.__module__.startswith("trl.")), "")
    upstream = {package: MORE + name.format(config=config) for package, name in UPSTREAM.items()}
    training: dict[str, list[Field[Any]]] = {title: [] for title in ("Training", *upstream.values())}
    for item in fields(dataclasses[-1]):
        owners = [
            kind.__module__.partition(".")[0] for kind in dataclasses[-1].__mro__ if item.name in get_annotations(kind)
        ]
        # A field whose default we change is one of ours; one that TRL changes is still one of transformers'.
        training["Training" if owners[0] == LIBRARY else upstream[owners[-1]]].append(item)
    yield from ((title, items) for title, items in training.items() if items)


def _text(item: Field[Any], short: bool) -> str:
    # argparse, which these texts are written for, needs each % doubled.
    words = item.metadata["help"].replace("%%", "%")
    if short:
        # TRL links to papers, and an address is too long for a line.
        words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", words)
        first, separator, _ = words.partition(". ")
        words = f"{first}." if separator else words
    default = default_of(item)
    return f"{words} [default: {default}]" if default else words


def default_of(item: Field[Any]) -> str:
    """A field's default as one would type it; empty if there is none."""
    value = item.default if item.default_factory is MISSING else item.default_factory()
    if value is None or value is MISSING or value is False or value in ("", []):
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(getattr(value, "value", value))
