"""The one reader of rows: csv, tsv, jsonl, json and parquet files, built-in and Hub data sets, with the values as they stand."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset

from .._moved import names_of
from ..errors import DataError
from .arrow_rows import plain_rows, read_parquet
from .builtin import load_builtin
from .delimited import read_table
from .encodings import check_encoding
from .files import format_of, is_empty, is_one_document, source_files
from .json_rows import read_json
from .splits import held_out_split, split_files

# A module of this name had other contents in release 0.1.
__getattr__ = names_of(__name__, "tasks.tables")


class Table(NamedTuple):
    """Rows with columns.

    Attributes:
        where: The file, or the name of the built-in or Hub data set, for messages.
        split: `train` or `test`.
        rows: Begins a pass over the rows, which are read as they are asked for, in the order of the file.
    """

    where: str
    split: str
    rows: Callable[[], Iterator[dict[str, Any]]]


def read_tables(source: str, *, encoding: str | None = None) -> list[Table]:
    """Finds the tables of any source of `load_corpus` except text files.

    Args:
        source: A file, folder or glob of csv, tsv, jsonl, json or parquet files; `builtin:...`; or a Hub id.
        encoding: Encoding of the text files without a byte order mark; UTF-8 if not given.

    Returns:
        One table for each file and split. See `read_rows` for the values.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be read; and, while rows are read, if a file is
            broken. The message names the file and the place.
        ConfigError: If the encoding is unknown.
    """
    check_encoding(encoding)
    files = None if source.startswith("builtin:") else source_files(source)
    if files is None:
        splits = load_builtin(source) if source.startswith("builtin:") else load_hub_splits(source)
        return [Table(source, str(name), partial(dataset_rows, split)) for name, split in splits.items()]
    tables = []
    for split, part in split_files(files, source).items():
        for file in part:
            if is_one_document(file):
                raise DataError(f"{file} is a text file without columns: give jsonl, json, csv, tsv or parquet files")
            if is_empty(file):
                raise DataError(f"{file} is empty: give at least one row")
            tables.append(Table(str(file), split, partial(read_rows, file, encoding=encoding)))
    return tables


def read_rows(path: Path, *, encoding: str | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of one file.

    A row has the keys that stand in the file, in their order. Cells of csv and tsv files are text. JSON has text, int,
    bool, None, lists, dicts, and floats whose `str` is the text in the file; dates in it are text. Parquet has no
    such text: see `plain_rows`.

    Raises:
        DataError: If the file has no rows, or is broken; the message names the place.
    """
    row = None
    for _, row in placed_rows(path, encoding=encoding):
        yield row
    if row is None:
        raise DataError(f"{path} is empty: it has no rows")


def placed_rows(
    path: Path, *, encoding: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of one file, each with its place in it: `line 3`, or `row 3` where lines do not count.

    Args:
        path: The file.
        encoding: As for `read_tables`.
        columns: Columns to read of a parquet file; all if not given.
    """
    suffix = format_of(path)
    if suffix in (".csv", ".tsv"):
        yield from ((f"line {line}", row) for line, row in read_table(path, encoding=encoding))
    elif suffix in (".json", ".jsonl"):
        yield from read_json(path, encoding=encoding)
    elif suffix == ".parquet":
        yield from ((f"row {number}", row) for number, row in enumerate(read_parquet(path, columns), start=1))
    else:
        raise DataError(f"{path} is a text file without columns: give jsonl, json, csv, tsv or parquet files")


def dataset_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yields the rows of a data set as `plain_rows` does."""

    def batches(columns: Sequence[str]) -> Iterable[pa.Table]:
        return dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=1000)

    return plain_rows(dataset.features.arrow_schema, batches, "the data set")


def load_hub_splits(source: str, **options: Any) -> DatasetDict:
    """Loads a Hub data set: its `train` split, and as `test` what `held_out_split` chooses."""
    problem = f"{source} is not a file, a folder, a glob that matches, builtin:python-docs, or a Hub id"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or format_of(Path(source)):
        raise DataError(f"{problem}: check the spelling")
    try:
        splits = load_dataset(source, **options)
    # Not found, offline, gated, more than one configuration: each raises a different exception.
    except Exception as error:
        raise DataError(f"{problem} that could be loaded: {error}") from error
    if "train" not in splits:
        raise DataError(f"{source} has no split train, only {', '.join(map(str, splits))}")
    held_out = held_out_split(map(str, splits), source)
    return DatasetDict({"train": splits["train"], **({"test": splits[held_out]} if held_out else {})})
