"""Loads text from files, folders, globs, Hub data sets and built-in corpora, always as one column of documents.

The loaders of `datasets` do the reading. This module finds every mistake in the user's data beforehand or names it
afterwards, with the file, the line or byte offset, and the existing columns.
"""

import csv
import glob
import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value, concatenate_datasets, load_dataset

from ..errors import ConfigError, DataError
from ..extras import require
from .builtin import load_builtin
from .files import format_of, has_content, is_one_document, json_fault, open_bytes, read_text, source_files
from .sources import fill_template, template_columns
from .splits import check_test_fraction as check_test_fraction
from .splits import cut_at_line as cut_at_line
from .splits import held_out_split, split_files
from .splits import is_held_out as is_held_out
from .splits import split_by_hash as split_by_hash

logger = logging.getLogger(__name__)

_TEXT = Features({"text": Value("string")})


def load_corpus(
    source: str, *, text_column: str = "text", template: str | None = None, skip_broken_files: bool = False
) -> DatasetDict:
    """Loads documents from one source.

    A txt or md file is one document, with line ends converted to line feeds; in the other formats each row is one.
    Blank documents are left out, with a warning.

    Args:
        source: `builtin:python-docs`; or a file, a folder (searched recursively, without hidden files) or a glob of
            txt, md, jsonl, json, csv, tsv or parquet files, all but the last also with `.gz` or `.zst`; or a Hub id.
        text_column: The column with the documents, in formats that have columns.
        template: Used instead of `text_column`: a text with column names in braces; a list is joined by line feeds.
        skip_broken_files: Leave out files that cannot be used, with a warning that says why, instead of raising an
            error.

    Returns:
        The split `train`, and `test` if the source has one, each with a string column `text`.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be used; the message names the file and the place.
        ConfigError: If the template is invalid, or a text column is given as well.
    """
    _check_selection(text_column, template)
    if source.startswith("builtin:"):
        splits = load_builtin(source)
        return DatasetDict({name: _with_text(split, source, text_column, template) for name, split in splits.items()})
    files = source_files(source)
    if files is None:
        splits = _load_hub_splits(source)
        return DatasetDict(
            {
                name: _without_blanks(_with_text(split, source, text_column, template), source)
                for name, split in splits.items()
            }
        )
    return DatasetDict(
        {
            name: _load_files(part, source, text_column, template, skip_broken_files)
            for name, part in split_files(files, source).items()
        }
    )


def load_rows(source: str) -> list[tuple[str, DatasetDict]]:
    """Loads rows with all their columns from any source of `load_corpus` except text files.

    Returns:
        A name for messages and the splits of each file, or of the one built-in or Hub data set. A file has one split.
        Cells of csv and tsv files are text.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be read; the message names the file and the place.
    """
    if source.startswith("builtin:"):
        return [(source, load_builtin(source))]
    files = source_files(source)
    if files is None:
        return [(source, _load_hub_splits(source))]
    tables = []
    for split, part in split_files(files, source).items():
        for file in part:
            if is_one_document(file):
                raise DataError(f"{file} is a text file without columns: give jsonl, json, csv, tsv or parquet files")
            if not has_content(file):
                raise DataError(f"{file} is empty: give at least one row")
            tables.append((str(file), DatasetDict({split: load_file(file)})))
    return tables


def _load_files(
    files: list[Path], source: str, text_column: str, template: str | None, skip_broken_files: bool
) -> Dataset:
    """Loads the documents of one split."""
    texts, parts, empty, broken = [], [], [], []
    for file in files:
        try:
            if not has_content(file):
                empty.append(file)
            elif is_one_document(file):
                texts.append(file)
            else:
                rows = load_file(file, text_column, template)
                parts.append(_with_text(rows, str(file), text_column, template))
        except DataError as error:
            if not skip_broken_files:
                raise
            broken.append(str(error))
    parts = [_load_texts(texts), *parts] if texts else parts
    if not parts:
        reason = f"cannot be used: {broken[0]}" if broken else "is empty: give at least one document"
        raise DataError(f"{source} {reason}")
    for file in empty:
        logger.warning("%s is empty and was left out.", file)
    for message in broken:
        logger.warning("Left out a broken file: %s", message)
    return _without_blanks(concatenate_datasets(parts), source)


def stream_corpus(
    source: str, *, text_column: str = "text", template: str | None = None, skip_broken_files: bool = False
) -> dict[str, IterableDataset]:
    """Streams the documents of `load_corpus` from files or the Hub as they are requested, including blank ones.

    Memory does not grow with a file, unless it is a single document or a JSON array.

    Args:
        source: As for `load_corpus`.
        text_column: As for `load_corpus`.
        template: As for `load_corpus`.
        skip_broken_files: Leave out the rest of a file that turns out to be broken, with a warning, instead of raising
            an error.

    Returns:
        The same as `load_corpus`, with iterable splits.

    Raises:
        DataError: If the source does not exist; and, during reading, if a file is broken: the message names the place.
    """
    _check_selection(text_column, template)
    files = None if source.startswith("builtin:") else source_files(source)
    if files is not None:
        options = {"text_column": text_column, "template": template, "skip_broken_files": skip_broken_files}
        return {
            name: IterableDataset.from_generator(
                _stream_files, features=_TEXT, gen_kwargs={"files": [str(file) for file in part], **options}
            )
            for name, part in split_files(files, source).items()
        }
    if source.startswith("builtin:"):
        splits = {name: split.to_iterable_dataset() for name, split in load_builtin(source).items()}
    else:
        splits = _load_hub_splits(source, streaming=True)
    streams = {}
    for name, split in splits.items():
        columns = split.column_names or list(next(iter(split)))
        _check_columns(columns, source, text_column, template)
        to_text = partial(_document, where=source, text_column=text_column, template=template)
        streams[name] = split.map(to_text, remove_columns=columns, features=_TEXT)
    return streams


def is_blank(text: str | None) -> bool:
    """True if a document is empty or only white space; unlike `strip`, this does not copy it."""
    return not text or text.isspace()


def _load_texts(files: list[Path]) -> Dataset:
    """Loads text files, each as one document.

    Avoids the `text` loader of `datasets`, which decodes compressed files in the locale's encoding.
    """
    # Size and time are arguments so that a changed file is not taken from the cache.
    stamps = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
    return cast(Dataset, Dataset.from_generator(_read_texts, features=_TEXT, gen_kwargs={"files": stamps}))


def _read_texts(files: list[tuple[str, int, int]]) -> Iterator[dict[str, str]]:
    for path, _, _ in files:
        yield {"text": read_text(Path(path))}


def run_loader(path: Path, loader: str, **options: Any) -> Any:
    """Runs a loader of `datasets` on a file."""
    if path.suffix.lower() == ".zst" and "zstd" not in fsspec.available_compressions():
        require(f"{path}, compressed with zstd,", "zstandard")
    try:
        # The loaders treat file names as patterns, hence the escape.
        return load_dataset(loader, data_files=[glob.escape(str(path.absolute()))], split="train", **options)
    # A loader passes on any exception of the library below it, even StopIteration.
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{path} is empty: it has no rows") from error
        raise DataError(f"{path} cannot be read as {loader}: {error.__cause__ or error}") from error


def load_file(path: Path, text_column: str | None = None, template: str | None = None, **options: Any) -> Any:
    """Loads one file that has columns; the loaders refuse several files whose other columns differ.

    Args:
        text_column: A column that must exist, unless `template` names others; None accepts any columns.
        **options: Options of the `datasets` loader.
    """
    suffix = format_of(path)
    if suffix in (".csv", ".tsv"):
        separator = "\t" if suffix == ".tsv" else ","
        try:
            with open_bytes(path) as stream:
                head = pd.read_csv(stream, sep=separator, nrows=1, quoting=options.get("quoting", csv.QUOTE_MINIMAL))
        except ValueError as error:
            raise DataError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
        if not isinstance(head.index, pd.RangeIndex):
            # pandas would then use the first field of every row as its index and shift the rest by one column.
            raise DataError(
                f"{path} has more fields in line 2 than in its header: quote texts that contain a separator"
            )
        if text_column is not None:
            _check_columns(list(head.columns), str(path), text_column, template)
        # Every cell of such a file is text, even a number or the word "null".
        features = Features({column: Value("string") for column in head.columns})
        return run_loader(path, "csv", sep=separator, features=features, keep_default_na=False, **options)
    if suffix == ".parquet":
        if text_column is None:
            return run_loader(path, "parquet", **options)
        try:
            _check_columns(pq.read_schema(path).names, str(path), text_column, template)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}") from error
        return run_loader(path, "parquet", columns=_wanted(text_column, template), **options)
    return _load_json(path)


def _load_json(path: Path) -> Dataset:
    """Loads a JSON or JSON Lines file; raises a `DataError` that names the broken line."""
    try:
        return run_loader(path, "json")
    except DataError as error:
        raise DataError(json_fault(path) or str(error)) from error


def _stream_files(
    files: list[str], text_column: str, template: str | None, skip_broken_files: bool
) -> Iterator[dict[str, str]]:
    for path in map(Path, files):
        try:
            yield from _stream_file(path, text_column, template)
        except DataError as error:
            if not skip_broken_files:
                raise
            logger.warning("Left out the rest of a broken file: %s", error)


def _stream_file(path: Path, text_column: str, template: str | None) -> Iterator[dict[str, str]]:
    """Yields the documents of one file."""
    try:
        if is_one_document(path):
            yield {"text": read_text(path)}
        elif format_of(path) in (".json", ".jsonl"):
            for line, row in stream_json(path):
                yield _document(row, f"line {line} of {path}", text_column, template)
        else:
            rows = load_file(path, text_column, template, streaming=True)
            # `iter` reads the whole file in each data loader worker; plain iteration would divide it.
            for batch in rows.iter(batch_size=100):
                for cells in zip(*batch.values(), strict=True):
                    yield _document(dict(zip(batch, cells, strict=True)), str(path), text_column, template)
    except DataError:
        raise
    # The library below may raise anything at any row; name the file and the place.
    except Exception as error:
        has_content(path)
        raise DataError(f"{path} cannot be read: {error.__cause__ or error}") from error


def stream_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the objects of a JSON Lines file with their lines, or those of a whole JSON file with line 1."""
    with open_bytes(path) as stream:
        lines = ((number, data.decode("utf-8-sig").strip()) for number, data in enumerate(stream, start=1))
        for count, (number, line) in enumerate((number, line) for number, line in lines if line):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if count == 0 and format_of(path) == ".json":
                    break
                raise DataError(f"{path} is broken JSON in line {number}: {error.msg}") from error
            if not isinstance(row, dict):
                if count == 0 and format_of(path) == ".json":
                    break
                raise DataError(f"{path} has no JSON object in line {number}")
            yield number, row
        else:
            return
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(json_fault(path) or f"{path} is broken JSON in line {error.lineno}: {error.msg}") from error
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} has something other than JSON objects")
    yield from ((1, row) for row in rows)


def _load_hub_splits(source: str, **options: Any) -> DatasetDict:
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
    loaded = {"train": splits["train"]}
    if name := held_out_split(map(str, splits), source):
        loaded["test"] = splits[name]
    return DatasetDict(loaded)


def _wanted(text_column: str, template: str | None) -> list[str]:
    return [text_column] if template is None else template_columns(template)


def _check_selection(text_column: str, template: str | None) -> None:
    """Raises `ConfigError` if both a text column and a template are given, or the template is invalid."""
    if template is not None:
        template_columns(template)
        if text_column != "text":
            raise ConfigError(f"text_column is {text_column!r} and a template is given too: give only one of them")


def _check_columns(columns: list[str], where: str, text_column: str, template: str | None) -> None:
    """Raises `DataError` if a required column is missing."""
    missing = [name for name in _wanted(text_column, template) if name not in columns]
    if missing:
        remedy = f"set text_column to one of {', '.join(columns)}"
        if template is not None:
            remedy = f"the template may name {', '.join(columns)}"
        raise DataError(f"{where} has no column {missing[0]!r}: {remedy}")


def _document(row: Mapping[str, Any], where: str, text_column: str, template: str | None) -> dict[str, str]:
    """Returns the document in one row; an empty cell is an empty document."""
    _check_columns(list(row), where, text_column, template)
    if template is not None:
        return {"text": fill_template(template, row, where)}
    text = row[text_column]
    if text is not None and not isinstance(text, str):
        raise DataError(f"column {text_column!r} of {where} must contain strings, but contains {text!r:.80}")
    return {"text": text or ""}


def _with_text(dataset: Dataset, where: str, text_column: str, template: str | None) -> Dataset:
    """Keeps only the documents, in a column `text`; raises `DataError` if a column is missing or not text."""
    _check_columns(dataset.column_names, where, text_column, template)
    if template is not None:
        to_text = partial(_document, where=where, text_column=text_column, template=template)
        return dataset.map(to_text, remove_columns=dataset.column_names, features=_TEXT, desc="Filling the template")
    feature = dataset.features[text_column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise DataError(f"column {text_column!r} of {where} must contain strings, but has the type {feature}")
    dataset = dataset.select_columns([text_column])
    dataset = dataset if text_column == "text" else dataset.rename_column(text_column, "text")
    # A cast writes all documents again.
    return dataset if dataset.features["text"].dtype == "string" else dataset.cast_column("text", Value("string"))


def _without_blanks(dataset: Dataset, source: str) -> Dataset:
    """Leaves out blank documents; raises `DataError` if all are blank."""
    kept = dataset.filter(lambda text: not is_blank(text), input_columns="text")
    if not kept:
        raise DataError(f"{source} is empty: its {len(dataset)} documents contain only white space")
    if len(kept) == len(dataset):
        return dataset
    logger.warning("%s: left out %d blank documents.", source, len(dataset) - len(kept))
    return kept
