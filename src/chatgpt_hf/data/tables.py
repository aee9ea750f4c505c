"""Labelled rows as people bring them: with or without a header, and what becomes of rows that cannot be used."""

import csv
import io
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from datasets import DatasetDict, Features, Value

from ..errors import DataError
from .corpus import load_file, load_rows, run_loader
from .files import format_of, has_content, open_bytes, source_files

logger = logging.getLogger(__name__)

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


class Table(NamedTuple):
    """Rows with columns.

    Attributes:
        where: The file, or the built-in or Hub data set, for messages.
        splits: `train`, and `test` if the data set has one.
        has_header: Whether its columns have names of their own; without, they are `column0`, `column1` ...
    """

    where: str
    splits: DatasetDict
    has_header: bool


class Rejected:
    """Rows that cannot be used: the first is an error, unless such rows are to be left out; then they are counted."""

    def __init__(self, where: str, skip_invalid: bool) -> None:
        self.where = where
        self.skip_invalid = skip_invalid
        self.reasons: list[str] = []

    def add(self, number: int, reason: str) -> None:
        """Rejects a row.

        Args:
            number: Counted from 1, a header aside.
            reason: What is wrong with it and what would be right, without a stop.

        Raises:
            DataError: Unless such rows are left out.
        """
        message = f"row {number} of {self.where} cannot be used: {reason}"
        if not self.skip_invalid:
            raise DataError(f"{message[0].upper()}{message[1:]} (--skip_invalid leaves such rows out).")
        self.reasons.append(message)

    def log(self) -> None:
        """Says how many rows were left out, and why the first was."""
        if self.reasons:
            logger.warning(
                "%d rows of %s are left out; the first: %s.", len(self.reasons), self.where, self.reasons[0]
            )


def load_tables(
    source: str, *, header: Collection[str] = (), column_names: Sequence[str] | None = None
) -> list[Table]:
    """What `load_rows` reads, and also csv, tsv and txt files without a header; the latter hold tabs.

    Args:
        source: As for `load_rows`.
        header: Names in lower case. The first line of a csv, tsv or txt file is a header if one of them is in it.
        column_names: Of files without a header; then no first line is one, unless it is these names.

    Raises:
        DataError: As `load_rows`.
    """
    files = None if source.startswith("builtin:") else source_files(source)
    if files is None:
        return [Table(where, splits, True) for where, splits in load_rows(source)]
    tables = []
    for file in files:
        if format_of(file) in (".csv", ".tsv", ".txt"):
            tables.append(_load_delimited(file, header, column_names))
        else:
            tables += [Table(where, splits, True) for where, splits in load_rows(str(file))]
    return tables


def _load_delimited(path: Path, header: Collection[str], column_names: Sequence[str] | None) -> Table:
    if not has_content(path):
        raise DataError(f"{path} is empty: give at least one row")
    separator = "," if format_of(path) == ".csv" else "\t"
    quoting = csv.QUOTE_MINIMAL if separator == "," or _is_quoted(path) else csv.QUOTE_NONE
    try:
        with open_bytes(path) as stream:
            head = pd.read_csv(
                stream, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False, quoting=quoting
            )
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    first = [cell.strip().lstrip("\ufeff") for cell in head.iloc[0]]
    if format_of(path) == ".txt" and len(first) == 1:
        raise DataError(f"{path} is a text without columns: put a tab between them, or give jsonl, json, csv or tsv")
    if column_names is not None:
        has_header = first == list(column_names)
    else:
        has_header = any(cell.lower() in header for cell in first)
    if has_header and format_of(path) != ".txt":
        return Table(str(path), DatasetDict(train=load_file(path, quoting=quoting)), True)
    names = list(column_names or (first if has_header else [f"column{index}" for index in range(len(first))]))
    if len(names) != len(first):
        raise DataError(
            f"{path} has {len(first)} columns, and {len(names)} names are given for them: {', '.join(names)}"
        )
    rows = run_loader(
        path,
        "csv",
        sep=separator,
        column_names=names,
        skiprows=int(has_header),
        quoting=quoting,
        keep_default_na=False,
        features=Features({name: Value("string") for name in names}),
    )
    return Table(str(path), DatasetDict(train=rows), has_header)


def _is_quoted(path: Path) -> bool:
    """Whether quotation marks enclose the cells of a tab-separated file, and are no part of the text.

    They are part of it if every line has as many tabs as the first, and a cell that begins with one does not end with its
    match: `"Is he right?" "I don't think so."`.
    """
    tabs = None
    is_quoted = True
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="\n") as stream:
        for line in stream:
            if not (line := line.rstrip("\r\n")):
                continue
            cells = line.split("\t")
            tabs = len(cells) if tabs is None else tabs
            if len(cells) != tabs:
                return True
            is_quoted = is_quoted and all(not cell.startswith('"') or _QUOTED.fullmatch(cell) for cell in cells)
    return is_quoted
