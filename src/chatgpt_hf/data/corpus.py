"""Where text comes from: files, folders, globs, Hub data sets and the built-in corpora, all as one column of documents.

The reading is done by the loaders of `datasets`. What is added is that every mistake in the user's data is found before
or named after: the file, the line or byte offset, the columns there are.
"""

import codecs
import glob
import gzip
import hashlib
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset

from ..errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
_FORMATS = ", ".join(suffix[1:] for suffix in _SUFFIXES) + " (all but parquet also with .gz or .zst)"


def load_corpus(source: str, *, text_column: str = "text") -> DatasetDict:
    """Load documents from one source.

    A txt or md file is one document, with its line ends turned into line feeds; in the other formats each row is one.
    Documents without anything but white space are left out, with a warning.

    Args:
        source: `builtin:python-docs`; or a file, a folder (searched recursively, hidden files left out) or a glob of
            txt, md, jsonl, json, csv, tsv or parquet files, all but the last also with `.gz` or `.zst`; or a Hub id.
        text_column: The column that holds the documents, in formats that have columns.

    Returns:
        The split `train`, and `test` if the source holds something out itself, each with a string column `text`.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be used; the message names the file and the place.
    """
    if source.startswith("builtin:"):
        from .builtin import load_builtin

        return DatasetDict({k: _with_text(split, source, text_column) for k, split in load_builtin(source).items()})
    path = Path(source).expanduser()
    if os.path.isdir(path):
        files = _data_files(path)
    elif os.path.exists(path):
        if _suffix(path) is None:
            raise DataError(f"{source} has none of the endings that are read: {_FORMATS}")
        files = [path]
    elif matches := glob.glob(str(path), recursive=True):
        files = sorted({file for match in map(Path, matches) for file in _data_files(match)})
    else:
        return _load_hub(source, text_column)
    if not files:
        raise DataError(f"{source} holds no file with one of the endings that are read: {_FORMATS}")
    filled = {file: _has_content(file) for file in files}
    if not any(filled.values()):
        raise DataError(f"{source} is empty: give at least one document")
    for file in files:
        if not filled[file]:
            logger.warning("%s is empty and left out.", file)
    texts = [file for file in files if filled[file] and _suffix(file) in (".txt", ".md")]
    parts = [_load_texts(texts)] if texts else []
    parts += [_load_rows(file, text_column) for file in files if filled[file] and _suffix(file) not in (".txt", ".md")]
    return DatasetDict(train=_without_blanks(concatenate_datasets(parts), source))


def load_rows(source: str) -> DatasetDict:
    """Load rows with all their columns, from one JSON, JSON Lines or Parquet file or from the Hub.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be read; the message names the file and the place.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return _load_hub_splits(source)
    if path.is_dir() or _suffix(path) not in (".json", ".jsonl", ".parquet"):
        raise DataError(f"{source} is no JSON, JSON Lines or Parquet file")
    if not _has_content(path):
        raise DataError(f"{source} is empty: give at least one row")
    return DatasetDict(train=_load(path, "parquet") if _suffix(path) == ".parquet" else _load_json(path))


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
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}: give a number between 0 and 1, both excluded")
    if len(dataset) == 1:
        row = dataset[0]
        text = row[column]
        target = round(len(text) * (1 - test_fraction))
        cut = text.rfind("\n", 0, target) + 1 or text.find("\n", target) + 1
        if not text[:cut].strip() or not text[cut:].strip():
            raise DataError("the corpus is a single document without a line to cut it at: give more than one")
        halves = {"train": text[:cut], "test": text[cut:]}
        return DatasetDict(
            {name: Dataset.from_list([{**row, column: half}], dataset.features) for name, half in halves.items()}
        )
    bound = int(test_fraction * 2**64)
    held_out = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") < bound
        for text in cast("list[str]", dataset[column])
    ]
    if all(held_out) or not any(held_out):
        raise DataError(
            f"of {len(held_out)} documents {sum(held_out)} would be held out with test_fraction={test_fraction}, which "
            "leaves one part empty: give more documents, another test_fraction, or a held-out corpus of its own"
        )
    train, test = ([index for index, held in enumerate(held_out) if held is side] for side in (False, True))
    return DatasetDict(train=dataset.select(train), test=dataset.select(test))


def _suffix(path: Path) -> str | None:
    """The ending that says the format, a compression's aside; None if it is not one that is read."""
    name = re.sub(r"\.(gz|zst)$", "", path.name.lower())
    suffix = Path(name).suffix
    return suffix if suffix in _SUFFIXES and not (suffix == ".parquet" and name != path.name.lower()) else None


def _data_files(path: Path) -> list[Path]:
    """A path itself, or all below it if it is a folder, as far as it is of a format that is read."""
    if not path.is_dir():
        return [path] if _suffix(path) else []
    found = sorted(file for file in path.rglob("*") if not file.is_dir() and _suffix(file))
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def _open(path: Path) -> BinaryIO:
    """Open a file for reading its bytes, decompressed."""
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix.lower() == ".zst":
        return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _has_content(path: Path) -> bool:
    """Read a file once: whether it holds any bytes; raises `DataError` if it is unreadable, or text but not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with _open(path) as stream:
            if _suffix(path) == ".parquet":
                return bool(stream.read(1))
            while True:
                chunk = stream.read(1 << 20)
                pending = len(decoder.getstate()[0])
                decoder.decode(chunk, final=not chunk)
                offset += len(chunk)
                if not chunk:
                    return offset > 0
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error.reason} at byte {offset - pending + error.start} of its text. "
            "Convert it, for example with iconv"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _load_texts(files: list[Path]) -> Dataset:
    """Load text files, each as one document.

    Not by the `text` loader of `datasets`: it decodes compressed files in the encoding of the locale.
    """
    # Size and time are arguments so that a file that has changed is not taken from the cache.
    stamps = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
    features = Features({"text": Value("string")})
    return cast(Dataset, Dataset.from_generator(_read_texts, features=features, gen_kwargs={"files": stamps}))


def _read_texts(files: list[tuple[str, int, int]]) -> Iterator[dict[str, str]]:
    for path, _, _ in files:
        with io.TextIOWrapper(_open(Path(path)), encoding="utf-8-sig") as stream:
            yield {"text": stream.read()}


def _load(path: Path, loader: str, **options: Any) -> Dataset:
    """Run a loader of `datasets` over a file."""
    if path.suffix.lower() == ".zst" and "zstd" not in fsspec.available_compressions():
        raise DataError(f"{path} is compressed with zstd, which needs one more package: pip install zstandard")
    try:
        # The loaders take file names as patterns, hence the escape.
        return load_dataset(loader, data_files=[glob.escape(str(path.absolute()))], split="train", **options)
    # A loader lets through whatever the library below it raises, StopIteration included.
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{path} is empty: it has no rows") from error
        raise DataError(f"{path} cannot be read as {loader}: {error.__cause__ or error}") from error


def _load_rows(path: Path, text_column: str) -> Dataset:
    """Load the documents of one file that has columns: the loaders refuse several whose other columns differ."""
    suffix = _suffix(path)
    if suffix in (".csv", ".tsv"):
        separator = "\t" if suffix == ".tsv" else ","
        try:
            with _open(path) as stream:
                head = pd.read_csv(stream, sep=separator, nrows=1)
        except ValueError as error:
            raise DataError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
        if not isinstance(head.index, pd.RangeIndex):
            # pandas then takes the first field of every row for its name, and the rest would be one column off.
            raise DataError(f"{path} has more fields in line 2 than in its header: quote texts that hold a separator")
        _check_column(list(head.columns), str(path), text_column)
        # Everything in such a file is text, even a document that is a number or the word "null".
        features = Features({column: Value("string") for column in head.columns})
        rows = _load(path, "csv", sep=separator, features=features, keep_default_na=False)
    elif suffix == ".parquet":
        try:
            _check_column(pq.read_schema(path).names, str(path), text_column)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}") from error
        rows = _load(path, "parquet", columns=[text_column])
    else:
        rows = _load_json(path)
    return _with_text(rows, str(path), text_column)


def _load_json(path: Path) -> Dataset:
    """Load a JSON or JSON Lines file; raises `DataError` naming the broken line."""
    try:
        return _load(path, "json")
    except DataError as error:
        raise DataError(_json_fault(path) or str(error)) from error


def _json_fault(path: Path) -> str | None:
    """Where a JSON or JSON Lines file is broken; None if that is not what is wrong with it."""
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig") as stream:
        text = stream.read()
    if _suffix(path) == ".json":
        try:
            json.loads(text)
            return None
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # one value and then another: JSON Lines under the other name
                return f"{path} is broken JSON in line {error.lineno}: {error.msg}"
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"{path} has in line {number} no JSON object"
        except json.JSONDecodeError as error:
            return f"{path} is broken JSON in line {number}: {error.msg}"
    return None


def _load_hub(source: str, text_column: str) -> DatasetDict:
    """Load the documents of a data set of the Hub."""
    return DatasetDict(
        {
            name: _without_blanks(_with_text(split, source, text_column), source)
            for name, split in _load_hub_splits(source).items()
        }
    )


def _load_hub_splits(source: str) -> DatasetDict:
    """Load a data set of the Hub: its `train`, and its `test` if it has one."""
    problem = f"{source} is neither a file, a folder, a glob that matches, builtin:python-docs, nor a Hub id"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or _suffix(Path(source)):
        raise DataError(f"{problem}: check the spelling")
    try:
        splits = load_dataset(source)
    # Not found, offline, gated, more than one configuration: each comes as an exception of its own.
    except Exception as error:
        raise DataError(f"{problem} that could be loaded: {error}") from error
    if "train" not in splits:
        raise DataError(f"{source} has no split train, only {', '.join(map(str, splits))}")
    return DatasetDict({name: splits[name] for name in ("train", "test") if name in splits})


def _check_column(columns: list[str], where: str, text_column: str) -> None:
    """Raise `DataError` if the text column is not among the columns."""
    if text_column not in columns:
        raise DataError(f"{where} has no column {text_column!r}: set text_column to one of {', '.join(columns)}")


def _with_text(dataset: Dataset, where: str, text_column: str) -> Dataset:
    """Keep the text column alone, under the name `text`; raises `DataError` if it is missing or not of strings."""
    _check_column(dataset.column_names, where, text_column)
    feature = dataset.features[text_column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise DataError(f"column {text_column!r} of {where} is not of strings but of {feature}")
    dataset = dataset.select_columns([text_column])
    dataset = dataset if text_column == "text" else dataset.rename_column(text_column, "text")
    return dataset.cast_column("text", Value("string"))


def _without_blanks(dataset: Dataset, source: str) -> Dataset:
    """Leave out documents of nothing but white space; raises `DataError` if no other is there."""
    kept = dataset.filter(lambda text: bool(text and text.strip()), input_columns="text")
    if not kept:
        raise DataError(f"{source} is empty: its {len(dataset)} documents hold nothing but white space")
    if len(kept) < len(dataset):
        logger.warning("%s: %d blank documents are left out.", source, len(dataset) - len(kept))
    return kept
