"""Reads CoNLL files: finds the columns of words and tags, and skips comments, document marks and index columns."""

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from ...data.files import format_of, has_content, open_text
from ...errors import DataError
from ...parsing import is_decimal
from ..tables import Rejected
from .tags import Scheme, find_scheme, is_bio, is_tag, scheme_name, tag_fault
from .words import is_unspaced

logger = logging.getLogger(__name__)

# Only these separate fields: a no-break space or an ideographic space is part of a word.
_SPACE = " \t\r\n\f\v"
_WORD_NAMES = ("word", "words", "token", "tokens", "form", "text", "char", "character")
_TAG_NAMES = ("tag", "tags", "ner", "ner_tag", "ner_tags", "label", "labels", "entity", "entities", "bio")
# Columns that number sentences, in tables without blank lines.
_SENTENCE_NAMES = (
    *("sentence", "sentence #", "sentence#", "sentence id", "sentence no", "sentence number", "sentence_num"),
    *("sentence_id", "sentence_no", "sentence_number", "sentence_idx", "sent", "sent_id", "sentid", "sentenceid"),
)
_COLUMN = re.compile(r"(?:column)?(\d{1,9})")
_ID = re.compile(r"\d{1,18}")
# In CoNLL-U, `3-4` is a written word of two syntactic ones, and `5.1` is a word that is not in the text.
_NO_WORD = re.compile(r"\d+[-.]\d+")
_MISC_TAG = re.compile(r"(?:^|\|)(?:NER|ner|Name|name)=([^|]*)")
_ASSIGNMENT = re.compile(r"#\s*[\w:.-]+\s*=")
# Kinds of phrases in the column of chunks, in CoNLL-2000 and -2003 (English and German).
_PHRASES = frozenset(
    ["NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP", "NC", "VC", "PC", "AC"]
)
_MANY = 20


class Line(NamedTuple):
    """A line with fields, counted from 1."""

    number: int
    fields: list[str]


class Layout(NamedTuple):
    """The columns of a file, counted from 0.

    Attributes:
        width: Number of fields per line.
        word: The column of the words.
        tag: The column of the tags.
        counter: The column that counts the words of a sentence, if any.
        is_misc: True if the tag is an entry of CoNLL-U's last column: `NER=B-PER`.
        scheme: How the tags are written; None if they are numbers.
    """

    width: int
    word: int
    tag: int
    counter: int | None
    is_misc: bool
    scheme: Scheme | None


class Tagged(NamedTuple):
    """A sentence: its first line, the words, and their tags as written."""

    numbers: list[int]
    words: list[str]
    tags: list[str]


class Read(NamedTuple):
    """Of a file: its sentences, the scheme of its tags (None if they are numbers), and what was read.

    Attributes:
        used, unused: The columns that were read, and those that were not.
        notes: What was left out, with the number of times.
    """

    sentences: list[Tagged]
    scheme: Scheme | None
    used: list[str]
    unused: list[str]
    notes: dict[str, int]


def read_conll(
    path: Path,
    rejected: Rejected,
    word_column: str | None,
    tag_column: str | None,
    *,
    encoding: str | None = None,
    has_numbers: bool,
) -> Read:
    """Reads the sentences of a file, and rejects those with a broken line.

    Blank lines divide sentences, and also a column that the header names as `sentence_id`, `Sentence #` ..., where its
    value changes; it may be empty below a sentence's first line. A csv file has commas or semicolons instead of tabs.

    Args:
        word_column: Name of the column of words in the file's header, or `column0`, `column1` ...; None to find it.
        tag_column: Likewise, of the tags.
        encoding: Encoding of the file; UTF-8 if not given.
        has_numbers: True if tags may be numbers, because their names are known.

    Raises:
        DataError: If the columns cannot be found, or a line is broken; the message names the line.
    """
    if not has_content(path, encoding):
        raise DataError(f"{path} is empty: give at least one sentence")
    width, separator = _first_line(path, encoding)
    left_out: Counter[str] = Counter()
    sentences = list(_blocks(path, encoding, width, separator, left_out))
    header = _pop_header(sentences)
    if not sentences:
        raise DataError(f"{path} has no line with a word and a tag")
    if separator in (",", ";") and sentences[0][0].fields[-1].startswith("["):
        raise DataError(f"{path} has lists in its cells, which csv does not define: give them as jsonl or parquet")
    sentences = _divided(sentences, header)
    layout = _find_layout(path, sentences, width, header, word_column, tag_column, has_numbers)
    found = [sentence for lines in sentences if (sentence := _sentence(lines, layout, rejected, left_out))]
    names = header or [f"column{column}" for column in range(width)]
    _log_scheme(path, layout, found)
    used = [names[layout.word], names[layout.tag]]
    unused = [name for column, name in enumerate(names) if column not in (layout.word, layout.tag)]
    return Read(found, layout.scheme, used, unused, dict(+left_out))


def _first_line(path: Path, encoding: str | None) -> tuple[int, str | None]:
    """Returns the number of fields of the first line, and the separator: a tab, None for white space, or that of a csv file."""
    with open_text(path, encoding) as stream:
        for line in stream:
            # A line that begins with a space may lack its word.
            if line.strip(_SPACE) and not line.startswith(("#", "-DOCSTART-", " ")):
                separator = "\t" if "\t" in line.strip(_SPACE) else None
                if separator is None and format_of(path) == ".csv":
                    separator = next((mark for mark in ",;" if mark in line), None)
                return len(_fields(line, separator)), separator
    raise DataError(f"{path} has no line with a word and a tag")


def _fields(line: str, separator: str | None) -> list[str]:
    if not line.strip(_SPACE):
        return []
    if separator is None:
        return re.split(r"[ \t\f\v]+", line.strip(_SPACE))
    fields = line.rstrip(_SPACE).split("\t") if separator == "\t" else next(csv.reader([line], delimiter=separator))
    fields = [field.strip(_SPACE) for field in fields]
    # Spreadsheets write a blank line as separators only.
    return fields if separator == "\t" or any(fields) else []


def _blocks(
    path: Path, encoding: str | None, width: int, separator: str | None, left_out: Counter[str]
) -> Iterator[list[Line]]:
    """Yields the lines of each sentence, without comments and document marks, which it counts."""
    block: list[Line] = []
    with open_text(path, encoding) as stream:
        for number, line in enumerate(chain(stream, "\n"), start=1):
            fields = _fields(line, separator)
            if not fields or "-DOCSTART-" in fields[:2]:
                if block:
                    yield block
                block = []
                left_out["lines that mark a document were left out"] += bool(fields)
            elif _is_comment(line, fields, width, is_before=not block):
                left_out["comment lines were left out"] += 1
            else:
                if len(fields) == width - 1 and line[0] in " \t" and is_tag(fields[-1]):
                    # The word is a space, in a file with a character per line.
                    fields = [" ", *fields]
                elif not fields[0] and len(fields) == width:
                    fields = [" ", *fields[1:]]
                block.append(Line(number, fields))


def _is_comment(line: str, fields: Sequence[str], width: int, *, is_before: bool) -> bool:
    """True if a line is a comment, not a word: `# id 5` before a sentence, but neither `# O` nor `#tag O`."""
    if not fields[0].startswith("#") or (len(fields) == width and is_tag(fields[-1])):
        return False
    return is_before or bool(_ASSIGNMENT.match(line))


def _pop_header(sentences: list[list[Line]]) -> list[str] | None:
    """Removes a first line with names of columns, and returns the names."""
    if not sentences:
        return None
    names = [field.lower() for field in sentences[0][0].fields]
    if not set(names) & set(_WORD_NAMES) or not set(names) & set(_TAG_NAMES) or any(map(is_tag, names)):
        return None
    del sentences[0][0]
    if not sentences[0]:
        del sentences[0]
    return names


def _divided(sentences: list[list[Line]], header: list[str] | None) -> list[list[Line]]:
    """Divides sentences where the column that numbers them changes, if the header names one."""
    column = next((header.index(name) for name in _SENTENCE_NAMES if name in header), None) if header else None
    if column is None:
        return sentences
    divided: list[list[Line]] = []
    for lines in sentences:
        before = None
        for line in lines:
            value = line.fields[column].strip() if column < len(line.fields) else ""
            # Some tables have it only in a sentence's first line.
            if line is lines[0] or (value and value != before):
                divided.append([])
            before = value or before
            divided[-1].append(line)
    return divided


def _find_layout(
    path: Path,
    sentences: list[list[Line]],
    width: int,
    header: list[str] | None,
    word_column: str | None,
    tag_column: str | None,
    has_numbers: bool,
) -> Layout:
    whole = [[line.fields for line in lines if len(line.fields) == width] for lines in sentences]
    columns = list(zip(*chain.from_iterable(whole), strict=True))
    if width < 2 or not columns:
        number, fields = sentences[0][0]
        raise DataError(f"Line {number} of {path} has the word {fields[0]!r} but no tag, so this is no CoNLL file.")
    asked = [None if name is None else _column(path, name, header, width) for name in (word_column, tag_column)]
    index, used = _index_columns(whole, columns)
    if asked[1] is None and header is not None:
        asked[1] = next((header.index(name) for name in _TAG_NAMES if header.count(name) == 1), None)
    if asked[0] is None and header is not None:
        asked[0] = next((header.index(name) for name in _WORD_NAMES if header.count(name) == 1), None)
    free = [column for column in range(width) if column not in used]
    if len(free) < 2 and None in asked:
        raise DataError(
            f"{path} has {width} columns, and the first has only numbers that count words: put the words between "
            "number and tag."
        )
    is_misc = asked[1] in (None, width - 1) and any(_MISC_TAG.search(value) for value in columns[-1])
    tag = width - 1 if is_misc else asked[1]
    if tag is None:
        tag = _tag_column(path, columns, free, asked[0], has_numbers)
    word = asked[0] if asked[0] is not None else next((column for column in free if column != tag), None)
    if word is None or word == tag:
        raise DataError(f"{path} has the columns of words and tags in column{tag}: name them with --text_column.")
    if asked[0] is None and width > 2 and len(columns[word]) > 2 and all(map(_ID.fullmatch, columns[word])):
        raise DataError(
            f"{path} has only numbers in column{word}, but they do not count words: name the column of the words with "
            "--text_column."
        )
    values = [_misc_tag(value) if is_misc else value for value in columns[tag]]
    if has_numbers and all(map(is_decimal, values)):
        scheme = None
    else:
        scheme = find_scheme(set(values))
    return Layout(width, word, tag, index, is_misc, scheme)


def is_column_number(name: str) -> bool:
    """True if a name is `column2` or `2`, which names a column of a file without names of columns."""
    return bool(_COLUMN.fullmatch(name.strip()))


def _column(path: Path, name: str, header: list[str] | None, width: int) -> int:
    """Returns the column of a name in the header, or of `column2` or `2`, counted from 0."""
    if header is not None and name.strip().lower() in header:
        return header.index(name.strip().lower())
    number = _COLUMN.fullmatch(name.strip())
    if number is None or int(number[1]) >= width:
        known = ", ".join(header or [f"column{column}" for column in range(width)])
        raise DataError(f"{path} has no column {name!r}; it has {known}.")
    return int(number[1])


def _index_columns(
    sentences: Sequence[Sequence[Sequence[str]]], columns: Sequence[Sequence[str]]
) -> tuple[int | None, set[int]]:
    """Finds the leading columns that hold no words: counters of words, and names of documents or sentences.

    Returns:
        The column that counts the words, if any, and all such columns.
    """
    counter, used = None, set()
    for column in range(len(columns)):
        parts = [[fields[column] for fields in lines] for lines in sentences if lines]
        if counter is None and _is_counter(parts):
            counter = column
        elif not _is_name(parts) and not _has_only_numbers(columns[column]):
            break
        used.add(column)
    return counter, used


def _is_counter(parts: Sequence[Sequence[str]]) -> bool:
    """True if a column counts the words of each sentence, or of the whole file."""
    counted = [[int(value) for value in values if _ID.fullmatch(value)] for values in parts]
    if any(not _ID.fullmatch(v) and not _NO_WORD.fullmatch(v) for values in parts for v in values):
        return False
    if not all(counted):
        return False
    # A sentence may have lost a line.
    steps = [all(b > a for a, b in pairwise(values)) for values in counted]
    starts = [values[0] in (0, 1) for values in counted]
    runs_on = all(b == a + 1 for a, b in pairwise(chain.from_iterable(counted)))
    right = sum(step and (start or runs_on) for step, start in zip(steps, starts, strict=True))
    return right >= 0.9 * len(parts)


def _is_name(parts: Sequence[Sequence[str]]) -> bool:
    """True if a column has the same value in all lines of each sentence, such as the name of a document."""
    return max(map(len, parts)) > 2 and all(len(set(values)) == 1 for values in parts)


def _has_only_numbers(values: Sequence[str]) -> bool:
    """True if many lines have only numbers or ranges of them, such as offsets."""
    return len(values) >= _MANY and all(_ID.fullmatch(value) or _NO_WORD.fullmatch(value) for value in values)


def _tag_column(
    path: Path, columns: Sequence[Sequence[str]], free: Sequence[int], word: int | None, has_numbers: bool
) -> int:
    """Returns the column of the tags: the last one, unless it has none or repeats the kinds of an earlier one."""
    share = {column: sum(map(is_tag, columns[column])) / len(columns[column]) for column in free if column != word}
    likely = [column for column in share if share[column] > 0.9]
    if len(free) == 2 and likely == [free[0]] and share.get(free[1], 0) < 0.5:
        return free[0]
    if word is None:
        # The words themselves are no tags, even if many are `O`.
        likely = [column for column in likely if column != free[0]]
    last = free[-1]
    if not likely:
        if share.get(free[0], 0) > 0.9 and share.get(last, 0) < 0.5:
            raise DataError(
                f"{path} has tags in column{free[0]}, its first: name the column of the words with --text_column and "
                "that of the tags with --label_column."
            )
        return last
    kinds = {column: _kinds(columns[column]) for column in likely}
    entities = [column for column in likely if not kinds[column] or not kinds[column] <= _PHRASES] or likely
    # A column of only O is a column of tags too, but says less than another one.
    named = [column for column in entities if kinds[column]]
    if not named:
        return entities[-1]
    chosen = named[-1]
    # Nested entities: the first column has the outer ones, and the next ones the same kinds.
    chosen = next(column for column in named if column == chosen or kinds[column] & kinds[chosen])
    if has_numbers and all(map(is_decimal, columns[last])):
        return last
    if len(entities) > 1:
        others = ", ".join(f"column{column}" for column in entities if column != chosen)
        logger.warning("%s: %s also has tags; --label_column chooses another column.", path, others)
    return chosen


def _kinds(values: Sequence[str]) -> set[str]:
    scheme = find_scheme(set(values))
    return {parsed[1] for value in set(values) if (parsed := scheme.parse(value)) and parsed[0] != "O"}


def _misc_tag(value: str) -> str:
    found = _MISC_TAG.search(value)
    return found[1] if found else "O"


def _sentence(lines: Sequence[Line], layout: Layout, rejected: Rejected, left_out: Counter[str]) -> Tagged | None:
    """Returns a sentence; None if a line of it is broken, after rejecting that line."""
    found = Tagged([], [], [])
    for number, fields in lines:
        if layout.counter is not None and layout.counter < len(fields) and _NO_WORD.fullmatch(fields[layout.counter]):
            left_out["lines of joined or added words were left out"] += 1
            continue
        fault = _fault(fields, layout)
        if fault is None and fields[layout.word] == " " and not is_unspaced("".join(_column_of(lines, layout.word))):
            fault = "its word is empty"
        if fault is not None:
            # One message per sentence is enough.
            rejected.add(number, fault)
            return None
        found.numbers.append(number)
        found.words.append(fields[layout.word])
        found.tags.append(_misc_tag(fields[layout.tag]) if layout.is_misc else fields[layout.tag])
    return found if found.words else None


def _column_of(lines: Sequence[Line], column: int) -> list[str]:
    """Returns one field of each line that has it."""
    return [line.fields[column] for line in lines if column < len(line.fields)]


def _fault(fields: Sequence[str], layout: Layout) -> str | None:
    if len(fields) < 2:
        return f"it has the word {fields[0]!r} but no tag"
    if len(fields) != layout.width:
        return f"it has {len(fields)} fields, but the file's first line has {layout.width}"
    if not fields[layout.word]:
        return "its word is empty"
    tag = _misc_tag(fields[layout.tag]) if layout.is_misc else fields[layout.tag]
    if layout.scheme is not None and layout.scheme.parse(tag) is None:
        return tag_fault(tag)
    return None


def _log_scheme(path: Path, layout: Layout, sentences: Sequence[Tagged]) -> None:
    tags = {tag for sentence in sentences for tag in sentence.tags}
    if layout.scheme is not None and not is_bio(tags):
        logger.info("%s: %s.", path, scheme_name(layout.scheme, tags))
