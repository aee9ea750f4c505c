"""Loads text from files, folders, globs, Hub data sets and built-in corpora, always as one column of documents."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, Features, IterableDataset, Value, concatenate_datasets

from ..errors import ConfigError, DataError
from .arrow_rows import parquet_schema
from .builtin import load_builtin
from .columns import Stamp, generate, load_file
from .encodings import check_encoding
from .files import format_of, is_empty, is_one_document, read_text, source_files
from .sources import fill_template, template_columns
from .splits import check_test_fraction as check_test_fraction
from .splits import cut_at_line as cut_at_line
from .splits import is_held_out as is_held_out
from .splits import split_by_hash as split_by_hash
from .splits import split_files
from .tables import load_hub_splits, placed_rows, read_tables

logger = logging.getLogger(__name__)

_TEXT = Features({"text": Value("string")})
_PEEKED_ROWS = 1000


def load_corpus(
    source: str,
    *,
    text_column: str = "text",
    template: str | None = None,
    encoding: str | None = None,
    skip_broken_files: bool = False,
) -> DatasetDict:
    """Loads documents from one source.

    A txt or md file is one document, with line ends converted to line feeds; in the other formats each row is one.
    Blank documents are left out, with a warning.

    Args:
        source: `builtin:python-docs`; or a file, a folder (searched recursively, without hidden files) or a glob of
            txt, md, jsonl, json, csv, tsv or parquet files, all but the last also with `.gz` or `.zst`; or a Hub id.
        text_column: The column with the documents, in formats that have columns.
        template: Used instead of `text_column`: a text with column names in braces; a list is joined by line feeds.
        encoding: Encoding of the files, such as `gb18030`; UTF-8 if not given. A byte order mark outweighs it.
        skip_broken_files: Leave out files that cannot be used, with a warning that says why, instead of raising an
            error.

    Returns:
        The split `train`, and `test` if the source has one, each with a string column `text`.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be used; the message names the file and the place.
        ConfigError: If the template or encoding is invalid, or a text column is given as well as a template.
    """
    selection = _select(text_column, template, encoding)
    if source.startswith("builtin:"):
        splits = load_builtin(source)
        return DatasetDict({name: _with_text(split, source, selection) for name, split in splits.items()})
    files = source_files(source)
    if files is None:
        splits = load_hub_splits(source)
        return DatasetDict(
            {name: _without_blanks(_with_text(split, source, selection), source) for name, split in splits.items()}
        )
    return DatasetDict(
        {
            name: _load_files(part, source, selection, skip_broken_files)
            for name, part in split_files(files, source).items()
        }
    )


def load_rows(source: str, *, encoding: str | None = None) -> list[tuple[str, DatasetDict]]:
    """Loads rows with all their columns from any source of `load_corpus` except text files.

    Returns:
        A name for messages and the splits of each file, or of the one built-in or Hub data set. See `load_file` for
        the types of the columns.

    Raises:
        DataError: If the source does not exist, is empty, or cannot be read; the message names the file and the place.
    """
    if source.startswith("builtin:"):
        return [(source, load_builtin(source))]
    if source_files(source) is None:
        return [(source, load_hub_splits(source))]
    tables = read_tables(source, encoding=encoding)
    return [
        (table.where, DatasetDict({table.split: load_file(Path(table.where), encoding=encoding)})) for table in tables
    ]


def stream_corpus(
    source: str,
    *,
    text_column: str = "text",
    template: str | None = None,
    encoding: str | None = None,
    skip_broken_files: bool = False,
) -> dict[str, IterableDataset]:
    """Streams the documents of `load_corpus` from files or the Hub as they are requested, including blank ones.

    Memory does not grow with a file, unless it is a single document or a JSON array.

    Args:
        source: As for `load_corpus`.
        text_column: As for `load_corpus`.
        template: As for `load_corpus`.
        encoding: As for `load_corpus`.
        skip_broken_files: Leave out the rest of a file that turns out to be broken, with a warning, instead of raising
            an error.

    Returns:
        The same as `load_corpus`, with iterable splits.

    Raises:
        DataError: If the source does not exist; and, during reading, if a file is broken: the message names the place.
    """
    selection = _select(text_column, template, encoding)
    files = None if source.startswith("builtin:") else source_files(source)
    if files is not None:
        options = {"selection": tuple(selection), "skip_broken_files": skip_broken_files}
        return {
            name: IterableDataset.from_generator(
                _stream_documents, features=_TEXT, gen_kwargs={"files": [str(file) for file in part], **options}
            )
            for name, part in split_files(files, source).items()
        }
    if source.startswith("builtin:"):
        splits = {name: split.to_iterable_dataset() for name, split in load_builtin(source).items()}
    else:
        splits = load_hub_splits(source, streaming=True)
    streams = {}
    for name, split in splits.items():
        columns = split.column_names or list(next(iter(split)))
        selection.check(columns, source)
        to_text = partial(_document, where=source, selection=selection)
        streams[name] = split.map(to_text, remove_columns=columns, features=_TEXT)
    return streams


def is_blank(text: str | None) -> bool:
    """True if a document is empty or only white space; unlike `strip`, this does not copy it."""
    return not text or text.isspace()


def _load_files(files: list[Path], source: str, selection: "_Selection", skip_broken_files: bool) -> Dataset:
    """Loads the documents of one split."""
    filled, broken = [], []
    for file in files:
        try:
            if is_empty(file):
                logger.warning("%s is empty and was left out.", file)
            else:
                filled.append(file)
        except DataError as error:
            if not skip_broken_files:
                raise
            broken.append(str(error))
    parts = []
    for some in [[file] for file in filled] if skip_broken_files else [filled] if filled else []:
        try:
            parts.append(_load_documents(some, selection))
        except DataError as error:
            if not skip_broken_files:
                raise
            broken.append(str(error))
    for message in broken:
        logger.warning("Left out a broken file: %s", message)
    if not any(map(len, parts)):
        reason = f"cannot be used: {broken[0]}" if broken else "is empty: give at least one document"
        raise DataError(f"{source} {reason}")
    return _without_blanks(concatenate_datasets(parts), source)


def _load_documents(files: list[Path], selection: "_Selection") -> Dataset:
    """Loads the documents of files, in their order."""
    # Size and time are arguments so that a changed file is not taken from the cache.
    return generate(_read_documents, _TEXT, files, selection=tuple(selection))


def _read_documents(files: Sequence[Stamp], selection: tuple[Any, ...]) -> Iterator[dict[str, str]]:
    for path, _, _ in files:
        yield from _documents(Path(path), _Selection(*selection))


def _stream_documents(
    files: Sequence[str], selection: tuple[Any, ...], skip_broken_files: bool
) -> Iterator[dict[str, str]]:
    for path in map(Path, files):
        try:
            yield from _documents(path, _Selection(*selection))
        except DataError as error:
            if not skip_broken_files:
                raise
            logger.warning("Left out the rest of a broken file: %s", error)


def _documents(path: Path, selection: "_Selection") -> Iterator[dict[str, str]]:
    """Yields the documents of one file, including blank ones."""
    if is_one_document(path):
        yield {"text": read_text(path, selection.encoding)}
        return
    wanted = selection.columns()
    if format_of(path) == ".parquet":
        selection.check(parquet_schema(path).names, str(path))
    rows = placed_rows(path, encoding=selection.encoding, columns=wanted)
    # A row of JSON may lack a column that others have. All are known soon.
    columns: dict[str, None] = {}
    begun = []
    for place, row in islice(rows, _PEEKED_ROWS):
        begun.append((place, row))
        columns |= dict.fromkeys(row)
        if all(name in columns for name in wanted):
            break
    if not begun:
        logger.warning("%s has no rows and was left out.", path)
        return
    selection.check(list(columns), str(path))
    for place, row in chain(begun, rows):
        yield _document(row, f"{place} of {path}", selection)


class _Selection(NamedTuple):
    """How a row becomes a document."""

    text_column: str
    template: str | None
    encoding: str | None

    def columns(self) -> list[str]:
        return [self.text_column] if self.template is None else template_columns(self.template)

    def check(self, columns: Sequence[str], where: str) -> None:
        """Raises `DataError` if a required column is missing."""
        missing = [name for name in self.columns() if name not in columns]
        if missing:
            remedy = f"set text_column to one of {', '.join(columns)}"
            if self.template is not None:
                remedy = f"the template may name {', '.join(columns)}"
            raise DataError(f"{where} has no column {missing[0]!r}: {remedy}")


def _select(text_column: str, template: str | None, encoding: str | None) -> _Selection:
    """Raises `ConfigError` if both a text column and a template are given, or template or encoding are invalid."""
    if template is not None:
        template_columns(template)
        if text_column != "text":
            raise ConfigError(f"text_column is {text_column!r} and a template is given too: give only one of them")
    check_encoding(encoding)
    return _Selection(text_column, template, encoding)


def _document(row: Mapping[str, Any], where: str, selection: _Selection) -> dict[str, str]:
    """Returns the document in one row; an empty cell is an empty document.

    A row that lacks all columns is empty too, unless it has text elsewhere, which would be lost.
    """
    wanted = selection.columns()
    if not any(name in row for name in wanted) and any(isinstance(cell, (str, list, dict)) for cell in row.values()):
        selection.check(list(row), where)
    if selection.template is not None:
        return {"text": fill_template(selection.template, {**dict.fromkeys(wanted), **row}, where)}
    text = row.get(selection.text_column)
    if text is not None and not isinstance(text, str):
        raise DataError(f"column {selection.text_column!r} of {where} must contain strings, but contains {text!r:.80}")
    return {"text": text or ""}


def _with_text(dataset: Dataset, where: str, selection: _Selection) -> Dataset:
    """Keeps only the documents, in a column `text`; raises `DataError` if a column is missing or not text."""
    selection.check(dataset.column_names, where)
    if selection.template is not None:
        to_text = partial(_document, where=where, selection=selection)
        return dataset.map(to_text, remove_columns=dataset.column_names, features=_TEXT, desc="Filling the template")
    column = selection.text_column
    feature = dataset.features[column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise DataError(f"column {column!r} of {where} must contain strings, but has the type {feature}")
    dataset = dataset.select_columns([column])
    dataset = dataset if column == "text" else dataset.rename_column(column, "text")
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
