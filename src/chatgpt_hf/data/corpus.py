"""Where text comes from: files, folders, globs, Hub data sets and the built-in corpora, all as one column of documents.

The reading is done by the loaders of `datasets`. What is added is that every mistake in the user's data is found before
or named after: the file, the line or byte offset, the columns there are.
"""

import csv
import glob
import hashlib
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

logger = logging.getLogger(__name__)

_TEXT = Features({"text": Value("string")})


def load_corpus(
    source: str, *, text_column: str = "text", template: str | None = None, skip_broken_files: bool = False
) -> DatasetDict:
    """Load documents from one source.

    A txt or md file is one document, with its line ends turned into line feeds; in the other formats each row is one.
    Documents without anything but white space are left out, with a warning.

    Args:
        source: `builtin:python-docs`; or a file, a folder (searched recursively, hidden files left out) or a glob of
            txt, md, jsonl, json, csv, tsv or parquet files, all but the last also with `.gz` or `.zst`; or a Hub id.
        text_column: The column that holds the documents, in formats that have columns.
        template: In place of `text_column`: a text with column names in braces; a list is joined by line feeds.
        skip_broken_files: Leave out files that cannot be used, with a warning that says why, in place of an error.

    Returns:
        The split `train`, and `test` if the source holds something out itself, each with a string column `text`.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be used; the message names the file and the place.
        ConfigError: If the template is none, or a text column is given beside it.
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
        reason = f"cannot be used, {broken[0]}" if broken else "is empty: give at least one document"
        raise DataError(f"{source} {reason}")
    for file in empty:
        logger.warning("%s is empty and left out.", file)
    for message in broken:
        logger.warning("A broken file is left out: %s", message)
    return DatasetDict(train=_without_blanks(concatenate_datasets(parts), source))


def load_rows(source: str) -> list[tuple[str, DatasetDict]]:
    """Load rows with all their columns, whatever these are, from any source of `load_corpus` but text files.

    Returns:
        A name for messages and the splits, of each file, or of the one built-in or Hub data set. Cells of csv and tsv
        files are text.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be read; the message names the file and the place.
    """
    if source.startswith("builtin:"):
        return [(source, load_builtin(source))]
    files = source_files(source)
    if files is None:
        return [(source, _load_hub_splits(source))]
    tables = []
    for file in files:
        if is_one_document(file):
            raise DataError(f"{file} is a text without columns: give jsonl, json, csv, tsv or parquet files")
        if not has_content(file):
            raise DataError(f"{file} is empty: give at least one row")
        tables.append((str(file), DatasetDict(train=load_file(file))))
    return tables


def stream_corpus(
    source: str, *, text_column: str = "text", template: str | None = None, skip_broken_files: bool = False
) -> dict[str, IterableDataset]:
    """The documents of `load_corpus`, read from files or the Hub as they are asked for; blank ones are there.

    Memory does not grow with a file, except with one that is a single document and with one that is a JSON array.

    Args:
        source: As for `load_corpus`.
        text_column: As for `load_corpus`.
        template: As for `load_corpus`.
        skip_broken_files: Leave out what follows in a file that turns out to be broken, with a warning, in place of an
            error.

    Returns:
        As `load_corpus`, the splits being iterable.

    Raises:
        DataError: If the source does not exist; and, while it is read, if a file is broken: the message names the place.
    """
    _check_selection(text_column, template)
    files = None if source.startswith("builtin:") else source_files(source)
    if files is not None:
        arguments = {
            "files": [str(file) for file in files],
            "text_column": text_column,
            "template": template,
            "skip_broken_files": skip_broken_files,
        }
        return {"train": IterableDataset.from_generator(_stream_files, features=_TEXT, gen_kwargs=arguments)}
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


def split_by_hash(dataset: Dataset, test_fraction: float = 0.05, column: str = "text") -> DatasetDict:
    """Hold out documents by a hash of their text, so that each stays on its side however the corpus grows or moves.

    A corpus of a single document is cut at a line instead: the held-out part is the lines after the first
    `1 - test_fraction` of its characters.

    Args:
        dataset: The documents, one per row.
        test_fraction: The share to hold out, between 0 and 1; of the documents it is met on average only.
        column: The column that is hashed.

    Returns:
        The splits `train` and `test`, each in the order of `dataset`.

    Raises:
        ConfigError: If `test_fraction` is not between 0 and 1.
        DataError: If either part would be empty.
    """
    check_test_fraction(test_fraction)
    if len(dataset) == 1:
        row = dataset[0]
        halves = dict(zip(("train", "test"), cut_at_line(row[column], test_fraction), strict=True))
        return DatasetDict(
            {name: Dataset.from_list([{**row, column: half}], dataset.features) for name, half in halves.items()}
        )
    held_out = [is_held_out(text, test_fraction) for text in cast("list[str]", dataset[column])]
    if all(held_out) or not any(held_out):
        raise DataError(
            f"of {len(held_out)} documents {sum(held_out)} would be held out with test_fraction={test_fraction}, which "
            "leaves one part empty: give more documents, another test_fraction, or a held-out corpus of its own"
        )
    train, test = ([index for index, held in enumerate(held_out) if held is side] for side in (False, True))
    return DatasetDict(train=dataset.select(train), test=dataset.select(test))


def cut_at_line(text: str, test_fraction: float) -> tuple[str, str]:
    """The two parts that `split_by_hash` makes of a single document.

    Raises:
        DataError: If there is no line to cut it at.
    """
    target = round(len(text) * (1 - test_fraction))
    cut = text.rfind("\n", 0, target) + 1 or text.find("\n", target) + 1
    train, test = text[:cut], text[cut:]
    if is_blank(train) or is_blank(test):
        raise DataError("the corpus is a single document without a line to cut it at: give more than one")
    return train, test


def is_blank(text: str | None) -> bool:
    """Whether a document has nothing but white space; unlike `strip`, this does not copy it."""
    return not text or text.isspace()


def is_held_out(text: str, test_fraction: float) -> bool:
    """On which side of `split_by_hash` a document is."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < int(test_fraction * 2**64)


def check_test_fraction(test_fraction: float) -> None:
    """Raises `ConfigError` if a share to hold out is not between 0 and 1."""
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}: give a number between 0 and 1, both excluded")


def _load_texts(files: list[Path]) -> Dataset:
    """Load text files, each as one document.

    Not by the `text` loader of `datasets`: it decodes compressed files in the encoding of the locale.
    """
    # Size and time are arguments so that a file that has changed is not taken from the cache.
    stamps = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
    return cast(Dataset, Dataset.from_generator(_read_texts, features=_TEXT, gen_kwargs={"files": stamps}))


def _read_texts(files: list[tuple[str, int, int]]) -> Iterator[dict[str, str]]:
    for path, _, _ in files:
        yield {"text": read_text(Path(path))}


def run_loader(path: Path, loader: str, **options: Any) -> Any:
    """Run a loader of `datasets` over a file."""
    if path.suffix.lower() == ".zst" and "zstd" not in fsspec.available_compressions():
        require(f"{path}, compressed with zstd,", "zstandard")
    try:
        # The loaders take file names as patterns, hence the escape.
        return load_dataset(loader, data_files=[glob.escape(str(path.absolute()))], split="train", **options)
    # A loader lets through whatever the library below it raises, StopIteration included.
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{path} is empty: it has no rows") from error
        raise DataError(f"{path} cannot be read as {loader}: {error.__cause__ or error}") from error


def load_file(path: Path, text_column: str | None = None, template: str | None = None, **options: Any) -> Any:
    """Load one file that has columns: the loaders refuse several whose other columns differ.

    Args:
        text_column: A column that must be there, unless `template` names others; None reads whatever is there.
        **options: For the loader of `datasets`.
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
            # pandas then takes the first field of every row for its name, and the rest would be one column off.
            raise DataError(f"{path} has more fields in line 2 than in its header: quote texts that hold a separator")
        if text_column is not None:
            _check_columns(list(head.columns), str(path), text_column, template)
        # Everything in such a file is text, even a document that is a number or the word "null".
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
    """Load a JSON or JSON Lines file; raises `DataError` naming the broken line."""
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
            logger.warning("The rest of a broken file is left out: %s", error)


def _stream_file(path: Path, text_column: str, template: str | None) -> Iterator[dict[str, str]]:
    """The documents of one file, one after another."""
    try:
        if is_one_document(path):
            yield {"text": read_text(path)}
        elif format_of(path) in (".json", ".jsonl"):
            for line, row in stream_json(path):
                yield _document(row, f"line {line} of {path}", text_column, template)
        else:
            rows = load_file(path, text_column, template, streaming=True)
            # `iter` reads the whole file in each worker of a data loader, where plain iteration would divide it.
            for batch in rows.iter(batch_size=100):
                for cells in zip(*batch.values(), strict=True):
                    yield _document(dict(zip(batch, cells, strict=True)), str(path), text_column, template)
    except DataError:
        raise
    # Whatever the library below raises, at any row: here it gets the name and the place.
    except Exception as error:
        has_content(path)
        raise DataError(f"{path} cannot be read: {error.__cause__ or error}") from error


def stream_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, or of a JSON file as a whole, with the lines they are in (then: 1)."""
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
                raise DataError(f"{path} has in line {number} no JSON object")
            yield number, row
        else:
            return
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(json_fault(path) or f"{path} is broken JSON in line {error.lineno}: {error.msg}") from error
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds something else than JSON objects")
    yield from ((1, row) for row in rows)


def _load_hub_splits(source: str, **options: Any) -> DatasetDict:
    """Load a data set of the Hub: its `train`, and its `test` if it has one."""
    problem = f"{source} is neither a file, a folder, a glob that matches, builtin:python-docs, nor a Hub id"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or format_of(Path(source)):
        raise DataError(f"{problem}: check the spelling")
    try:
        splits = load_dataset(source, **options)
    # Not found, offline, gated, more than one configuration: each comes as an exception of its own.
    except Exception as error:
        raise DataError(f"{problem} that could be loaded: {error}") from error
    if "train" not in splits:
        raise DataError(f"{source} has no split train, only {', '.join(map(str, splits))}")
    return DatasetDict({name: splits[name] for name in ("train", "test") if name in splits})


def _wanted(text_column: str, template: str | None) -> list[str]:
    return [text_column] if template is None else template_columns(template)


def _check_selection(text_column: str, template: str | None) -> None:
    """Raise `ConfigError` if the text is said to come from a column and from a template, or the template is none."""
    if template is not None:
        template_columns(template)
        if text_column != "text":
            raise ConfigError(f"text_column is {text_column!r} and there is a template too: give one of the two")


def _check_columns(columns: list[str], where: str, text_column: str, template: str | None) -> None:
    """Raise `DataError` if a column that is read is not among the columns."""
    missing = [name for name in _wanted(text_column, template) if name not in columns]
    if missing:
        remedy = f"set text_column to one of {', '.join(columns)}"
        if template is not None:
            remedy = f"the template may name {', '.join(columns)}"
        raise DataError(f"{where} has no column {missing[0]!r}: {remedy}")


def _document(row: Mapping[str, Any], where: str, text_column: str, template: str | None) -> dict[str, str]:
    """The document in one row; an empty cell is an empty document."""
    _check_columns(list(row), where, text_column, template)
    if template is not None:
        return {"text": fill_template(template, row, where)}
    text = row[text_column]
    if text is not None and not isinstance(text, str):
        raise DataError(f"column {text_column!r} of {where} is not of strings but holds {text!r:.80}")
    return {"text": text or ""}


def _with_text(dataset: Dataset, where: str, text_column: str, template: str | None) -> Dataset:
    """Keep the documents alone, in a column `text`; raises `DataError` if a column is missing or not of text."""
    _check_columns(dataset.column_names, where, text_column, template)
    if template is not None:
        to_text = partial(_document, where=where, text_column=text_column, template=template)
        return dataset.map(to_text, remove_columns=dataset.column_names, features=_TEXT, desc="Filling the template")
    feature = dataset.features[text_column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise DataError(f"column {text_column!r} of {where} is not of strings but of {feature}")
    dataset = dataset.select_columns([text_column])
    dataset = dataset if text_column == "text" else dataset.rename_column(text_column, "text")
    # A cast writes all documents once more.
    return dataset if dataset.features["text"].dtype == "string" else dataset.cast_column("text", Value("string"))


def _without_blanks(dataset: Dataset, source: str) -> Dataset:
    """Leave out documents of nothing but white space; raises `DataError` if no other is there."""
    kept = dataset.filter(lambda text: not is_blank(text), input_columns="text")
    if not kept:
        raise DataError(f"{source} is empty: its {len(dataset)} documents hold nothing but white space")
    if len(kept) == len(dataset):
        return dataset
    logger.warning("%s: %d blank documents are left out.", source, len(dataset) - len(kept))
    return kept
