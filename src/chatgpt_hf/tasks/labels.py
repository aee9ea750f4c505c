"""Converts written labels (names, indices, lists of them, quantities) to the numbers that a model learns."""

import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from datasets import List, Value

from ..data.files import has_content, read_text
from ..errors import DataError

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
FEATURES = {
    "single_label_classification": Value("int64"),
    "multi_label_classification": List(Value("float32")),
    "regression": Value("float32"),
}
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
        names: The names, or the path of a file with one name per line.

    Raises:
        DataError: If there is no such file, there are fewer than two names, or a name occurs twice.
    """
    if isinstance(names, (str, PathLike)):
        path = Path(names)
        if not path.is_file():
            raise DataError(f"There is no file {path} with label names, one per line.")
        has_content(path)
        names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"Give two or more label names, each once, not {', '.join(names) or 'none'}.")
    return list(names)


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

    Labels are names or, if none of them is a name, indices: from 1 if 0 never occurs and the number of names does,
    else from 0. With several labels, a row may also have zeros and ones, one for each name.
    """

    def __init__(self, rows: Sequence[Labelled], names: Sequence[str], problem_type: str) -> None:
        """Determines how the labels of all `rows` are written."""
        self.names = list(names)
        self.problem_type = problem_type
        self._has_vectors = problem_type == "multi_label_classification" and _vector_width(rows) == len(names)
        found = {_as_name(label) for row in rows for label in _labels_of(row, problem_type)}
        self._index = {name: index for index, name in enumerate(names)}
        if problem_type != "regression" and not found & set(names) and all(map(_is_whole, found)):
            first = int("0" not in found and str(len(names)) in found)
            self._index = {str(index + first): index for index in range(len(names))}

    def __call__(self, row: Labelled) -> int | float | list[float]:
        """Converts a row's label.

        Raises:
            DataError: If a label is unknown.
        """
        if self.problem_type == "regression":
            return float(row.label)
        if self._has_vectors:
            if not isinstance(row.label, list) or len(row.label) != len(self.names):
                raise DataError(f"{row} has the labels {row.label!r} instead of {len(self.names)} zeros and ones.")
            return [float(item) for item in row.label]
        indices = []
        for label in _labels_of(row, self.problem_type):
            if (index := self._index.get(_as_name(label))) is None:
                shown = ", ".join(self.names[:20]) + (" ..." if len(self.names) > 20 else "")
                raise DataError(f"{row} has the unknown label {label!r}: known are {shown}.")
            indices.append(index)
        if self.problem_type == "single_label_classification":
            return indices[0]
        return [float(index in indices) for index in range(len(self.names))]


def number_of(value: Any) -> float | None:
    """Converts a value to a number; None if it is not a finite number."""
    try:
        number = math.nan if isinstance(value, (bool, list)) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_float(value: Any) -> bool:
    """True if a value is a number that is not written as a whole number."""
    return isinstance(value, float) or (
        isinstance(value, str) and not _is_whole(value) and number_of(value) is not None
    )


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _as_name(label: Any) -> str:
    """Returns a label's name: 1, 1.0 and "1" have the same name."""
    number = number_of(label) if _is_float(label) else None
    return str(int(number)) if number is not None and number.is_integer() else str(label)


def _labels_of(row: Labelled, problem_type: str) -> list[Any]:
    """Returns the labels of a row; a csv or tsv cell gives several as a JSON list or separated by commas."""
    label = row.label
    if problem_type != "multi_label_classification" or not isinstance(label, str):
        return label if isinstance(label, list) else [label]
    if label.startswith("["):
        try:
            return list(json.loads(label))
        except json.JSONDecodeError as error:
            raise DataError(f"{row} has the label {label!r:.80}, a broken JSON list: {error.msg}.") from error
    return [item.strip() for item in label.split(",") if item.strip()]


def _vector_width(rows: Sequence[Labelled]) -> int | None:
    """Returns the length of the rows' 0/1 vectors; None if the labels are not vectors, but names without repeats."""
    lists = [row.label for row in rows]
    if not lists or not all(isinstance(label, list) for label in lists) or len({len(label) for label in lists}) > 1:
        return None
    is_binary = all(not isinstance(item, str) and item in (0, 1) for label in lists for item in label)
    return len(lists[0]) if is_binary and any(len(set(label)) < len(label) for label in lists) else None
