"""Reads words with tags for token classification, as BIO: CoNLL files, and rows of `tokens` and `ner_tags`."""

import glob
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset, Features, List, Value

from ...data.corpus import load_rows
from ...data.files import format_of, has_content, open_text
from ...data.splits import split_files
from ...errors import DataError
from ..labels import read_label_names
from ..tables import Rejected, split_rows

logger = logging.getLogger(__name__)

_TOKENS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels")
_TAG = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True)
class TokenSplits:
    """Sentences whose words have tags.

    Attributes:
        train: Columns `tokens`, a list of words, and `tags`, a list with one index of a name per word.
        test: The same columns; None if nothing is held out.
        label_names: Names in the order of their indices, `O` first: `O`, `B-LOC`, `I-LOC` ...
    """

    train: Dataset
    test: Dataset | None
    label_names: list[str]


class _Sentence(NamedTuple):
    """A sentence with its tags as names; `number` is its row or, in a CoNLL file, its first line."""

    where: str
    unit: str
    number: int
    tokens: list[str]
    tags: list[str]

    def place(self, index: int) -> str:
        """Returns the place of a tag, for messages."""
        number = self.number + index if self.unit == "line" else self.number
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
    sentence. An `I-` without a preceding tag of its kind begins an entity, so IOB1 tags become BIO.

    Args:
        source: CoNLL files or globs of them, with any file ending; jsonl, json or parquet files, or Hub ids, with
            lists of words and tags.
        text_column: Column with the words, if there are columns: `tokens` or `words` if not given.
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
    options = (text_column, label_column, given, encoding, skip_invalid)
    rows = _read(source, *options)
    held_out = None if eval_source is None else _read(eval_source, *options)
    named = source if isinstance(source, str) else ", ".join(source)
    rows = split_rows(rows, held_out, test_fraction, lambda sentence: " ".join(sentence.tokens), named)
    if label_map:
        rows = _mapped(rows, label_map, named)
    known = rows["train"] if eval_source is not None else rows["train"] + rows["test"]
    if not any(tag != "O" for sentence in rows["train"] for tag in sentence.tags):
        raise DataError(f"{named} has no entity to learn from: all tags are O.")
    if given and not label_map:
        names = ["O", *(name for name in given if name != "O")]
    else:
        kinds = sorted({tag[2:] for sentence in known for tag in sentence.tags if tag != "O"})
        names = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    index = {name: number for number, name in enumerate(names)}
    parts = {name: _encoded(part, index) for name, part in rows.items()}
    return TokenSplits(parts["train"], parts["test"] if len(parts["test"]) else None, names)


def _read(
    sources: str | Sequence[str],
    text_column: str | None,
    label_column: str | None,
    label_names: list[str] | None,
    encoding: str | None,
    skip_invalid: bool,
) -> dict[str, list[_Sentence]]:
    found: dict[str, list[_Sentence]] = {"train": [], "test": []}
    for source in [sources] if isinstance(sources, str) else sources:
        if files := _conll_files(source):
            for split, part in split_files(files, source).items():
                for file in part:
                    rejected = Rejected(str(file), skip_invalid, "line")
                    found[split] += _as_bio(list(_parse(file, rejected, encoding)), str(file))
                    rejected.log()
            continue
        for where, splits in load_rows(source, encoding=encoding):
            for split, rows in splits.items():
                rejected = Rejected(where, skip_invalid)
                found[str(split)] += _as_bio(
                    list(_from_rows(rows, rejected, text_column, label_column, label_names)), where
                )
                rejected.log()
    return found


def _conll_files(source: str) -> list[Path]:
    """Returns the files that a path or glob names, if they are read line by line instead of as rows."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{source} is a folder: name its files, or a glob such as {source}/*.conll.")
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    return [file for file in files if file.is_file() and format_of(file) not in (".jsonl", ".json", ".parquet")]


def _parse(path: Path, rejected: Rejected, encoding: str | None) -> Iterator[_Sentence]:
    """Yields the sentences of a CoNLL file; rejects those with a broken line."""
    if not has_content(path, encoding):
        raise DataError(f"{path} is empty: give at least one sentence")
    width, separator = _layout(path, encoding)
    sentence = _Sentence(str(path), "line", 0, [], [])
    is_broken = False
    with open_text(path, encoding) as stream:
        for number, line in enumerate(chain(stream, "\n"), start=1):
            fields = _fields(line, separator)
            if not fields or fields[0] == "-DOCSTART-":
                if sentence.tokens and not is_broken:
                    yield sentence
                sentence = _Sentence(str(path), "line", 0, [], [])
                is_broken = False
                continue
            if not sentence.tokens and _is_comment(fields, width):
                continue
            if fault := _fault(fields, width):
                # One message per sentence is enough.
                if not is_broken:
                    rejected.add(number, fault)
                is_broken = True
            if not sentence.tokens:
                sentence = sentence._replace(number=number)
            sentence.tokens.append(fields[0])
            sentence.tags.append(fields[-1])


def _layout(path: Path, encoding: str | None) -> tuple[int, str | None]:
    """Returns the number of fields per line of a CoNLL file and the separator: a tab, or None for white space."""
    with open_text(path, encoding) as stream:
        for line in stream:
            if line.strip() and not line.startswith(("#", "-DOCSTART-")):
                separator = "\t" if "\t" in line.strip() else None
                return len(_fields(line, separator)), separator
    raise DataError(f"{path} has no line with a word and a tag")


def _fields(line: str, separator: str | None) -> list[str]:
    return [field.strip() for field in line.strip().split(separator)] if line.strip() else []


def _is_comment(fields: Sequence[str], width: int) -> bool:
    """True if a line before a sentence is a comment, not a word: `# id 5`, but neither `# O` nor `#tag O`."""
    return fields[0].startswith("#") and (len(fields) != width or not _TAG.fullmatch(fields[-1]))


def _fault(fields: Sequence[str], width: int) -> str | None:
    if len(fields) < 2:
        return f"it has the word {fields[0]!r} but no tag"
    if len(fields) != width:
        return f"it has {len(fields)} fields, but the file's first line has {width}"
    if not _TAG.fullmatch(fields[-1]):
        return f"it has the tag {fields[-1]!r} instead of O, B-... or I-..."
    return None


def _from_rows(
    rows: Dataset, rejected: Rejected, text_column: str | None, label_column: str | None, label_names: list[str] | None
) -> Iterator[_Sentence]:
    """Yields the sentences of rows with two lists; rejects those that cannot be used."""
    words = _column(rows, rejected.where, text_column, _TOKENS, "text_column")
    tags = _column(rows, rejected.where, label_column, _TAGS, "label_column")
    feature = rows.features[tags]
    if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
        label_names = label_names or feature.feature.names
    for number, (row_words, row_tags) in enumerate(zip(rows[words][:], rows[tags][:], strict=True), start=1):
        fault = _row_fault(row_words, row_tags)
        names: list[str] = []
        for tag in row_tags if fault is None else ():
            if isinstance(tag, int) and label_names is None:
                raise DataError(
                    f"Row {number} of {rejected.where} has tags that are numbers: name them with --class_names."
                )
            is_index = isinstance(tag, int) and label_names is not None and 0 <= tag < len(label_names)
            name = str(label_names[tag]) if is_index and label_names is not None else str(tag)
            if not _TAG.fullmatch(name):
                fault = f"it has the tag {tag!r} instead of O, B-... or I-..."
                if isinstance(tag, int) and label_names is not None:
                    fault = f"it has the tag {tag}, but there are {len(label_names)} names, counted from 0"
                break
            names.append(name)
        if fault:
            rejected.add(number, fault)
        else:
            yield _Sentence(rejected.where, "row", number, list(row_words), names)


def _column(rows: Dataset, where: str, named: str | None, known: Sequence[str], option: str) -> str:
    for name in known if named is None else [named]:
        if name in rows.column_names:
            return name
    wanted = repr(named) if named else " or ".join(known)
    raise DataError(f"{where} has no column {wanted}; it has {', '.join(rows.column_names)} (--{option}).")


def _row_fault(words: Any, tags: Any) -> str | None:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        return "its words are not a list of non-empty texts"
    if not isinstance(tags, list) or any(tag is None for tag in tags):
        return "its tags are not a list"
    if len(words) != len(tags):
        return f"it has {len(words)} words and {len(tags)} tags"
    return None


def _as_bio(sentences: list[_Sentence], where: str) -> list[_Sentence]:
    """Makes every entity begin with `B-`."""
    turned = 0
    for sentence in sentences:
        before = "O"
        for index, tag in enumerate(sentence.tags):
            if tag.startswith("I-") and before[1:] != tag[1:]:
                sentence.tags[index] = f"B{tag[1:]}"
                turned += 1
            before = tag
    if turned:
        logger.info("%s: %d entities began with I- and now begin with B-.", where, turned)
    return sentences


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
