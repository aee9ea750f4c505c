"""Reads tables of labeled rows, with or without a header, and rejects rows that cannot be used."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, DatasetDict

from ..data.columns import load_file
from ..data.corpus import load_rows
from ..data.delimited import read_cells
from ..data.files import format_of, source_files
from ..data.splits import split_files
from ..data.splits import split_rows as split_rows
from ..errors import DataError


class Table(NamedTuple):
    """Rows with columns.

    Attributes:
        where: The file, or the name of the built-in or Hub data set, for messages.
        splits: `train`, `test`, or both; a file has one of them.
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


class Accepted(NamedTuple):
    """Which rows a person accepted, and the column that says so, with its role."""

    rows: list[bool]
    columns: dict[str, str]

    def notes(self) -> dict[str, int]:
        """Returns what was left out, for the summary of the rows."""
        return {'rows that are not marked "accept" were left out': self.rows.count(False)}


def find_accepted(rows: Dataset, used: Collection[str]) -> Accepted:
    """Reads Prodigy's column `answer`, which has `accept`, `reject` or `ignore`; other answers are data.

    Args:
        used: The columns that are read as data.
    """
    if "answer" not in used and "answer" in rows.column_names:
        answers = rows["answer"][:]
        if set(map(str, answers)) <= {"accept", "reject", "ignore"}:
            return Accepted([answer == "accept" for answer in answers], {"answer": "decision"})
    return Accepted([True] * len(rows), {})


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
    for split, part in split_files(files, source).items():
        for file in part:
            if format_of(file) in (".csv", ".tsv", ".txt"):
                table = _load_delimited(file, header, column_names, encoding)
            else:
                ((where, splits),) = load_rows(str(file), encoding=encoding)
                table = Table(where, splits, True)
            tables.append(table._replace(splits=DatasetDict({split: table.splits["train"]})))
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
