"""Reads tables of labeled rows, with or without a header, and rejects rows that cannot be used."""

import csv
import io
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from datasets import DatasetDict, Features, Value

from ..data.corpus import load_file, load_rows, run_loader
from ..data.files import format_of, has_content, open_bytes, source_files
from ..data.splits import split_files
from ..data.splits import split_rows as split_rows
from ..errors import DataError

logger = logging.getLogger(__name__)

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


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

    def log(self) -> None:
        """Logs how many rows were left out, and why the first one was."""
        if self.reasons:
            count = len(self.reasons)
            logger.warning("%d %ss of %s are left out; the first: %s.", count, self.unit, self.where, self.reasons[0])


def load_tables(
    source: str, *, header: Collection[str] = (), column_names: Sequence[str] | None = None
) -> list[Table]:
    """Reads what `load_rows` reads, and also csv, tsv and (tab-separated) txt files without a header.

    Args:
        source: As for `load_rows`.
        header: Names in lower case. The first line of a csv, tsv or txt file is a header if it contains one of them.
        column_names: Column names of files without a header. If given, a first line is a header only if it consists of
            these names.

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
                table = _load_delimited(file, header, column_names)
            else:
                ((where, splits),) = load_rows(str(file))
                table = Table(where, splits, True)
            tables.append(table._replace(splits=DatasetDict({split: table.splits["train"]})))
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
        raise DataError(
            f"{path} is a text file without columns: put tabs between them, or give jsonl, json, csv or tsv"
        )
    if column_names is not None:
        has_header = first == list(column_names)
    else:
        has_header = any(cell.lower() in header for cell in first)
    if has_header and format_of(path) != ".txt":
        return Table(str(path), DatasetDict(train=load_file(path, quoting=quoting)), True)
    names = list(column_names or (first if has_header else [f"column{index}" for index in range(len(first))]))
    if len(names) != len(first):
        raise DataError(
            f"{path} has {len(first)} columns, but {len(names)} names are given for them: {', '.join(names)}"
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
    """True if quotation marks enclose the cells of a tab-separated file; False if they are part of the text.

    They are part of the text if every line has as many tabs as the first, and a cell that begins with a quotation mark
    does not end with its match: `"Is he right?" "I don't think so."`.
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
