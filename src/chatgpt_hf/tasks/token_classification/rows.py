"""Reads words with tags for token classification, as BIO: CoNLL files, and rows of `tokens` and `ner_tags`."""

import glob
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset, Features, List, Value

from ...data.corpus import load_rows
from ...data.files import format_of
from ...data.splits import split_files
from ...data.summary import RowSummary, summarize_rows
from ...errors import DataError
from ...parsing import is_decimal
from ..labels import read_label_names
from ..tables import Rejected, find_accepted, split_rows
from .annotations import annotated_columns, unread_keys, words_of
from .conll import is_column_number, read_conll
from .tags import Scheme, bio_names, find_scheme, is_bio, scheme_name, tag_fault, to_bio
from .words import is_unspaced

logger = logging.getLogger(__name__)

_TOKENS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels")


@dataclass(frozen=True)
class TokenSplits:
    """Sentences whose words have tags.

    Attributes:
        train: Columns `tokens`, a list of words, and `tags`, a list with one index of a name per word.
        test: The same columns; None if nothing is held out.
        label_names: Names in the order of their indices, `O` first: `O`, `B-LOC`, `I-LOC` ...
        summaries: How the rows and columns of each file were read.
    """

    train: Dataset
    test: Dataset | None
    label_names: list[str]
    summaries: Sequence[RowSummary] = ()


class _Sentence(NamedTuple):
    """A sentence with its tags as names; `numbers` has its row or, in a CoNLL file, the line of each word."""

    where: str
    unit: str
    numbers: list[int]
    tokens: list[str]
    tags: list[str]

    def place(self, index: int) -> str:
        """Returns the place of a tag, for messages."""
        number = self.numbers[index if self.unit == "line" else 0]
        return f"{self.unit.capitalize()} {number} of {self.where}"


def load_tagged(
    source: str | Sequence[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    label_names: str | PathLike[str] | Sequence[str] | None = None,
    label_map: Mapping[str, str] | None = None,
    test_fraction: float = 0.0,
    eval_source: str | Sequence[str] | None = None,
    encoding: str | None = None,
    skip_invalid: bool = False,
) -> TokenSplits:
    """Loads tagged sentences from one or several sources, as BIO (Ramshaw and Marcus 1995, also called IOB2).

    In a CoNLL file, each line is a word and, after tabs or spaces, its tag as the last field; a blank line ends a
    sentence. A first column that counts the words is skipped, and of several columns with tags of the same kinds the
    first is read. Tags may be written in another scheme, such as IOB1, BIOES, BILOU, BMES or IO (`PER` without a
    letter), with the letter first or last, and become BIO. Rows may also have a text and the places of its entities.

    Args:
        source: CoNLL files or globs of them, with any file ending; jsonl, json or parquet files, or Hub ids, with
            lists of words and tags.
        text_column: Column with the words: `tokens` or `words` if not given. In a CoNLL file a name in its first
            line, or `column0`, `column1` ...
        label_column: Column with the tags: `ner_tags`, `tags` or `labels` if not given. Tags are names, or indices of
            `label_names`.
        label_names: All tags, or the path of a file with one per line. If not given, those that occur.
        label_map: New names for kinds of entities, so that sources with different kinds can be joined:
            `{"person": "PER"}`. A kind renamed to `O` is no longer an entity.
        test_fraction: Share of sentences to hold out, by a hash of their words, unless a source has a `test` split.
        eval_source: Source of the held-out sentences to use instead.
        encoding: Encoding of the files, such as `gb18030`; UTF-8 if not given.
        skip_invalid: Leave out sentences that cannot be used, with a warning that counts them, instead of raising an
            error.

    Raises:
        DataError: If a source or column is missing, a line has no tag or not as many fields as the rest, words and
            tags differ in number, a tag is unknown, or there is no entity to learn; the message names the line or row.
        ConfigError: If `test_fraction` is not between 0 and 1.
    """
    given = None if label_names is None else read_label_names(label_names)
    sources = [source] if isinstance(source, str) else list(source)
    everything = [*sources, *([eval_source] if isinstance(eval_source, str) else eval_source or ())]
    has_rows = not all(_conll_files(item) for item in everything)
    summaries: list[RowSummary] = []
    options = (text_column, label_column, given, encoding, skip_invalid, has_rows, summaries)
    rows = _read(sources, *options)
    held_out = None if eval_source is None else _read(eval_source, *options)
    named = source if isinstance(source, str) else ", ".join(source)
    rows = split_rows(rows, held_out, test_fraction, lambda sentence: " ".join(sentence.tokens), named)
    if label_map:
        rows = _mapped(rows, label_map, named)
    known = rows["train"] if eval_source is not None else rows["train"] + rows["test"]
    if not any(tag != "O" for sentence in rows["train"] for tag in sentence.tags):
        raise DataError(f"{named} has no entity to learn from: all tags are O.")
    if given and not label_map:
        names = bio_names(given)
    else:
        kinds = sorted({tag[2:] for sentence in known for tag in sentence.tags if tag != "O"})
        names = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    index = {name: number for number, name in enumerate(names)}
    parts = {name: _encoded(part, index) for name, part in rows.items()}
    return TokenSplits(parts["train"], parts["test"] if len(parts["test"]) else None, names, summaries)


def _read(
    sources: str | Sequence[str],
    text_column: str | None,
    label_column: str | None,
    label_names: list[str] | None,
    encoding: str | None,
    skip_invalid: bool,
    has_rows: bool,
    summaries: list[RowSummary],
) -> dict[str, list[_Sentence]]:
    """Reads sources, and adds a summary of each file.

    With `has_rows`, some have rows with names of columns, which CoNLL files need not have.
    """
    found: dict[str, list[_Sentence]] = {"train": [], "test": []}
    in_files = [
        name if name and (not has_rows or is_column_number(name)) else None for name in (text_column, label_column)
    ]
    for source in [sources] if isinstance(sources, str) else sources:
        if files := _conll_files(source):
            for split, part in split_files(files, source).items():
                found[split] += _from_files(
                    part, in_files[0], in_files[1], label_names, encoding, skip_invalid, split, summaries
                )
            continue
        for where, splits in load_rows(source, encoding=encoding):
            read = _from_rows(splits, where, text_column, label_column, label_names, skip_invalid, summaries)
            for split, sentences in read.items():
                found[str(split)] += sentences
    return found


def _conll_files(source: str) -> list[Path]:
    """Returns the files that a path or glob names, if they are read line by line instead of as rows."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{source} is a folder: name its files, or a glob such as {source}/*.conll.")
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    return [file for file in files if file.is_file() and format_of(file) not in (".jsonl", ".json", ".parquet")]


def _from_files(
    files: Sequence[Path],
    text_column: str | None,
    label_column: str | None,
    label_names: list[str] | None,
    encoding: str | None,
    skip_invalid: bool,
    split: str,
    summaries: list[RowSummary],
) -> list[_Sentence]:
    """Returns the sentences of CoNLL files."""
    found: list[_Sentence] = []
    for file in files:
        rejected = Rejected(str(file), skip_invalid, "line")
        read = read_conll(
            file, rejected, text_column, label_column, encoding=encoding, has_numbers=label_names is not None
        )
        known = find_scheme(label_names) if read.scheme is None and label_names else read.scheme
        converter = _Converter(known or Scheme(), label_names)
        before = len(found)
        for numbers, words, written in read.sentences:
            tags = converter(written)
            if isinstance(tags, str):
                rejected.add(numbers[0], tags)
            else:
                found.append(_Sentence(str(file), "line", numbers, words, tags))
        count = len(read.sentences)
        summary = RowSummary(
            where=str(file),
            split=split,
            shapes={"CoNLL": count},
            rows=count,
            kept=len(found) - before,
            used=dict.fromkeys(read.used, count),
            unused=dict.fromkeys(read.unused, count),
            notes=read.notes,
            invalid=rejected.reasons,
            unit="line",
            roles=dict(zip(read.used, ("word", "tag"), strict=True)),
        )
        summary.log()
        summaries.append(summary)
        converter.log(str(file))
    return found


class _Converter:
    """Converts the tags of a file, as names or indices of names, to BIO."""

    def __init__(self, scheme: Scheme, label_names: list[str] | None) -> None:
        self.scheme = scheme
        self.label_names = label_names
        self.began = 0

    def __call__(self, written: Sequence[Any]) -> list[str] | str:
        """Returns the BIO tags of a sentence, or what is wrong with one."""
        parsed = []
        for tag in written:
            name = _tag_name(tag, self.label_names)
            if name is None:
                count = len(self.label_names or ())
                return f"it has the tag {tag}, but there are {count} names, counted from 0"
            if (pair := self.scheme.parse(name)) is None:
                return tag_fault(name)
            parsed.append(pair)
        tags, began = to_bio(parsed)
        self.began += began
        return tags

    def log(self, where: str) -> None:
        if self.began:
            logger.info("%s: %d entities began without B- and now begin with it.", where, self.began)


def _tag_name(tag: Any, label_names: Sequence[str] | None) -> str | None:
    """Returns the name of a tag that is a name or, if names are known, an index; None if there is no such index."""
    if isinstance(tag, str) and (label_names is None or not is_decimal(tag)):
        return tag.strip()
    number = int(tag) if isinstance(tag, str) else tag
    if isinstance(number, bool) or label_names is None:
        return str(tag)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return label_names[number] if isinstance(number, int) and 0 <= number < len(label_names) else None


def _from_rows(
    splits: Mapping[str, Dataset],
    where: str,
    text_column: str | None,
    label_column: str | None,
    label_names: list[str] | None,
    skip_invalid: bool,
    summaries: list[RowSummary],
) -> dict[str, list[_Sentence]]:
    """Returns the sentences of rows with two lists, or with a text and its entities, by split."""
    read: dict[str, list[tuple[Any, Any]]] = {}
    used: dict[str, tuple[str, str]] = {}
    are_texts = False
    for split, rows in splits.items():
        if columns := annotated_columns(rows, text_column, label_column):
            are_texts = True
            used[split] = columns
            read[split] = list(zip(*(rows[name][:] for name in columns), strict=True))
            continue
        words = _column(rows, where, text_column, _TOKENS, "text_column")
        tags = _column(rows, where, label_column, _TAGS, "label_column")
        used[split] = (words, tags)
        feature = rows.features[tags]
        if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
            # The data set's names belong to its numbers; a model may have others.
            names = feature.feature.names
            numbers = [
                [names[tag] if isinstance(tag, int) and tag >= 0 else tag for tag in row or ()] for row in rows[tags]
            ]
            read[split] = list(zip(rows[words][:], numbers, strict=True))
        else:
            read[split] = list(zip(rows[words][:], rows[tags][:], strict=True))
    scheme = Scheme()
    if not are_texts:
        written = [tag for pairs in read.values() for _, tags in pairs if isinstance(tags, list) for tag in tags]
        names = {name for tag in written if isinstance(tag, str) and (name := _tag_name(tag, label_names))}
        if label_names is not None and any(not isinstance(tag, str) or is_decimal(tag) for tag in written):
            names |= set(label_names)
        scheme = find_scheme(names)
        if not is_bio(names):
            logger.info("%s: %s.", where, scheme_name(scheme, names))
    found: dict[str, list[_Sentence]] = {}
    converter = _Converter(scheme, label_names)
    for split, pairs in read.items():
        rejected = Rejected(where, skip_invalid)
        found[split] = []
        accepted = find_accepted(splits[split], used[split])
        for number, (left, right) in enumerate(pairs, start=1):
            if not accepted.rows[number - 1]:
                continue
            fault, words_found, tags_found = _row(left, right, are_texts, converter, f"Row {number} of {where}")
            if fault:
                rejected.add(number, fault)
            else:
                found[split].append(_Sentence(where, "row", [number], words_found, tags_found))
        shape = "texts with entities" if are_texts else "words with tags"
        as_what = ("text", "entities") if are_texts else ("words", "tags")
        columns_read = {**dict(zip(used[split], as_what, strict=True)), **accepted.columns}
        kept = len(found[split])
        inside = Counter(key for _, entities in pairs for key in unread_keys(entities, used[split][1]) if are_texts)
        summary = summarize_rows(
            where, str(split), shape, splits[split], columns_read, kept, accepted.notes(), rejected.reasons, inside
        )
        summary.log()
        summaries.append(summary)
    converter.log(where)
    return found


def _row(
    left: Any, right: Any, are_texts: bool, converter: _Converter, place: str
) -> tuple[str | None, list[str], list[str]]:
    """Returns what is wrong with a row, or its words and their BIO tags."""
    if are_texts:
        annotated = words_of(left, right)
        return (annotated, [], []) if isinstance(annotated, str) else (None, *annotated)
    if fault := _row_fault(left, right):
        return fault, [], []
    if converter.label_names is None and any(not isinstance(tag, str) or is_decimal(tag) for tag in right):
        raise DataError(f"{place} has tags that are numbers: name them with --class_names.")
    tags = converter(right)
    return (tags, [], []) if isinstance(tags, str) else (None, list(left), tags)


def _column(rows: Dataset, where: str, named: str | None, known: Sequence[str], option: str) -> str:
    for name in known if named is None else [named]:
        if name in rows.column_names:
            return name
    wanted = repr(named) if named else " or ".join(known)
    raise DataError(f"{where} has no column {wanted}; it has {', '.join(rows.column_names)} (--{option}).")


def _row_fault(words: Any, tags: Any) -> str | None:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        return "its words are not a list of non-empty texts"
    # A space is a word only where each character is one.
    if any(not word.strip() for word in words) and not is_unspaced("".join(words)):
        return "its words are not a list of non-empty texts"
    if not isinstance(tags, list) or any(tag is None for tag in tags):
        return "its tags are not a list"
    if len(words) != len(tags):
        return f"it has {len(words)} words and {len(tags)} tags"
    return None


def _mapped(rows: dict[str, list[_Sentence]], label_map: Mapping[str, str], source: str) -> dict[str, list[_Sentence]]:
    kinds = {tag[2:] for part in rows.values() for sentence in part for tag in sentence.tags if tag != "O"}
    if unknown := [kind for kind in label_map if kind not in kinds]:
        raise DataError(
            f"{source} has no entity of the kind {unknown[0]!r} that label_map names; it has {', '.join(sorted(kinds))}."
        )

    def mapped(tag: str) -> str:
        kind = label_map.get(tag[2:], tag[2:])
        return "O" if "O" in (tag, kind) else f"{tag[:2]}{kind}"

    return {
        name: [sentence._replace(tags=[mapped(tag) for tag in sentence.tags]) for sentence in part]
        for name, part in rows.items()
    }


def _encoded(sentences: Sequence[_Sentence], index: Mapping[str, int]) -> Dataset:
    tags = []
    for sentence in sentences:
        for position, tag in enumerate(sentence.tags):
            if tag not in index:
                known = ", ".join(index)
                raise DataError(f"{sentence.place(position)} has the unknown tag {tag!r}: known are {known}.")
        tags.append([index[tag] for tag in sentence.tags])
    return Dataset.from_dict(
        {"tokens": [sentence.tokens for sentence in sentences], "tags": tags},
        Features({"tokens": List(Value("string")), "tags": List(Value("int64"))}),
    )
