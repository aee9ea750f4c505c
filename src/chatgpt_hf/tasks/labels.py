"""Converts written labels (names, indices, lists of them, quantities) to the numbers that a model learns."""

import ast
import json
import math
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from datasets import List, Value

from ..data.files import has_content, read_text
from ..errors import DataError
from ..parsing import is_decimal, parse_json

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
FEATURES = {
    "single_label_classification": Value("int64"),
    "multi_label_classification": List(Value("float32")),
    "regression": Value("float32"),
}
_NUMBERED = re.compile(r"\d{1,9}\t.+")
# What tables and data frames write for a missing value.
_MISSING = {"NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NAN", "null", "NULL", "Null", "#N/A"}
_COMMA = re.compile(r"[+-]?\d+(?:,\d+)+(?:\.\d+)?")
_PERCENT = re.compile(r"[+-]?\d+(?:[.,]\d+)?\s*[%％]")
# NumPy writes no commas, and Python joins texts without a comma between them.
_NO_COMMA = re.compile(r"""['"]\s+['"]""")
_TO_REGRESSION = "--problem_type regression learns quantities"


class Labelled(NamedTuple):
    """A text with its label as written.

    Attributes:
        where: The file.
        number: The row in the file, counted from 1.
        text: The labeled text.
        label: A string, a number or a list of these.
    """

    where: str
    number: int
    text: str
    label: Any

    def __str__(self) -> str:
        return f"Row {self.number} of {self.where}"


def read_label_names(names: str | PathLike[str] | Sequence[str]) -> list[str]:
    """Returns label names in the order of their indices.

    Args:
        names: The names, or the path of a file with one name per line; a number and a tab may stand before each.

    Raises:
        DataError: If there is no such file, there are fewer than two names, or a name occurs twice.
    """
    return read_numbered_names(names)[0]


def read_numbered_names(names: str | PathLike[str] | Sequence[str]) -> tuple[list[str], int | None]:
    """Returns what `read_label_names` does, and the number of the first name if the file numbers them.

    Raises:
        DataError: As for `read_label_names`, or if the numbers do not count from 0 or 1.
    """
    first = None
    if isinstance(names, (str, PathLike)):
        path = Path(names)
        if not path.is_file():
            raise DataError(f"There is no file {path} with label names, one per line.")
        has_content(path)
        names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        if names and all(_NUMBERED.fullmatch(name) for name in names):
            pairs = [name.split("\t", 1) for name in names]
            numbers = [int(number) for number, _ in pairs]
            first = numbers[0]
            if first not in (0, 1) or numbers != list(range(first, first + len(numbers))):
                raise DataError(f"{path} must number its names from 0 or from 1, in order.")
            names = [name.strip() for _, name in pairs]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"Give two or more label names, each once, not {', '.join(names) or 'none'}.")
    return list(names), first


def find_problem_type(rows: Sequence[Labelled], asked: str = "auto") -> str:
    """Returns the one of `PROBLEM_TYPES` that fits the labels.

    Args:
        rows: All rows.
        asked: The requested type. `auto` chooses several labels for lists, regression for numbers with a fraction, and
            a single label for everything else.

    Raises:
        DataError: If a label does not fit the requested type, or numbers may be classes or quantities; the message
            names the row.
    """
    if asked == "multi_label_classification":
        return asked
    if row := next((row for row in rows if isinstance(row.label, list)), None):
        if asked == "auto":
            return "multi_label_classification"
        raise DataError(f"{row} has a list of labels: --problem_type multi_label_classification learns those.")
    if asked == "regression":
        if row := next((row for row in rows if number_of(row.label) is None), None):
            raise DataError(f"{row} has the label {row.label!r}, which is not a number: regression learns numbers.")
        return asked
    if asked == "auto":
        _check_quantities(rows)
    numbers = [number_of(row.label) for row in rows]
    if any(number is None for number in numbers):
        return "single_label_classification"
    for row, number in zip(rows, numbers, strict=True):
        if number is not None and not number.is_integer():
            if asked == "auto":
                return "regression"
            raise DataError(f"{row} has the label {row.label!r}, which is a number but not a class: {_TO_REGRESSION}.")
    if asked == "auto" and (row := next((row for row in rows if _is_float(row.label)), None)):
        raise DataError(
            f"{row} has the label {row.label!r}, a quantity or a class: {_TO_REGRESSION}, --problem_type "
            "single_label_classification treats each number as a class."
        )
    return "single_label_classification"


def _check_quantities(rows: Sequence[Labelled]) -> None:
    """Raises if the labels are quantities that no number of Python is: with decimal commas or signs of percent."""
    written = [str(row.label) for row in rows]
    commas = [row for row, label in zip(rows, written, strict=True) if _COMMA.fullmatch(label)]
    percents = [row for row, label in zip(rows, written, strict=True) if _PERCENT.fullmatch(label)]
    numbers = sum(number_of(label) is not None for label in written)
    if len(commas) + len(percents) + numbers < len(rows):
        return
    if percents and len(set(written)) == len(written):
        raise DataError(
            f"{percents[0]} has the label {percents[0].label!r}, a quantity: write numbers without a sign of percent for "
            "regression; --problem_type single_label_classification treats each as a class."
        )
    if commas and not percents:
        raise DataError(
            f"{commas[0]} has the label {commas[0].label!r}: regression learns numbers with a decimal point instead of a "
            "decimal comma, --problem_type multi_label_classification several labels between commas, and --problem_type "
            "single_label_classification treats each as a class."
        )


def unlabelled(labels: Sequence[Any], is_pair: bool) -> set[str]:
    """Returns what is written instead of a label, as strings, such as `NaN`, and `-` and -1 for hidden labels.

    Args:
        labels: All labels of a table as written.
        is_pair: True if the texts are pairs, whose data sets hide labels as -1, while -1 may be the sentiment of a
            single text.
    """
    found = set(_MISSING)
    written = {str(label).strip() for label in labels if not isinstance(label, (list, dict)) and label is not None}
    if "+" not in written:
        found.add("-")
    numbers = {number_of(label) for label in written - found if label}
    if None not in numbers and all(number.is_integer() for number in numbers if number is not None):
        whole = sorted(number for number in numbers if number is not None)
        # Of -1, 0, 1, 2 the last three are classes.
        is_hidden = whole[:1] == [-1] and whole[1:2] != [1] and (is_pair or whole[-1] > 1)
        found |= {"-1", "-1.0"} if is_hidden else set()
    return found


def list_of_labels(label: str) -> list[Any] | None:
    """Returns the labels of a cell that is a list in JSON or, as data frames write it, in Python; None if it is none."""
    text = label.strip()
    if not (text.startswith("[") and text.endswith("]")) or _NO_COMMA.search(text):
        return None
    for read in (parse_json, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if all(isinstance(item, (str, int, float)) for item in found) else None
    return None


def find_label_names(rows: Sequence[Labelled], problem_type: str) -> list[str]:
    """Returns the labels that occur, as names: whole numbers by value, others by alphabet; none for regression."""
    if problem_type == "regression":
        return []
    if problem_type == "multi_label_classification" and (width := _vector_width(rows)):
        return [str(index) for index in range(width)]
    names = {_as_name(label) for row in rows for label in _labels_of(row, problem_type)}
    return sorted(names, key=int) if all(map(_is_whole, names)) else sorted(names)


class LabelEncoder:
    """Converts written labels to the numbers that a model learns.

    Labels are names or, if none of them is a name, numbers of the names. With several labels, a row may also have zeros
    and ones, one for each name.

    Attributes:
        first: The number of the first name, 0 or 1, if the labels are numbers of names; otherwise None.
    """

    def __init__(
        self, rows: Sequence[Labelled], names: Sequence[str], problem_type: str, *, first: int | None = None
    ) -> None:
        """Determines how the labels of all `rows` are written.

        Args:
            first: The number of the first name, if it is known. Otherwise it is 0 if 0 occurs, and 1 if 0 does not but
                the number of names does.

        Raises:
            DataError: If numbers may count from 0 or from 1, or rows have zeros and ones for other names.
        """
        self.names = list(names)
        self.problem_type = problem_type
        self.first: int | None = None
        self._has_vectors = False
        self._index = {name: index for index, name in enumerate(names)}
        if problem_type == "regression":
            return
        if problem_type == "multi_label_classification":
            self._has_vectors = self._find_vectors(rows)
        found = {_as_name(label) for row in rows for label in _labels_of(row, problem_type)}
        are_numbers = found and not found & set(names) and all(map(_is_whole, found))
        # Names that are numbers themselves have no other numbers.
        if are_numbers and not self._has_vectors and not all(map(_is_whole, names)):
            self.first = self._find_first(rows[0].where, found) if first is None else first
            self._index = {str(index + self.first): index for index in range(len(names))}

    def _find_vectors(self, rows: Sequence[Labelled]) -> bool:
        width = _vector_width(rows)
        if width not in (None, len(self.names)):
            raise DataError(
                f"{rows[0]} has the labels {rows[0].label!r:.80}, {width} zeros and ones, but there are "
                f"{len(self.names)} names: give one for each name."
            )
        both = len(self.names) == 2 and not all(map(_is_whole, self.names))
        if width is None and both and rows and all(row.label == [0, 1] for row in rows):
            raise DataError(
                f"{rows[0]} has the labels [0, 1] like all others, which are numbers of names or zeros and ones: write the "
                f"names {', '.join(self.names)}."
            )
        return width is not None

    def _find_first(self, where: str, found: set[str]) -> int:
        """Returns the number of the first name, if the numbers that occur leave no doubt."""
        if "0" in found or all(name == f"LABEL_{index}" for index, name in enumerate(self.names)):
            return 0
        if str(len(self.names)) in found:
            return 1
        raise DataError(
            f"{where} has the labels {', '.join(sorted(found, key=int)[:5])}, and it is unclear whether the first of the "
            f"{len(self.names)} names, {self.names[0]}, is 0 or 1: write names as labels, or train with a file of "
            f"--class_names that numbers them (0, a tab, {self.names[0]})."
        )

    def __call__(self, row: Labelled) -> int | float | list[float]:
        """Converts a row's label.

        Raises:
            DataError: If a label is unknown.
        """
        if self.problem_type == "regression":
            return float(row.label)
        if self._has_vectors:
            items = _labels_of(row, self.problem_type)
            if len(items) != len(self.names) or not all(map(_is_zero_or_one, items)):
                raise DataError(f"{row} has the labels {row.label!r} instead of {len(self.names)} zeros and ones.")
            return [float(item) for item in items]
        indices = [self._index_of(row, label) for label in _labels_of(row, self.problem_type)]
        if self.problem_type == "single_label_classification":
            return indices[0]
        return [float(index in indices) for index in range(len(self.names))]

    def _index_of(self, row: Labelled, label: Any) -> int:
        # A label that is a name as it stands is that name, even if it is a number such as 2.0.
        for name in (str(label), _as_name(label), *_other_cases(_as_name(label))):
            if (index := self._index.get(name)) is not None:
                return index
        known = list(self._index)
        shown = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
        meant = "" if self.first is None else f" ({', '.join(self.names[:20])})"
        raise DataError(f"{row} has the unknown label {label!r}: known are {shown}{meant}.")


def number_of(value: Any) -> float | None:
    """Converts a value to a number; None if it is not a finite number."""
    # Python reads 1_000 as a number, but no file means one by it.
    is_none = isinstance(value, (bool, list)) or (isinstance(value, str) and "_" in value)
    try:
        number = math.nan if is_none else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_float(value: Any) -> bool:
    """True if a value is a number that is not written as a whole number."""
    return isinstance(value, float) or (
        isinstance(value, str) and not _is_whole(value) and number_of(value) is not None
    )


def _is_whole(name: str) -> bool:
    return is_decimal(name.removeprefix("-"))


def _as_name(label: Any) -> str:
    """Returns a label's name: 1, 1.0 and "1" have the same name, and JSON's true is "true"."""
    if isinstance(label, bool):
        return json.dumps(label)
    number = number_of(label) if _is_float(label) else None
    return str(int(number)) if number is not None and number.is_integer() else str(label)


def _other_cases(name: str) -> tuple[str, ...]:
    """Returns other ways to write true and false: JSON has `true`, Python and spreadsheets have `True` and `TRUE`."""
    return (name.lower(), name.title(), name.upper()) if name.lower() in ("true", "false") else ()


def _is_zero_or_one(item: Any) -> bool:
    return isinstance(item, bool) or number_of(item) in (0, 1)


def _labels_of(row: Labelled, problem_type: str) -> list[Any]:
    """Returns the labels of a row; a csv or tsv cell gives several as a JSON list or separated by commas."""
    label = row.label
    if problem_type != "multi_label_classification" or not isinstance(label, str):
        return label if isinstance(label, list) else [label]
    if label.startswith("["):
        if (found := list_of_labels(label)) is None:
            raise DataError(f"{row} has the label {label!r:.80}, a broken list: write it as JSON.")
        return found
    return [item.strip() for item in label.split(",") if item.strip()]


def _vector_width(rows: Sequence[Labelled]) -> int | None:
    """Returns the length of the rows' 0/1 vectors; None if the labels are not vectors, but names without repeats."""
    lists = [_labels_of(row, "multi_label_classification") for row in rows]
    if not lists or len({len(items) for items in lists}) > 1:
        return None
    if not all(_is_zero_or_one(item) for items in lists for item in items):
        return None
    # Numbers of names do not repeat, and are written in order.
    is_vector = any(len(set(items)) < len(items) or items == [1, 0] for items in lists)
    return len(lists[0]) if is_vector else None
