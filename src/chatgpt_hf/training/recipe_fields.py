"""Reads recipes and command lines for any parser of dataclass fields, and says what is wrong with them.

Imports the standard library only, and nothing from this package: the command line loads this file by its path, to
check what it was given before it imports torch and transformers, which takes seconds. The library's own parser is in `recipe.py`.
"""

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_UNSET = object()


class RecipeMistake(Exception):
    """A recipe or an argument is wrong; the message is one line."""


class FieldParser(argparse.ArgumentParser):
    """Parses the fields of dataclasses; a base to combine with a class that adds an argument for each field.

    Attributes:
        parsing: The package's module of that name. A subclass sets it, because this file is also loaded by its path.
    """

    parsing: ModuleType

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.fields: dict[str, argparse.Action] = {}
        self.options: list[str] = []
        self._recipe: Path | None = None
        # `--max_step` for `--max_steps` is a typing error, and may mean another field in the next release.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:  # type: ignore[override]
        """As in `argparse`; remembers the action, of which `argparse` has no public list."""
        action = super().add_argument(*args, **kwargs)
        if action.dest != "help":
            # `--no_packing` comes after `--packing` and sets the same field.
            self.fields.setdefault(action.dest, action)
            self.options += [option for option in action.option_strings if "-" not in option[2:]]
        return action

    def error(self, message: str) -> NoReturn:
        """Raises `RecipeMistake` with one sentence, where `argparse` prints 200 lines of usage."""
        # argparse names all spellings: "argument --hidden_size/--hidden-size: invalid int value: 'wide'".
        found = re.fullmatch(r"argument --(\w+)\S*: (.*)", message, re.DOTALL)
        if found is None:
            raise RecipeMistake(f"{message}.{self.nearest(message)}")
        field, problem = found.groups()
        where = f"--{field}" if self._recipe is None else f"{self._recipe}: {field}"
        raise RecipeMistake(f"{where}: {problem.rstrip('.')}.")

    def nearest(self, words: str) -> str:
        """A question for the end of a message, if a field has nearly the name of an option among the words."""
        for word in words.replace(":", " ").replace("=", " ").split():
            close = difflib.get_close_matches(word, self.options, n=1, cutoff=0.75) if word.startswith("--") else []
            if close and close[0] != word:
                return f" Did you mean {close[0]}?"
        return ""

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The fields that a command line sets, without those that it leaves at their defaults."""
        return self._parse(arguments)

    def check(self, recipe: str | Path | None, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a recipe and a command line, and checks every name and every value against the fields.

        Returns:
            What the recipe holds, as YAML reads it; and the values of all fields that the recipe or the command line sets,
            with the types that the command line gives them.

        Raises:
            RecipeMistake: Naming the file, or the field that is unknown or has an impossible value.
        """
        if any(word.partition("=")[0] == "--config" for word in arguments):
            raise RecipeMistake("Unknown argument --config: name the recipe itself, before the other arguments.")
        content: dict[str, Any] = {}
        values: dict[str, Any] = {}
        if recipe is not None:
            path = find_recipe(recipe)
            content = self.read_recipe(path)
            values = self._values(content, path)
        return content, values | self.given(arguments)

    def read_recipe(self, path: Path) -> dict[str, Any]:
        """The content of a recipe. Raises `RecipeMistake` if the file is not a mapping in YAML."""
        try:
            content = self.parsing.parse_yaml(self.parsing.read_file(path))
        except OSError as error:
            raise RecipeMistake(f"{path} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise RecipeMistake(f"{path} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise RecipeMistake(f"{path} must hold `field: value` lines.")
        return content

    def _values(self, content: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The values of a recipe's fields, read as if they stood on the command line."""
        words = []
        raw = {}
        for name, value in content.items():
            if name == "env":
                if not isinstance(value, Mapping) or not all(map(_is_variable, value.items())):
                    raise RecipeMistake(f"{path}: env must hold `NAME: value` lines.")
                continue
            if name not in self.fields:
                raise RecipeMistake(f"{path} sets the unknown field {name!r}.{self.nearest(f'--{name}')}")
            if value is None:
                continue
            action = self.fields[name]
            many = action.nargs == "+"
            for item in value if many and isinstance(value, list) else [value]:
                # Fields that the command line takes as text may be mappings in a recipe.
                if isinstance(item, Mapping) and getattr(action.type, "__name__", "") in ("str", "dict"):
                    raw[name] = value
                else:
                    words.append(f"--{name}={item}")
            if many:
                raw[name] = value
        self._recipe = path
        try:
            return self._parse(words) | raw
        finally:
            self._recipe = None

    def _parse(self, words: Sequence[str]) -> dict[str, Any]:
        # argparse fills in the defaults of those fields that the namespace does not have yet.
        namespace = argparse.Namespace(**dict.fromkeys(self.fields, _UNSET))
        namespace, rest = self.parse_known_args(list(words), namespace)
        if rest:
            raise RecipeMistake(f"Unknown argument {rest[0].partition('=')[0]}.{self.nearest(rest[0])}")
        return {name: value for name, value in vars(namespace).items() if value is not _UNSET}


def _is_variable(item: tuple[Any, Any]) -> bool:
    """True for a name and a value that an environment can have."""
    name, value = item
    if not isinstance(name, str) or not isinstance(value, str | int | float):
        return False
    try:
        # YAML can spell half a surrogate pair.
        given = os.fsencode(f"{name}{value}")
    except UnicodeEncodeError:
        return False
    return name != "" and "=" not in name and b"\0" not in given


def find_recipe(recipe: str | Path) -> Path:
    """The file that `recipe` names: a path, or a recipe that the package ships.

    Raises:
        RecipeMistake: When there is none; the message lists the shipped recipes.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    folder = recipes_folder()
    shipped = folder / path.name if path.suffix else folder / f"{path.name}.yaml"
    if shipped.is_file():
        return shipped
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise RecipeMistake(
        f"There is no recipe {recipe}: it is not a file, and the package ships {', '.join(known)}.{hint}"
    )


def recipes_folder() -> Path:
    """The folder of the shipped recipes: in the wheel, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parents[1] / "recipes"
