"""Loads rewards by what a user writes: a name, a name with options, a reward model, or a function in a file or package."""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, one_line
from ..parsing import parse_json
from .answers import exact, honest, length, number, regex
from .base import GIVEN, Reward
from .json_schema import json_schema
from .models import model_reward
from .programs import python

NAMED: dict[str, Callable[..., Reward]] = {
    "exact": exact,
    "number": number,
    "regex": regex,
    "json_schema": json_schema,
    "python": python,
    "length": length,
    "honest": honest,
}
# A module, or a file of Python, and a function in it.
_FUNCTION = re.compile(r"(?P<module>[\w.]+|.*\.py):(?P<function>[^\W\d]\w*)")


def load_rewards(
    names: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    weights: Sequence[float] | None = None,
    *,
    ends: Collection[int] = (),
) -> list[Reward]:
    """Loads rewards.

    Args:
        names: One or several of: a key of `NAMED`; a folder or Hub id of a reward model; `module:function` or
            `file.py:function` with TRL's signature; a mapping with `name`, one of these, and the options of the function that
            makes it; or such a mapping as a JSON object in a string, for the command line.
        weights: A factor for each; 1 if not given.
        ends: Token ids that end an answer; others get no reward, see `Reward`.

    Raises:
        ConfigError: If a reward is unknown, has an option that it does not take, or cannot be loaded, or the weights do not fit.
        ChatGPTError: If a reward model cannot be loaded.
    """
    items = [names] if isinstance(names, (str, Mapping)) else list(names)
    if not items:
        raise ConfigError(
            f"There is no reward: name one or more of {', '.join(NAMED)}, a reward model, or module:function."
        )
    given = [1.0] * len(items) if weights is None else list(weights)
    if len(given) != len(items):
        raise ConfigError(f"There are {len(items)} rewards and {len(given)} weights for them: give one for each.")
    if not all(map(math.isfinite, given)) or not any(given):
        raise ConfigError(f"The weights of the rewards are {given}: give finite numbers that are not all 0.")
    rewards: list[Reward] = []
    for item, weight in zip(items, given, strict=True):
        reward = _load(*_parse(item))
        reward.weight, reward.ends = weight, frozenset(ends)
        same = sum(other.name.partition("#")[0] == reward.name for other in rewards)
        if same:
            reward.name = reward.__name__ = f"{reward.name}#{same + 1}"
        rewards.append(reward)
    return rewards


def check_columns(
    rewards: Sequence[Reward], rows: Iterable[Mapping[str, Any]], where: Callable[[int], str] = "row {}".format
) -> None:
    """Raises `DataError` if the columns that rewards read are missing or hold what they cannot use.

    Args:
        rewards: The result of `load_rewards`.
        rows: The rows of the data.
        where: Names a row by its number, counted from 1.
    """
    for place, row in enumerate(rows, start=1):
        for reward in rewards:
            if missing := [name for name in reward.columns if name not in row]:
                others = ", ".join(map(str, row)) or "none"
                raise DataError(
                    f"The reward {reward.name} reads the column {missing[0]!r}, which {where(place)} has not; its columns are {others}."
                )
            try:
                reward.check_cell(**{name: row[name] for name in reward.columns})
            except DataError as error:
                text = where(place)
                raise DataError(
                    f"{text[0].upper()}{text[1:]} cannot be used by the reward {reward.name}: {error}."
                ) from error


def _parse(item: Any) -> tuple[str, dict[str, Any]]:
    """The name and the options of an item."""
    if isinstance(item, str) and item.lstrip().startswith("{"):
        try:
            item = parse_json(item)
        except ValueError as error:
            raise ConfigError(f"The reward {item:.200} is not a JSON object: {error}.") from error
    if isinstance(item, str):
        return item.strip(), {}
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise ConfigError(f"The reward {item!r:.200} is neither a name nor a mapping with `name` and options.")
    return item["name"].strip(), {str(key): value for key, value in item.items() if key != "name"}


def _load(name: str, options: dict[str, Any]) -> Reward:
    make = NAMED.get(name)
    if make is not None:
        return _made(name, make, options)
    if (named := _FUNCTION.fullmatch(name)) and not Path(name).exists():
        if options:
            raise ConfigError(
                f"The reward {name} is a function, which takes no options: leave out {', '.join(options)}."
            )
        return _function_reward(name, _find(named["module"], named["function"], name))
    if "/" in name or Path(name).is_dir():
        return _made(name, partial(model_reward, name), options)
    raise ConfigError(
        f"The reward {name!r} is unknown: name one of {', '.join(NAMED)}, the folder of a reward model, or module:function."
    )


def _made(name: str, make: Callable[..., Reward], options: dict[str, Any]) -> Reward:
    known = [
        parameter.name
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    if unknown := [option for option in options if option not in known]:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"The reward {name} has the unknown option {unknown[0]}: {takes}.")
    try:
        return make(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The options {options} of the reward {name} cannot be used: {one_line(error)}") from error


def _find(module: str, function: str, name: str) -> Any:
    """The object of a name in a module or file; runs its code."""
    try:
        if module.endswith(".py"):
            file = Path(module)
            spec = spec_from_file_location(file.stem, file) if file.is_file() else None
            if spec is None or spec.loader is None:
                raise ConfigError(f"The reward {name} cannot be loaded: there is no file {file}.")
            spec.loader.exec_module(loaded := module_from_spec(spec))
        else:
            loaded = importlib.import_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"The reward {name} cannot be loaded: {type(error).__name__}: {one_line(error)}") from error
    found = getattr(loaded, function, None)
    if not callable(found):
        raise ConfigError(f"The reward {name} cannot be loaded: {module} has no function {function}.")
    return found


def _function_reward(name: str, function: Callable[..., Any]) -> Reward:
    """A user's function; its parameters without a default that are not given to every function are columns."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The reward {name} cannot be used: what it takes is unknown ({error}).") from error
    columns = [
        parameter.name
        for parameter in parameters
        if parameter.name not in GIVEN
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if positional := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]:
        raise ConfigError(f"The reward {name} cannot be used: {positional[0]} cannot be given by its name.")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"The reward {name} is asynchronous: name a plain function.")
    return Reward(name.rpartition(":")[2], function, tuple(columns))
