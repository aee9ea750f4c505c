"""The reward of answers in JSON that fit a schema, as jsonschema judges it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, DataError
from ..extras import needed_by
from ..parsing import parse_json
from .base import Reward, Text, answer_text
from .programs import block_of

with needed_by("The reward json_schema"):
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.protocols import Validator
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable


def json_schema(*, schema: Mapping[str, Any] | bool | str | None = None) -> Reward:
    """1 if an answer is JSON that fits a schema; it may stand in a block of code.

    Args:
        schema: The schema of all answers, in the draft that its `$schema` names, else 2020-12; that of the column `schema` if not
            given.

    Raises:
        ConfigError: If it is no schema, or refers to something that is not in it.
    """

    def judge(said: str, cell: Any) -> float:
        try:
            value = parse_json(block_of(said).strip())
            # NaN and Infinity, which Python reads, are no JSON.
            json.dumps(value, allow_nan=False)
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
        validator = read_schema(schema)
    except DataError as error:
        raise ConfigError(f"The reward json_schema cannot be used: {error}.") from error

    def judge_all(completions: Sequence[Text], **_: Any) -> list[float]:
        return [judge(answer_text(said), validator) for said in completions]

    return Reward("json_schema", judge_all)


def read_schema(cell: Any) -> Validator:
    """Returns the validator of a schema, which may be written as a text.

    Raises:
        DataError: If it is no schema, or refers to something that is not in it.
    """
    if isinstance(cell, Validator):
        return cell
    if isinstance(cell, str):
        try:
            cell = parse_json(cell)
        except ValueError as error:
            raise DataError(f"its schema {cell!r:.80} is no JSON: {error}") from error
    if not isinstance(cell, (Mapping, bool)):
        raise DataError(f"its schema is {cell!r:.80}: give an object, such as {{'type': 'object'}}")
    if isinstance(cell, Mapping) and not isinstance(named := cell.get("$schema", ""), str):
        raise DataError(f"its schema has the $schema {named!r:.80}: give the address of a draft, or leave it out")
    draft = validator_for(cell, default=Draft202012Validator)
    try:
        # With the formats, among which are regular expressions.
        draft.check_schema(cell, format_checker=draft.FORMAT_CHECKER)
    except SchemaError as error:
        raise DataError(f"its schema has an error at {error.json_path}: {error.message:.200}") from error
    except RecursionError as error:
        raise DataError("its schema is nested too deep") from error
    except OverflowError as error:
        raise DataError(f"its schema has a regular expression that cannot be used: {error}") from error
    # Without a registry, jsonschema would fetch what a schema refers to.
    return draft(cell, registry=Registry())


def fits(value: Any, validator: Validator) -> bool:
    """True if a value fits the schema that `read_schema` has read.

    Raises:
        DataError: If the schema refers to something that is not in it or no schema, or to itself without end.
    """
    try:
        return validator.is_valid(value)
    except Unresolvable as error:
        raise DataError(f"its schema refers to {error.ref!r:.80}, which is not in it") from error
    except OverflowError:
        # No float holds a number of the answer, which is none that the schema means.
        return False
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Only what is at the place of a schema has been checked, and a reference may lead to any other.
        raise DataError(f"its schema refers to a part that is no schema ({error!r:.80})") from error
    except RecursionError as error:
        raise DataError("its schema refers to itself without end, or the answer is nested too deep") from error
