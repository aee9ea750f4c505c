"""Loads the rows of a file as a data set, with types that keep the values as they stand in the file."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from datasets import (
    ArrowBasedBuilder,
    BuilderConfig,
    ClassLabel,
    Dataset,
    DatasetInfo,
    Features,
    Json,
    List,
    SplitGenerator,
    Value,
)
from datasets.exceptions import DatasetGenerationError

from ..errors import ChatGPTError, DataError
from .arrow_rows import parquet_schema
from .delimited import read_table
from .files import faults_named, format_of
from .remote import fetch
from .tables import placed_rows

# Part of what a cached data set is found by: count it up when the same file gives other rows.
_READER = 2
# Rows are held in memory until their batch is written; a batch of texts must be smaller than 2 GiB.
_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 1 << 26
_LONG = re.compile(r"\d{19}")
_INT64 = range(-(1 << 63), 1 << 63)

# Path, size and time of a file.
Stamp = tuple[str, int, int]


@dataclass
class _Reading(BuilderConfig):
    """The files to read and how to read them. `datasets` caches the result under a hash of all fields."""

    generator: Callable[..., Iterator[dict[str, Any]]] | None = None
    files: Sequence[Stamp] = ()
    arguments: Mapping[str, Any] | None = None
    features: Features | None = None
    reader: int = 0


class _Rows(ArrowBasedBuilder):
    """Writes rows in batches, which takes a third of the time that `Dataset.from_generator` takes for single rows."""

    BUILDER_CONFIG_CLASS = _Reading

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name="train", gen_kwargs={})]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        rows = self.config.generator(self.config.files, **self.config.arguments)
        return enumerate(_batches(rows, self.config.features))


def _batches(rows: Iterator[dict[str, Any]], features: Features) -> Iterator[pa.Table]:
    batch: list[dict[str, Any]] = []
    length = 0
    for row in rows:
        batch.append(row)
        length += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(batch) == _BATCH_ROWS or length > _BATCH_CHARACTERS:
            yield _table(batch, features)
            batch, length = [], 0
    if batch:
        yield _table(batch, features)


def _table(rows: Sequence[Mapping[str, Any]], features: Features) -> pa.Table:
    columns = {}
    for field in features.arrow_schema:
        is_json = isinstance(field.type, pa.JsonType)
        column = pa.array([row[field.name] for row in rows], pa.string() if is_json else field.type)
        columns[field.name] = pa.ExtensionArray.from_storage(field.type, column) if is_json else column
    return pa.table(columns)


def generate(
    generator: Callable[..., Iterator[dict[str, Any]]], features: Features, files: Sequence[Path], **arguments: Any
) -> Dataset:
    """Writes the rows that a generator yields to the cache of `datasets`, in batches, and loads them from there.

    Args:
        generator: A function of this package with the argument `files`, a sequence of stamps, and `arguments`.
        features: Of its rows. For a `Json` column it yields JSON.
        files: Files that it reads; a changed file is read again.
        **arguments: Further arguments of the generator.
    """
    stamps = []
    for file in files:
        fetch(file)
        with faults_named(file):
            status = file.stat()
            stamps.append((str(file), status.st_size, status.st_mtime_ns))
    builder = _Rows(
        dataset_name="chatgpt_hf",
        generator=generator,
        files=stamps,
        arguments=arguments,
        features=features,
        reader=_READER,
    )
    try:
        builder.download_and_prepare()
        return cast(Dataset, builder.as_dataset(split="train"))
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ChatGPTError):
            raise error.__cause__ from None
        raise
    except ValueError as error:
        if "corresponds to no data" not in str(error):  # what `datasets` says of a generator without rows
            raise
        return Dataset.from_dict({name: [] for name in features}, features)


def load_file(path: Path, *, encoding: str | None = None, column_names: Sequence[str] | None = None) -> Dataset:
    """Loads the rows of one file.

    Columns of texts, whole numbers, numbers, truth values, and lists of them have these types; label names in a parquet
    file are kept. A column of several of these, or of numbers whose text would change, is text; one of anything else is
    `Json`.

    Args:
        path: A csv, tsv, jsonl, json or parquet file, or a txt file with tabs.
        encoding: Its encoding, UTF-8 if not given.
        column_names: Names of the columns of a file without a header, whose cells are separated.

    Raises:
        DataError: If the file has no rows, or is broken; the message names the place.
    """
    if column_names is not None:
        features = Features(dict.fromkeys(column_names, Value("string")))
        rows = generate(_read_cells, features, [path], encoding=encoding, column_names=list(column_names))
    else:
        features = _features(path, encoding)
        rows = generate(_read_typed, features, [path], encoding=encoding, columns=features)
    if len(rows) == 0:
        raise DataError(f"{path} is empty: it has no rows")
    return rows


def _read_cells(files: Sequence[Stamp], encoding: str | None, column_names: list[str]) -> Iterator[dict[str, Any]]:
    for path, _, _ in files:
        for _, row in read_table(Path(path), encoding=encoding, column_names=column_names):
            yield row


def _read_typed(files: Sequence[Stamp], encoding: str | None, columns: Features) -> Iterator[dict[str, Any]]:
    converts = {name: _convert(feature) for name, feature in columns.items()}
    for path, _, _ in files:
        for row in _rows(Path(path), encoding):
            try:
                typed = {
                    name: None if (value := row.get(name)) is None else convert(value)
                    for name, convert in converts.items()
                }
            except DataError as error:
                raise DataError(f"{path} {error}") from error
            yield typed


def _rows(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    is_text = format_of(path) == ".txt"
    rows = read_table(path, encoding=encoding) if is_text else placed_rows(path, encoding=encoding)
    return (row for _, row in rows)


def _features(path: Path, encoding: str | None) -> Features:
    """Reads a file once to find the types of its columns."""
    kinds: dict[str, set[str]] = {}
    is_text = format_of(path) in (".csv", ".tsv", ".txt")
    for row in _rows(path, encoding):
        for name, value in row.items():
            found = kinds.setdefault(name, set())
            if value is not None:
                found |= _kinds(value)
        if is_text:
            break
    if any("\0" in name for name in kinds):
        # Arrow's names end there, so that it would mix up two columns.
        raise DataError(f"{path} has a column with a zero byte in its name: rename it")
    features = {name: _feature(found) for name, found in kinds.items()}
    if not features:
        raise DataError(f"{path} is empty: it has no rows")
    return Features({**features, **(_class_labels(path, features) if format_of(path) == ".parquet" else {})})


def _kinds(value: Any) -> set[str]:
    """Returns what a value is, or a list consists of: names of types, `other` if none fits."""
    if isinstance(value, list):
        return {f"list of {kind}" for item in value if item is not None for kind in _kinds(item)} or {"list"}
    if isinstance(value, str):
        return {"string"}
    if isinstance(value, bool):
        return {"bool"}
    if isinstance(value, int):
        return {"int64" if value in _INT64 else "long"}
    if isinstance(value, bytes):
        return {"binary"}
    if isinstance(value, float):
        return {"float64" if str(value) == float.__repr__(value) else "written"}
    return {"other"}


def _feature(kinds: set[str]) -> Any:
    lists = {kind.removeprefix("list").removeprefix(" of ") for kind in kinds if kind.startswith("list")} - {""}
    scalars = {kind for kind in kinds if not kind.startswith("list")}
    if "other" in kinds | lists or any(kind.startswith("list") for kind in lists):
        return Json()
    if len(scalars) < len(kinds):
        return Json() if scalars else List(_scalar(lists))
    return _scalar(scalars)


def _scalar(kinds: set[str]) -> Value:
    (kind, *others) = kinds or {"string"}
    return Value("string" if others or kind in ("long", "written") else kind)


def _convert(feature: Any) -> Callable[[Any], Any]:
    if isinstance(feature, Json):
        return _as_json
    if isinstance(feature, List):
        inner = _convert(feature.feature)
        return lambda items: [None if item is None else inner(item) for item in items]
    return _written if getattr(feature, "dtype", "") == "string" else _same


def _same(value: Any) -> Any:
    return value


def _written(value: Any) -> str:
    """Returns a single value as it stands in the file."""
    return ("false", "true")[value] if isinstance(value, bool) else str(value)


def _as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if _LONG.search(text) and any(number not in _INT64 for number in _integers(value)):
        raise DataError("has an integer of more than 64 bits within a list or object: write it as text")
    return text


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _integers(item)
    elif isinstance(value, int):
        yield value


def _class_labels(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of a parquet file that have names for their numbers."""
    schema = parquet_schema(path)
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        features = Features.from_arrow_schema(schema)
    # Whatever stands in the file is looked up as names of classes.
    except Exception as error:
        raise DataError(f"{path} has metadata of `datasets` that cannot be read: {error!r:.200}") from error
    labels = {}
    for name, feature in features.items():
        is_list = isinstance(feature, List)
        inner = feature.feature if is_list else feature
        expected = List(Value("int64")) if is_list else Value("int64")
        if isinstance(inner, ClassLabel) and found.get(name) == expected:
            labels[name] = List(inner) if is_list else inner
    return labels
