"""Reads text, JSON and YAML that somebody else wrote: with bounded effort, and errors of a known kind.

Imports the standard library and PyYAML only, and nothing from this package: the command line loads this file by its path.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

# Python's parsers, Arrow and templates recurse; real data, even schemas of tools, nests a few dozen levels deep.
DEEPEST = 200
# The largest file that is read at once: the tokenizer.json of a large vocabulary has 40 MB.
LARGEST = 1 << 29
# PyYAML takes a second for 100 kB.
_LARGEST_YAML = 1 << 20
# Values in a YAML text, each counted as often as it is referred to.
_MOST_VALUES = 100_000
_MOST_DIGITS = 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special_kind(file: Path) -> str | None:
    """Says what a path is if it is no file, such as `a pipe`: reading one may never end. None for a file.

    Raises:
        OSError: If there is nothing, or it cannot be reached.
    """
    mode = os.stat(file).st_mode
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "something else")


def read_file(file: Path, encoding: str = "utf-8", *, largest: int = LARGEST) -> str:
    """Returns the text of a file.

    Raises:
        OSError: If it cannot be read, is no regular file, or has more bytes than `largest`.
        ValueError: If its text is not in the encoding.
    """
    if kind := special_kind(file):
        raise OSError(f"it is {kind}, not a file")
    if (size := file.stat().st_size) > largest:
        raise OSError(f"it has {size:,} bytes, and at most {largest:,} are read")
    return file.read_text(encoding=encoding)


def parse_json(text: str | bytes) -> Any:
    """Parses JSON; bytes are UTF-8.

    Raises:
        ValueError: If it is broken, nests more than `DEEPEST` levels deep, has half a surrogate pair, which is not text, or a
            number of thousands of digits.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it nests lists and objects more than {DEEPEST} deep") from None
    if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
        raise ValueError(f"it nests lists and objects more than {DEEPEST} deep")
    if half := half_pair(value, text):
        raise ValueError(f"it has half of a surrogate pair, {half}, which is not text")
    return value


def parse_yaml(text: str) -> Any:
    """Parses YAML with plain values; makes no objects of Python.

    Raises:
        ValueError: If it is broken, too long, nests too deep, or repeats values by aliases until they are too many: a few lines of
            such aliases fill any memory.
    """
    if len(text) > _LARGEST_YAML:
        raise ValueError(f"it has {len(text):,} characters, and at most {_LARGEST_YAML:,} are read")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        if _count(node, {}, 0) > _MOST_VALUES:
            raise ValueError(f"its aliases repeat values more than {_MOST_VALUES:,} times")
        value = yaml.SafeLoader("").construct_document(node)
    except RecursionError:
        raise ValueError(f"it nests more than {DEEPEST} deep") from None
    except ValueError:
        raise
    # A tag such as `!!bool x` raises what the lookup of x raises.
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return value


def _count(node: yaml.Node, known: dict[yaml.Node, int], depth: int) -> int:
    """The number of values in a node, each counted as often as aliases repeat it."""
    if depth > DEEPEST:
        raise RecursionError
    if node not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[node] = 1 + sum(_count(part, known, depth + 1) for part in parts)
    return known[node]


def is_deep(value: Any) -> bool:
    """True if lists and objects nest more than `DEEPEST` levels deep."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def is_decimal(text: str) -> bool:
    """True if a text is a whole number in digits, and not of hundreds: Python reads no number of thousands of digits."""
    return text.isdecimal() and len(text) < _MOST_DIGITS


def half_pair(value: Any, text: str) -> str | None:
    """Returns the escape, such as `\\ud83d`, of half a surrogate pair in a value that was parsed from JSON; None without one.

    Args:
        value: The value.
        text: The JSON that it was parsed from.
    """
    if not _SURROGATE.search(text):
        return None
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x}"
    return None
