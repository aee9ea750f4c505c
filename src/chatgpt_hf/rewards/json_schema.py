"""The reward of answers in JSON that fit a schema, and the part of JSON Schema (draft 2020-12) that it knows."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError, DataError
from ..parsing import parse_json
from .base import Reward, Text, answer_text
from .programs import block_of

_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": lambda value: _is_number(value),
    "integer": lambda value: _is_number(value) and value == int(value),
}
# Of numbers, texts, lists and objects: what a limit compares with.
_LIMITS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Any], bool]]] = {
    "minimum": (lambda value: _is_number(value), lambda value, limit: value >= limit),
    "maximum": (lambda value: _is_number(value), lambda value, limit: value <= limit),
    "exclusiveMinimum": (lambda value: _is_number(value), lambda value, limit: value > limit),
    "exclusiveMaximum": (lambda value: _is_number(value), lambda value, limit: value < limit),
    "minLength": (_TYPES["string"], lambda value, limit: len(value) >= limit),
    "maxLength": (_TYPES["string"], lambda value, limit: len(value) <= limit),
    "minItems": (_TYPES["array"], lambda value, limit: len(value) >= limit),
    "maxItems": (_TYPES["array"], lambda value, limit: len(value) <= limit),
    "minProperties": (_TYPES["object"], lambda value, limit: len(value) >= limit),
    "maxProperties": (_TYPES["object"], lambda value, limit: len(value) <= limit),
}
_COMBINED = ("allOf", "anyOf", "oneOf")
# They describe and do not restrict.
_NOTES = ("title", "description", "default", "examples", "$schema", "$id", "$comment")
_KNOWN = (
    *(
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "uniqueItems",
        "pattern",
        "not",
    ),
    *_LIMITS,
    *_COMBINED,
    *_NOTES,
)


def json_schema(*, schema: Mapping[str, Any] | bool | str | None = None) -> Reward:
    """1 if an answer is JSON that fits a schema; it may stand in a block of code.

    Args:
        schema: The schema of all answers; that of the column `schema` if not given.

    Raises:
        ConfigError: If it is no schema, or has a keyword that is not known here.
    """

    def judge(said: str, cell: Any) -> float:
        try:
            value = parse_json(block_of(said).strip())
        except ValueError:
            return 0.0
        return float(fits(value, read_schema(cell)))

    def function(completions: Sequence[Text], schema: Sequence[Any], **_: Any) -> list[float]:
        return [judge(answer_text(said), cell) for said, cell in zip(completions, schema, strict=True)]

    def check_cell(schema: Any) -> None:
        read_schema(schema)

    if schema is None:
        return Reward("json_schema", function, ("schema",), check_cell=check_cell)
    try:
        given = read_schema(schema)
    except DataError as error:
        raise ConfigError(f"The reward json_schema cannot be used: {error}.") from error
    return Reward("json_schema", lambda completions, **_: function(completions, [given] * len(completions)))


def read_schema(cell: Any) -> Any:
    """Returns a schema, which may be written as a text.

    Raises:
        DataError: If it is none, or has a keyword that is not known here: it would be obeyed by nobody.
    """
    if isinstance(cell, str):
        try:
            cell = parse_json(cell)
        except ValueError as error:
            raise DataError(f"its schema {cell!r:.80} is no JSON: {error}") from error
    _check(cell)
    return cell


def fits(value: Any, schema: Any) -> bool:
    """True if a value fits a schema that `read_schema` has returned."""
    if isinstance(schema, bool):
        return schema
    kinds = schema.get("type", ())
    if kinds and not any(_TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and not any(_equal(value, option) for option in schema["enum"]):
        return False
    if "const" in schema and not _equal(value, schema["const"]):
        return False
    if any(
        name in schema and applies(value) and not holds(value, schema[name])
        for name, (applies, holds) in _LIMITS.items()
    ):
        return False
    if isinstance(value, str) and "pattern" in schema and re.search(schema["pattern"], value) is None:
        return False
    if isinstance(value, list) and not _fits_list(value, schema):
        return False
    if isinstance(value, dict) and not _fits_object(value, schema):
        return False
    if "not" in schema and fits(value, schema["not"]):
        return False
    found = {name: sum(fits(value, option) for option in schema[name]) for name in _COMBINED if name in schema}
    return (
        found.get("allOf", 0) == len(schema.get("allOf", ()))
        and found.get("anyOf", 1) > 0
        and found.get("oneOf", 1) == 1
    )


def _fits_list(value: list[Any], schema: Mapping[str, Any]) -> bool:
    if "items" in schema and not all(fits(item, schema["items"]) for item in value):
        return False
    return not schema.get("uniqueItems") or not any(
        _equal(item, other) for index, item in enumerate(value) for other in value[:index]
    )


def _fits_object(value: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    properties = schema.get("properties", {})
    return all(name in value for name in schema.get("required", ())) and all(
        fits(item, properties[name] if name in properties else schema.get("additionalProperties", True))
        for name, item in value.items()
    )


def _check(schema: Any) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise DataError(f"its schema is {schema!r:.80}: give an object, such as {{'type': 'object'}}")
    if unknown := [name for name in schema if name not in _KNOWN]:
        raise DataError(
            f"its schema has the keyword {unknown[0]!r}, which is not known here; known are {', '.join(_KNOWN)}"
        )
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise DataError(f"its schema has the type {kind!r:.40}; there are {', '.join(_TYPES)}")
    for name, kind, wanted in (
        *((name, _is_number, "a number") for name in _LIMITS),
        ("enum", _TYPES["array"], "a list"),
        ("required", _TYPES["array"], "a list"),
        ("properties", _TYPES["object"], "an object"),
        ("pattern", _TYPES["string"], "a regular expression"),
        *((name, _TYPES["array"], "a list") for name in _COMBINED),
    ):
        if name in schema and not kind(schema[name]):
            raise DataError(f"its schema has {schema[name]!r:.80} as {name}: give {wanted}")
    if "pattern" in schema:
        try:
            re.compile(schema["pattern"])
        except re.error as error:
            raise DataError(f"its schema has {schema['pattern']!r:.80} as pattern: {error}") from error
    inner = [schema[name] for name in ("items", "additionalProperties", "not") if name in schema]
    inner += [option for name in _COMBINED for option in schema.get(name, ())]
    for part in (*inner, *schema.get("properties", {}).values()):
        _check(part)


def _is_number(value: Any) -> bool:
    # JSON's true is no number, though Python's True is 1.
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _equal(value: Any, other: Any) -> bool:
    """True if both are the same in JSON: 1 is 1.0, and is not true."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_equal, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_equal(item, other[name]) for name, item in value.items())
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
