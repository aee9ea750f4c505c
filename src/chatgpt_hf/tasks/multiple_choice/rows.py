"""Reads multiple choice: one of several continuations, or of several contexts, is right."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from ...data.corpus import is_blank
from ...data.sources import fill_template, template_columns
from ...data.summary import RowSummary, summarize_rows
from ...errors import DataError
from ...parsing import is_decimal
from ..tables import Rejected, Table, load_tables, split_rows

logger = logging.getLogger(__name__)

_QUESTIONS = ("query", "question", "ctx", "context", "prompt")
# Columns with a text that the question is about.
_CONTEXTS = ("premise", "article", "passage", "support", "paragraph", "story", "sentence", "context")
_CHOICES = ("choices", "endings", "options")
_LABELS = ("gold", "label", "answer", "answerKey")
_OPTIONS = "context_options"
_LETTERS = "ABCDEFGHIJ"
_FEATURES = Features(
    {"contexts": List(Value("string")), "continuations": List(Value("string")), "label": Value("int64")}
)


@dataclass(frozen=True)
class ChoiceSplits:
    """Questions with choices.

    Attributes:
        train: Columns `contexts` and `continuations`, lists with one text per choice, and `label`, the index of the
            right one. A choice is scored as its continuation after its context.
        test: The same columns; None if nothing is held out.
        first: The number of the first choice, as the rows count; None if the right ones are not written as numbers.
        summaries: How the rows and columns of each file were read.
    """

    train: Dataset
    test: Dataset | None
    first: int | None = None
    summaries: Sequence[RowSummary] = ()


class _Columns(NamedTuple):
    """The columns of a table; `choices` is one column with a list, or several with a text each."""

    question: str
    choices: tuple[str, ...]
    label: str
    context: tuple[str, ...] = ()


class _Choices(NamedTuple):
    """The choices of a row.

    Attributes:
        texts: Without empty cells.
        keys: Their letters or other names; a list may have fewer texts.
        places: Their numbers, counted from 0 and with the empty cells.
    """

    texts: list[Any]
    keys: Sequence[str]
    places: Sequence[int]


def load_choices(
    source: str,
    *,
    template: str | None = None,
    delimiter: str = " ",
    test_fraction: float = 0.0,
    eval_source: str | None = None,
    encoding: str | None = None,
    skip_invalid: bool = False,
    first: int | None = None,
) -> ChoiceSplits:
    """Loads multiple choice from rows of one of these kinds.

    - a question (`query`, `question`, `ctx`, `context` or `prompt`), a list of answers (`choices`, `endings` or
      `options`) and the right one (`gold`, `label`, `answer` or `answerKey`), which is a letter, the answer itself, or
      a number: from 0, or from 1 if 0 never occurs and the number of choices does;
    - the same with a column for each answer, `choice0`, `choice1` ... or `A`, `B` ..., of which some may be empty;
      without a header the question comes first and the right one last, as in MMLU's own csv files;
    - `context_options`, a list of contexts, `continuation` and the right one, as in partial evaluation of WinoGrande
      (Trinh and Le 2018).

    A text that the question is about (`premise`, `article`, `passage`, `support` ...) stands on the lines before it.

    Args:
        source: A file, folder or glob of jsonl, json, csv, tsv or parquet files, or a Hub id.
        template: Used instead of the question: a text with column names in braces: `"{query}\\nAnswer:"`.
        delimiter: Put between context and continuation, as part of the latter, unless either has white space there.
        test_fraction: Share to hold out, by a hash of contexts and continuations, unless the source has a `test`
            split.
        eval_source: Source of the held-out rows to use instead.
        encoding: Encoding of the files, such as `gb18030`; UTF-8 if not given.
        skip_invalid: Leave out rows that cannot be used, with a warning that counts them, instead of raising an error.
        first: The number of the first choice, if it is known.

    Raises:
        DataError: If columns are missing, a row has fewer than two choices or an empty one, the right one is not among
            them, it may be a number or the text of another choice, or numbers may count from 0 or from 1; the message
            names the row or the file.
        ConfigError: If the template is invalid, or `test_fraction` is not between 0 and 1.
    """
    if template is not None:
        template_columns(template)
    tables = _load(source, encoding)
    # The training rows tell how the right one is written.
    numbers = _numbering(tables, source, first)
    options = (template, delimiter, skip_invalid, numbers)
    rows, summaries = _read(tables, *options)
    held_out = None
    if eval_source is not None:
        held_out, others = _read(_load(eval_source, encoding), *options)
        summaries += others
    rows = split_rows(rows, held_out, test_fraction, lambda row: str((row["contexts"], row["continuations"])), source)
    parts = {
        name: Dataset.from_dict({column: [row[column] for row in part] for column in _FEATURES}, _FEATURES)
        for name, part in rows.items()
    }
    return ChoiceSplits(parts["train"], parts["test"] if len(parts["test"]) else None, numbers.first, summaries)


class _Numbering(NamedTuple):
    """How right choices are written: the number of the first one, if they are numbers; True if they are texts."""

    first: int | None
    are_texts: bool


def _load(source: str, encoding: str | None) -> list[Table]:
    header = {name.lower() for name in (*_QUESTIONS, *_CHOICES, *_LABELS)}
    return load_tables(source, header=header, encoding=encoding)


def _read(
    tables: Sequence[Table], template: str | None, delimiter: str, skip_invalid: bool, numbers: _Numbering
) -> tuple[dict[str, list[dict[str, Any]]], list[RowSummary]]:
    """Returns the usable rows by split, and a summary of each table."""
    found: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    summaries = []
    for table in tables:
        for split, rows in table.splits.items():
            rejected = Rejected(table.where, skip_invalid)
            columns = _find_columns(table, rows)
            usable = list(_usable(rows, columns, template, delimiter, rejected, numbers))
            found[str(split)] += usable
            has_template = template is not None and columns.choices != (_OPTIONS,)
            question = template_columns(template) if template and has_template else [columns.question]
            context = () if has_template else columns.context
            used = {
                **dict.fromkeys(context, "context"),
                **dict.fromkeys(question, "question"),
                **dict.fromkeys(columns.choices, "choice"),
                columns.label: "right choice",
            }
            summary = summarize_rows(
                table.where, str(split), "multiple choice", rows, used, len(usable), {}, rejected.reasons
            )
            summary.log()
            summaries.append(summary)
    return found, summaries


def _numbering(tables: Sequence[Table], source: str, first: int | None) -> _Numbering:
    """Finds out how the right choices of all rows are written."""
    indices: set[int] = set()
    # Numbers that cannot count from 0; numbers that are known to do so.
    has_last = are_numbers = is_known = False
    in_doubt: str | None = None
    all_are_texts = True
    for table in tables:
        for rows in table.splits.values():
            columns = _find_columns(table, rows)
            # `gold` is an index in all data that has it.
            is_known = is_known or columns.label == "gold" or columns.choices[0] in ("choice0", _OPTIONS)
            for number, row in enumerate(rows, start=1):
                choices, keys, places = _choices_of(row, columns)
                written = str(row[columns.label]).strip()
                if written in keys or not is_decimal(written) or len(choices) < 2:
                    continue
                index = int(written)
                indices.add(index)
                are_numbers = True
                has_last = has_last or index == places[-1] + 1
                if not isinstance(row[columns.label], str) or written not in choices:
                    all_are_texts = False
                elif index in places and choices[places.index(index)] != written and in_doubt is None:
                    in_doubt = f"Row {number} of {table.where}"
    if not are_numbers:
        return _Numbering(first, False)
    if all_are_texts and first is None:
        if in_doubt and max(indices) <= 10:
            raise DataError(
                f"{in_doubt} has a right choice that is the number of one choice and the text of another: write letters."
            )
        return _Numbering(None, True)
    if first is None:
        first = int(0 not in indices and has_last)
        if not (first or is_known or 0 in indices):
            raise DataError(
                f"{source} has the right choices {', '.join(map(str, sorted(indices)[:5]))}, and it is unclear whether the "
                f"first choice is 0 or 1: write letters (A, B ...) into {columns.label}, or name it gold if it counts from 0."
            )
        if first:
            logger.info("%s: the choices are counted from 1.", source)
    return _Numbering(first, False)


def _find_columns(table: Table, rows: Dataset) -> _Columns:
    names = list(rows.column_names)
    if not table.has_header and len(names) >= 4:
        return _Columns(names[0], tuple(names[1:-1]), names[-1])
    label = next((name for name in _LABELS if name in names), None)
    if label and {_OPTIONS, "continuation"} <= set(names):
        return _Columns("continuation", (_OPTIONS,), label)
    question = next((name for name in _QUESTIONS if name in names), None)
    choices: tuple[str, ...] = next(((name,) for name in _CHOICES if name in names), ())
    for series in ([f"choice{index}" for index in range(len(names))], _LETTERS):
        choices = choices or tuple(name for name in series if name in names)
    if question is None or not choices or label is None:
        raise DataError(
            f"{table.where} has the columns {', '.join(names)}, but multiple choice needs one of {', '.join(_QUESTIONS)}; one "
            f"of {', '.join(_CHOICES)}, or choice0, choice1 ...; and one of {', '.join(_LABELS)}."
        )
    context = () if question in ("ctx", "context") else tuple(name for name in _CONTEXTS if name in names)
    return _Columns(question, choices, label, context)


def _usable(
    rows: Dataset, columns: _Columns, template: str | None, delimiter: str, rejected: Rejected, numbers: _Numbering
) -> Iterator[dict[str, Any]]:
    for name in template_columns(template) if template else ():
        if name not in rows.column_names:
            raise DataError(
                f"{rejected.where} has no column {name!r}; the template may name {', '.join(rows.column_names)}."
            )
    for number, row in enumerate(rows, start=1):
        found = _choices_of(row, columns)
        choices = found.texts
        question = row[columns.question]
        has_contexts = columns.choices == (_OPTIONS,)
        if template is not None and not has_contexts:
            question = fill_template(template, row, rejected.where)
        elif isinstance(question, str) and not is_blank(question):
            before = [row[name] for name in columns.context]
            question = "\n".join([*(text for text in before if isinstance(text, str) and text.strip()), question])
        label = _label_of(row[columns.label], found, numbers)
        if not isinstance(question, str) or is_blank(question):
            rejected.add(number, f"its {columns.question} is empty")
        elif len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            rejected.add(
                number, f"its {columns.choices[0]} must be two or more non-empty texts, but are {choices!r:.80}"
            )
        elif label is None:
            first = numbers.first or 0
            last = found.places[-1] + first
            rejected.add(
                number,
                f"its {columns.label} is {row[columns.label]!r}, but must be one of {first} to {last} or a choice"
                + (", and not an empty one" if last >= len(choices) + first else ""),
            )
        else:
            contexts = choices if has_contexts else [question] * len(choices)
            texts = [question] * len(choices) if has_contexts else choices
            pairs = zip(contexts, texts, strict=True)
            continuations = [
                text if context[-1].isspace() or text[0].isspace() else delimiter + text for context, text in pairs
            ]
            yield {"contexts": contexts, "continuations": continuations, "label": label}


def _choices_of(row: Mapping[str, Any], columns: _Columns) -> _Choices:
    """Returns the choices of a row."""
    if len(columns.choices) > 1:
        # A letter or number means a column, also in a question with empty cells, which has fewer choices.
        filled = [place for place, name in enumerate(columns.choices) if not _is_empty(row[name])]
        names = columns.choices if columns.choices[0] in _LETTERS else _LETTERS
        texts = [row[columns.choices[place]] for place in filled]
        return _Choices(texts, [names[place] for place in filled if place < len(names)], filled)
    value = row[columns.choices[0]]
    keys: Sequence[str] = _LETTERS
    if isinstance(value, Mapping):  # as in ARC on the Hub
        keys, value = _list(value.get("label")), value.get("text")
    texts = _list(value)
    return _Choices(texts, keys, range(len(texts)))


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and is_blank(cell))


def _list(value: Any) -> list[Any]:
    """Returns a list as it is; an empty one for anything else."""
    return list(value) if isinstance(value, list) else []


def _label_of(label: Any, choices: _Choices, numbers: _Numbering) -> int | None:
    """Returns the index of the right choice among those that are not empty; None if it is not among them."""
    texts, keys, places = choices
    # A text of letters would contain `AB` and the empty text too.
    keys = list(keys)
    place: int | None = None
    index = -1
    if isinstance(label, str):
        label = label.strip()
        letter = label.strip("().: ").upper()
        if label in keys:
            index = keys.index(label)
        elif is_decimal(label) and not numbers.are_texts:
            place = int(label) - (numbers.first or 0)
        elif label in texts:
            index = list(texts).index(label)
        elif letter in keys:
            index = keys.index(letter)
    elif isinstance(label, int) and not isinstance(label, bool):
        place = label - (numbers.first or 0)
    if place is not None:
        index = list(places).index(place) if place in places else -1
    return index if 0 <= index < len(texts) else None
