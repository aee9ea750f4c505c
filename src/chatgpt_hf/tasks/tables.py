"""Reads tables of labeled rows, with or without a header, and rejects rows that cannot be used."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from datasets import DatasetDict

from ..data.columns import load_file
from ..data.corpus import check_test_fraction, is_held_out, load_rows
from ..data.delimited import read_cells
from ..data.files import format_of, source_files
from ..errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Table(NamedTuple):
    """Rows with columns.

    Attributes:
        where: The file, or the name of the built-in or Hub data set, for messages.
        splits: `train`, and `test` if the data set has one.
        has_header: True if the columns have their own names; otherwise they are `column0`, `column1` ...
    """

    where: str
    splits: DatasetDict
    has_header: bool


class Rejected:
    """Collects rows that cannot be used: raises on the first or, with `skip_invalid`, counts them."""

    def __init__(self, where: str, skip_invalid: bool, unit: str = "row") -> None:
        self.where = where
        self.skip_invalid = skip_invalid
        self.unit = unit
        self.reasons: list[str] = []

    def add(self, number: int, reason: str) -> None:
        """Rejects a row.

        Args:
            number: Number of the row, or of what `unit` names, counted from 1 without a header.
            reason: What is wrong with it and what would be right, without a full stop.

        Raises:
            DataError: Unless `skip_invalid` is set.
        """
        message = f"{self.unit} {number} of {self.where} cannot be used: {reason}"
        if not self.skip_invalid:
            raise DataError(f"{message[0].upper()}{message[1:]} (--skip_invalid leaves it out).")
        self.reasons.append(message)

    def log(self) -> None:
        """Logs how many rows were left out, and why the first one was."""
        if self.reasons:
            count = len(self.reasons)
            logger.warning("%d %ss of %s are left out; the first: %s.", count, self.unit, self.where, self.reasons[0])


def split_rows(
    rows: Mapping[str, list[T]],
    held_out: Mapping[str, list[T]] | None,
    test_fraction: float,
    key: Callable[[T], str],
    source: str,
) -> dict[str, list[T]]:
    """Splits rows into those to learn from and those to hold out.

    Args:
        rows: Rows of the source by split: `train`, and optionally `test`.
        held_out: Rows of an evaluation source, likewise; its `test` split or, without one, all of it is held out.
        test_fraction: Share to hold out by a hash if there is no evaluation source and no `test` split.
        key: Returns the string to hash. Rows with the same string stay on the same side when the data grow or are
            reordered.
        source: Name of the source, for messages.

    Returns:
        The splits `train` and `test`; the latter is empty if nothing should be held out.

    Raises:
        DataError: If there is nothing to learn from, or nothing is held out although something should be.
        ConfigError: If `test_fraction` is neither 0 nor between 0 and 1.
    """
    if test_fraction:
        check_test_fraction(test_fraction)
    train, test = rows.get("train", []), rows.get("test", [])
    if held_out is not None:
        test = held_out.get("test") or held_out.get("train", [])
    elif test_fraction and not test:
        sides = [is_held_out(key(row), test_fraction) for row in train]
        train, test = ([row for row, held in zip(train, sides, strict=True) if held is side] for side in (False, True))
    if not train:
        raise DataError(f"{source} has nothing to learn from: give more rows, or hold out fewer.")
    if not test and (test_fraction or held_out is not None):
        raise DataError(
            f"No rows of {source} are held out: give more rows, a larger --test_fraction or an --eval_dataset."
        )
    learned = set(map(key, train))
    if again := sum(key(row) in learned for row in test):
        logger.warning("%d of %d held-out rows are also training rows.", again, len(test))
    return {"train": train, "test": test}


def load_tables(
    source: str,
    *,
    header: Collection[str] = (),
    column_names: Sequence[str] | None = None,
    encoding: str | None = None,
) -> list[Table]:
    """Reads what `load_rows` reads, and also csv, tsv and (tab-separated) txt files without a header.

    Args:
        source: As for `load_rows`.
        header: Names in lower case. The first line of a csv, tsv or txt file is a header if it contains one of them.
        column_names: Column names of files without a header. If given, a first line is a header only if it consists of
            these names.
        encoding: As for `load_rows`.

    Raises:
        DataError: As for `load_rows`.
    """
    files = None if source.startswith("builtin:") else source_files(source)
    if files is None:
        return [Table(where, splits, True) for where, splits in load_rows(source)]
    tables = []
    for file in files:
        if format_of(file) in (".csv", ".tsv", ".txt"):
            tables.append(_load_delimited(file, header, column_names, encoding))
        else:
            tables += [Table(where, splits, True) for where, splits in load_rows(str(file), encoding=encoding)]
    return tables


def _load_delimited(
    path: Path, header: Collection[str], column_names: Sequence[str] | None, encoding: str | None
) -> Table:
    _, first = next(read_cells(path, encoding=encoding), (0, []))
    if not first:
        raise DataError(f"{path} is empty: give at least one row")
    first = [cell.strip() for cell in first]
    if format_of(path) == ".txt" and len(first) == 1:
        raise DataError(
            f"{path} is a text file without columns: put tabs between them, or give jsonl, json, csv or tsv"
        )
    if column_names is not None:
        has_header = first == list(column_names)
    else:
        has_header = any(cell.lower() in header for cell in first)
    if has_header:
        return Table(str(path), DatasetDict(train=load_file(path, encoding=encoding)), True)
    names = list(column_names or [f"column{index}" for index in range(len(first))])
    if len(names) != len(first):
        raise DataError(
            f"{path} has {len(first)} columns, but {len(names)} names are given for them: {', '.join(names)}"
        )
    rows = load_file(path, encoding=encoding, column_names=names)
    return Table(str(path), DatasetDict(train=rows), False)
