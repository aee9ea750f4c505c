"""Reads questions whose answers are spans of a text, in SQuAD's format (Rajpurkar et al. 2016 and 2018)."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from ...data.corpus import load_rows
from ...data.files import format_of, is_empty, source_files
from ...data.json_rows import read_json
from ...data.messages import FLAG_VALUES
from ...data.splits import split_files
from ...data.summary import RowSummary
from ...errors import DataError
from ..tables import Rejected, split_rows

logger = logging.getLogger(__name__)

_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)
_LISTED = 10
_USED = ("id", "question", "context", "answers", "is_impossible")


class Mismatch(NamedTuple):
    """An answer whose `answer_start` does not match its text.

    Attributes:
        where: The file.
        id: The question's id.
        text: The answer.
        answer_start: The given start, in characters.
        found: The text at that place.
    """

    where: str
    id: str
    text: str
    answer_start: int
    found: str


@dataclass(frozen=True)
class SquadSplits:
    """Questions with the texts that answer them.

    Attributes:
        train: Columns `id`, `question`, `context`, and `answers` with the lists `text` and `answer_start`, in
            characters. The lists are empty if the context does not answer the question.
        test: The same columns; None if nothing is held out.
        mismatches: The dropped answers. A question without another answer was dropped too.
        summaries: How the questions and fields of each file were read.
    """

    train: Dataset
    test: Dataset | None
    mismatches: list[Mismatch]
    summaries: Sequence[RowSummary] = ()


def load_squad(
    source: str,
    *,
    test_fraction: float = 0.0,
    eval_source: str | None = None,
    encoding: str | None = None,
    skip_invalid: bool = False,
) -> SquadSplits:
    """Loads questions and answers from files in SQuAD's format, version 1 or 2, or from rows with the same fields.

    Answers whose offset does not match their text are dropped, counted and listed in the log; none is moved.

    Args:
        source: A json file in SQuAD's format; jsonl, json or parquet files or a Hub id with columns `question`,
            `context`, `answers` and optionally `id`; or a folder or glob of such files.
        test_fraction: Share of contexts to hold out, with all questions about them, by a hash of the context, unless
            the source has a `test` split.
        eval_source: Source of the held-out questions to use instead.
        encoding: Encoding of the files, such as `gb18030`; UTF-8 if not given.
        skip_invalid: Leave out questions that cannot be used, with a warning that counts them, instead of raising an
            error.

    Raises:
        DataError: If the source does not exist, a field is missing or empty, or no question is left; the message names
            it.
        ConfigError: If `test_fraction` is not between 0 and 1.
    """
    mismatches: list[Mismatch] = []
    rows, summaries = _read(source, mismatches, encoding, skip_invalid)
    held_out = None
    if eval_source is not None:
        held_out, others = _read(eval_source, mismatches, encoding, skip_invalid)
        summaries += others
    if mismatches:
        listed = "; ".join(
            f"{item.id}: {item.text!r:.60} at {item.answer_start}, where the context has {item.found!r:.60}"
            for item in mismatches[:_LISTED]
        )
        count = len(mismatches)
        logger.warning("Dropped %d answers whose answer_start does not match their text: %s.", count, listed)
    rows = split_rows(rows, held_out, test_fraction, lambda row: str(row["context"]), source)
    parts = {
        name: Dataset.from_dict({column: [row[column] for row in part] for column in _FEATURES}, _FEATURES)
        for name, part in rows.items()
    }
    return SquadSplits(parts["train"], parts["test"] if len(parts["test"]) else None, mismatches, summaries)


_Rows = list[dict[str, Any]]


def _read(
    source: str, mismatches: list[Mismatch], encoding: str | None, skip_invalid: bool
) -> tuple[dict[str, _Rows], list[RowSummary]]:
    """Returns the usable questions by split, and a summary of each file."""
    summaries = []
    found: dict[str, _Rows] = {"train": [], "test": []}
    seen: set[str] = set()
    unused: Counter[str] = Counter()
    for where, split, questions in _tables(source, encoding, unused):
        rejected = Rejected(where, skip_invalid, "question")
        used: Counter[str] = Counter()
        before, dropped = len(found[split]), len(mismatches)
        number = 0
        for number, question in enumerate(questions, start=1):
            used.update(name for name in _USED if question.get(name) not in (None, ""))
            unused.update(_unread(question))
            row, fault = _row(question, where, number, mismatches)
            if row is not None and row["id"] in seen:
                # Translations of one data set share ids.
                row["id"] = f"{Path(where).stem}/{row['id']}"
                fault = f"its id {row['id']} occurs more than once" if row["id"] in seen else None
            if fault is not None:
                rejected.add(number, fault)
            elif row is not None:
                seen.add(row["id"])
                found[split].append(row)
        mismatched = len(mismatches) - dropped
        summary = RowSummary(
            where=where,
            split=split,
            shapes={"SQuAD": number},
            rows=number,
            kept=len(found[split]) - before,
            used=dict(used),
            unused=dict(unused),
            notes={"answers that do not stand at their answer_start were left out": mismatched} if mismatched else {},
            invalid=rejected.reasons,
            unit="question",
        )
        summary.log()
        summaries.append(summary)
        unused.clear()
    return found, summaries


def _unread(question: Mapping[str, Any]) -> Iterator[str]:
    """Yields the filled fields of a question that nothing reads."""
    yield from (name for name, value in question.items() if name not in _USED and value not in (None, "", []))
    answers = question.get("answers")
    for answer in answers if isinstance(answers, list) else [answers]:
        if isinstance(answer, Mapping):
            yield from (f"answers[].{name}" for name in answer if name not in ("text", "answer_start"))


def _tables(
    source: str, encoding: str | None, unused: Counter[str]
) -> Iterator[tuple[str, str, Iterator[Mapping[str, Any]]]]:
    """Yields a name for messages, the split, and questions with their contexts, for each file or data set.

    Counts the fields around the questions that nothing reads.
    """
    files = None if source.startswith("builtin:") else source_files(source)
    if files is None:
        yield from _row_tables(source, encoding)
        return
    for split, part in split_files(files, source).items():
        for file in part:
            if format_of(file) in (".json", ".jsonl"):
                if is_empty(file):
                    raise DataError(f"{file} is empty: give at least one question")
                rows = read_json(file, encoding=encoding)
                yield str(file), split, (item for _, row in rows for item in _questions(row, str(file), unused))
            else:
                yield from ((where, split, rows) for where, _, rows in _row_tables(str(file), encoding))


def _row_tables(source: str, encoding: str | None) -> Iterator[tuple[str, str, Iterator[Mapping[str, Any]]]]:
    for where, splits in load_rows(source, encoding=encoding):
        for split, rows in splits.items():
            yield where, str(split), iter(rows)


def _questions(row: Mapping[str, Any], where: str, unused: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """Yields the questions in SQuAD's nested lists, each with its context; a flat row is a question itself."""

    def count(fields: Mapping[str, Any], *known: str) -> None:
        unused.update(name for name, value in fields.items() if name not in known and value not in (None, "", []))

    if not any(isinstance(row.get(key), list) for key in ("data", "paragraphs", "qas")):
        yield row
        return
    try:
        if "data" in row:
            count(row, "data")
        for article in row.get("data", [row]):
            if "paragraphs" in article:
                count(article, "paragraphs")
            for paragraph in article.get("paragraphs", [article]):
                count(paragraph, "qas", "context")
                for question in paragraph["qas"]:
                    answers = question.get("answers") or None
                    if answers is None and _is_impossible(question):
                        answers = []
                    yield {**question, "context": paragraph["context"], "answers": answers}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{where} is not in SQuAD's format of nested data, paragraphs, context and qas ({error!r})."
        ) from error


def _is_impossible(question: Mapping[str, Any]) -> bool | None:
    """True if a question says that its context does not answer it; None if its `is_impossible` is neither."""
    value = question.get("is_impossible")
    return False if value in (None, "") else FLAG_VALUES.get(str(value).strip().lower())


def _row(
    question: Mapping[str, Any], where: str, number: int, mismatches: list[Mismatch]
) -> tuple[dict[str, Any] | None, str | None]:
    """Converts a question to a row, or returns what is wrong with it; neither if no answer is left."""
    identity = str(number if question.get("id") is None else question["id"])
    for field in ("question", "context"):
        text = question.get(field)
        if not isinstance(text, str) or not text.strip():
            return None, f"the {field} of {identity} is missing or empty, but must be a text"
    answers = question.get("answers")
    if isinstance(answers, Mapping):
        texts, starts = (
            value if isinstance(value, list) else [value]
            for value in (answers.get("text"), answers.get("answer_start"))
        )
        answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=False)]
        if len(texts) != len(starts):
            return None, f"{identity} has {len(texts)} answers and {len(starts)} offsets"
    if not isinstance(answers, list):
        return (
            None,
            f"{identity} has no answers: if there is none, give an empty list, with is_impossible in nested files",
        )
    is_impossible = _is_impossible(question)
    if is_impossible is None:
        return None, f"{identity} has is_impossible {question['is_impossible']!r:.80}, but it must be true or false"
    if is_impossible and answers:
        return None, f"{identity} has answers although its is_impossible is true: give only one of them"
    kept: dict[str, list[Any]] = {"text": [], "answer_start": []}
    for answer in answers:
        text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, Mapping) else (None, None)
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
            return None, f"{identity} has an answer without text or answer_start: {answer!r:.80}"
        found = question["context"][start : start + len(text)] if start >= 0 else ""
        if found == text:
            kept["text"].append(text)
            kept["answer_start"].append(start)
        else:
            mismatches.append(Mismatch(where, identity, text, start, found))
    if answers and not kept["text"]:
        return None, None
    return {"id": identity, "question": question["question"], "context": question["context"], "answers": kept}, None
