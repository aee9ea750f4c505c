"""Reads JSON and JSON Lines; numbers keep the text that stands in the file."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..parsing import DEEPEST as DEEPEST
from ..parsing import half_pair, is_deep
from .files import faults_named, format_of, open_text

# Files with a byte order mark that were joined have it in the middle too.
_SPACE = re.compile("[ \\t\\r\\n\ufeff]*")


class WrittenFloat(float):
    """A number whose text is the one in the file: `str` of 2.50 is `2.50`."""

    _text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number._text = text
        return number

    def __str__(self) -> str:
        return self._text

    def __reduce__(self) -> tuple[type["WrittenFloat"], tuple[str]]:
        return (WrittenFloat, (self._text,))


def read_constant(text: str) -> WrittenFloat | None:
    """Returns infinities as they are written; `NaN` is how pandas writes a missing value, even among texts."""
    return None if text == "NaN" else WrittenFloat(text)


_DECODER = json.JSONDecoder(parse_float=WrittenFloat, parse_constant=read_constant)


def parse_text(text: str) -> Any:
    """Parses JSON that stands in a text, such as a cell of a table, with numbers as `read_json` gives them.

    Raises:
        ValueError: If the text is not JSON.
        DataError: If it holds half a surrogate pair, or nests too deeply.
    """
    try:
        value = _DECODER.decode(text.strip())
    except RecursionError:
        raise DataError(f"its JSON nests lists and objects more than {DEEPEST} deep: flatten it") from None
    if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
        raise DataError(f"its JSON nests lists and objects more than {DEEPEST} deep: flatten it")
    check_surrogates(value, text)
    return value


def written_json(value: Any) -> str:
    """Returns JSON text in which numbers have the digits of the file they come from."""
    if isinstance(value, Mapping):
        items = (f"{json.dumps(str(key), ensure_ascii=False)}: {written_json(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(written_json, value)) + "]"
    return str(value) if isinstance(value, WrittenFloat) else json.dumps(value, ensure_ascii=False, default=str)


def check_surrogates(value: Any, text: str, subject: str = "it", place: str = "") -> None:
    """Raises `DataError` if a value that a text spells with escapes holds half a surrogate pair."""
    if code := half_pair(value, text):
        raise DataError(
            f"{subject} has half of a surrogate pair, {code}{place}: an emoji or rare character was cut in two. "
            "Write the whole character, or remove the half"
        )


def read_json(path: Path, *, encoding: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a JSON Lines or JSON file, each with its place, such as `line 3` or `row 3`.

    Either kind may have either file ending. A file that begins with a complete object in its first line is JSON Lines;
    any other is one array, or one object, over several lines. A text in an array is an object with the key `text`.
    JSON Lines are read one by one; of an array, the text is held in memory.

    Raises:
        DataError: If the JSON is broken, holds half a surrogate pair, or nests too deeply, or a value is no object; the
            message names the file and the place.
    """
    with faults_named(path, encoding), open_text(path, encoding) as stream:
        lines = ((number, line) for number, line in enumerate(stream, start=1) if not line.isspace())
        first = next(lines, None)
        if first is None:
            return
        number, line = first
        fault = None
        if not line.startswith("[", _skip(line, 0)):
            try:
                row = _parse_line(line, path, number)
            except DataError as error:
                # The line may be the beginning of an object over several lines, but only if it breaks off.
                if not isinstance(error.__cause__, json.JSONDecodeError):
                    raise
                fault = error
            else:
                yield f"line {number}", row
                del row
                for number, line in lines:
                    yield f"line {number}", _parse_line(line, path, number)
                return
        yield from _document_rows("\n" * (number - 1) + line + stream.read(), path, fault)


def _parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    row = _parse(line, path, f"line {number}")
    if not isinstance(row, dict):
        raise DataError(f"{path} has no JSON object in line {number}")
    return row


def _document_rows(text: str, path: Path, fault: DataError | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a file that is one JSON value.

    Args:
        text: The file's text.
        path: The file.
        fault: What is wrong with its first line as JSON Lines; None if it begins an array.
    """
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        if fault is not None and format_of(path) == ".jsonl" and not _is_document(text):
            raise fault
        value = _parse(text, path, "")
        if not isinstance(value, dict):
            raise DataError(f"{path} has no JSON object in line {_line(text, position)}")
        yield "row 1", value
        return
    number = 0
    position = _skip(text, position + 1)
    while number or text[position : position + 1] != "]":
        number += 1
        value, end = _decode(text, position, path)
        value = _checked(value, text[position:end], path, f"row {number}")
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, dict):
            raise DataError(f"{path} has something other than JSON objects: row {number} is {text[position:end]:.80}")
        yield f"row {number}", value
        position = _skip(text, end)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            raise _broken(path, text, position, "a comma or ] must follow a value of the list")
        comma, position = position, _skip(text, position + 1)
        if text[position : position + 1] == "]":
            raise _broken(path, text, comma, "a comma follows the last value of the list")
    if (rest := _skip(text, position + 1)) < len(text):
        raise _broken(path, text, rest, "something follows the list")


def _is_document(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass
    return True


def _parse(text: str, path: Path, place: str) -> Any:
    """Parses a line, or a whole file with the place ``."""
    start = _skip(text, 0)
    value, end = _decode(text, start, path, place)
    rest = _skip(text, end)
    if rest < len(text):
        reason = "a second value follows the first; write each on its own line"
        if text[rest] == ",":
            reason = "a comma follows the value; in JSON Lines nothing stands between the lines"
        raise _broken(path, text, rest, reason, place)
    return _checked(value, text, path, place or "row 1")


def _decode(text: str, start: int, path: Path, place: str = "") -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _broken(path, text, error.pos, error.msg, place) from error
    except RecursionError as error:
        raise _too_deep(path, place or f"the value that begins in line {_line(text, start)}") from error
    except ValueError as error:  # an integer of thousands of digits
        where = place or f"the value that begins in line {_line(text, start)}"
        digits = sys.get_int_max_str_digits()
        raise DataError(f"{path} has a number of more than {digits} digits in {where}: write it as text") from error


def _checked(value: Any, text: str, path: Path, place: str) -> Any:
    """Returns a value that everything after can handle; raises `DataError` for any other."""
    if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
        raise _too_deep(path, place)
    check_surrogates(value, text, str(path), f", in {place}")
    return value


def _too_deep(path: Path, place: str) -> DataError:
    return DataError(f"{path} nests lists and objects more than {DEEPEST} deep in {place}: flatten it")


def _broken(path: Path, text: str, position: int, reason: str, place: str = "") -> DataError:
    return DataError(f"{path} is broken JSON in {place or f'line {_line(text, position)}'}: {reason}")


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
