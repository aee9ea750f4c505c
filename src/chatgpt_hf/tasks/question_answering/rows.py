"""Reads questions whose answers are spans of a text, in SQuAD's format (Rajpurkar et al. 2016 and 2018)."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from ...data.corpus import load_rows
from ...data.files import format_of, is_empty, source_files
from ...data.json_rows import read_json
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
    """

    train: Dataset
    test: Dataset | None
    mismatches: list[Mismatch]


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
    rows = _read(source, mismatches, encoding, skip_invalid)
    held_out = None if eval_source is None else _read(eval_source, mismatches, encoding, skip_invalid)
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
    return SquadSplits(parts["train"], parts["test"] if len(parts["test"]) else None, mismatches)


_Rows = list[dict[str, Any]]


def _read(source: str, mismatches: list[Mismatch], encoding: str | None, skip_invalid: bool) -> dict[str, _Rows]:
    found: dict[str, _Rows] = {"train": [], "test": []}
    seen: set[str] = set()
    for where, split, questions in _tables(source, encoding):
        rejected = Rejected(where, skip_invalid, "question")
        for number, question in enumerate(questions, start=1):
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
        rejected.log()
    return found


def _tables(source: str, encoding: str | None) -> Iterator[tuple[str, str, Iterator[Mapping[str, Any]]]]:
    """Yields a name for messages, the split, and questions with their contexts, for each file or data set."""
    files = None if source.startswith("builtin:") else source_files(source)
    for file in files or ():
        if format_of(file) in (".json", ".jsonl"):
            if is_empty(file):
                raise DataError(f"{file} is empty: give at least one question")
            yield (
                str(file),
                "train",
                (item for _, row in read_json(file, encoding=encoding) for item in _questions(row, str(file))),
            )
        else:
            yield from _row_tables(str(file), encoding)
    if files is None:
        yield from _row_tables(source, encoding)


def _row_tables(source: str, encoding: str | None) -> Iterator[tuple[str, str, Iterator[Mapping[str, Any]]]]:
    for where, splits in load_rows(source, encoding=encoding):
        for split, rows in splits.items():
            yield where, str(split), iter(rows)


def _questions(row: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    """Yields the questions in SQuAD's nested lists, each with its context; a flat row is a question itself."""
    if not any(isinstance(row.get(key), list) for key in ("data", "paragraphs", "qas")):
        yield row
        return
    try:
        for article in row.get("data", [row]):
            for paragraph in article.get("paragraphs", [article]):
                for question in paragraph["qas"]:
                    has_answers = question.get("answers") or question.get("is_impossible")
                    answers = question.get("answers", []) if has_answers else None
                    if question.get("is_impossible"):
                        answers = []
                    yield {**question, "context": paragraph["context"], "answers": answers}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{where} is not in SQuAD's format of nested data, paragraphs, context and qas ({error!r})."
        ) from error


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
