"""Loads preferences: pairs of a better and a worse answer, and single answers that are judged."""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from datasets import DatasetDict, Features, Json, List, Value

from ..errors import ConfigError, DataError
from .conversation_rows import SingleRowReader
from .conversations import as_json, conversation_key, warn_of_shared_prompts
from .messages import Message, check_conversation, is_blank, normalize_messages, text_of
from .preference_shapes import (
    KNOWN,
    MARKS,
    PreferenceColumns,
    WrittenPair,
    is_kto,
    is_whole,
    joined,
    named_cells,
    pair_in,
    preference_in,
    read_pairs,
    tools_in,
    verdict_of,
)
from .row_splits import read_splits
from .shapes import Cells, Row, as_turns, asked, find_shape
from .sources import CorpusSource
from .summary import RowSummary
from .tables import read_tables

KINDS = ("pairs", "judged")
_MESSAGES = List(Json())
_ORIGIN = {"tools": _MESSAGES, "source": Value("string"), "place": Value("string")}
_FEATURES = {
    "pairs": Features(
        {"prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES, "margin": Value("float64"), **_ORIGIN}
    ),
    "judged": Features({"prompt": _MESSAGES, "completion": _MESSAGES, "label": Value("bool"), **_ORIGIN}),
}
# Columns with the scores of both sides, by the names of UltraFeedback, other sets of the Hub, and Argilla.
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer.

    Attributes:
        prompt: Messages before the answers, as in a `Conversation`.
        chosen, rejected: Messages of each side: the assistant's, and possibly tools' and further turns.
        margin: How much better the chosen side is; None if the data do not say.
        tools: The tools that the assistant may call, as JSON schemas.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float | None = None
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Judged:
    """A prompt with an answer that is good or bad.

    Attributes:
        prompt: Messages before the answer, as in a `Conversation`.
        completion: The answer: what follows the last message of the user.
        label: True for a good answer.
        tools: The tools that the assistant may call, as JSON schemas.
    """

    prompt: list[Message]
    completion: list[Message]
    label: bool
    tools: list[dict[str, Any]] | None = None


class Preferences(NamedTuple):
    """Preferences, and what was done with the rows and columns that they come from.

    Attributes:
        kind: `pairs` or `judged`.
        splits: The split `train`, and `test` if anything is held out; see `read_preferences`.
        summaries: One for each file, built-in or Hub data set.
    """

    kind: str
    splits: DatasetDict
    summaries: list[RowSummary]


class PreferenceReader(SingleRowReader):
    """Reads the preferences of one table; see `ConversationReader` for what it counts.

    Args:
        where: Name of the table, for messages.
        kind: `pairs`, or `judged`, which turns a pair into two judged answers.
        named: Columns that the user named.
    """

    def __init__(self, where: str, kind: str, named: PreferenceColumns | None = None) -> None:
        super().__init__(where, (named or PreferenceColumns()).names())
        self.kind = kind
        self._columns = named

    def _cells(self, row: Row) -> Cells:
        return named_cells(row, self._columns)

    def _read_row(self, row: Row, cells: Cells) -> list[Any]:
        if not self._is_read(row, cells):
            return []
        tools = tools_in(cells)
        if pair_in(cells):
            written = read_pairs(cells, contexts="prompt" not in self._named)
            margin = _margin(cells)
            pairs = [pair for each in written if (pair := self._pair(each, margin, tools))]
            if margin is not None and margin < 0:
                self.notes["pairs whose scores prefer the rejected side"] += len(pairs)
            self.shapes["a chosen and a rejected answer"] += 1
            return pairs if self.kind == "pairs" else [part for pair in pairs for part in self._two_judged(pair)]
        if not any(name in cells for name in MARKS):
            raise DataError(_no_preference(row, cells))
        judged = self._judged(row, cells, tools)
        if self.kind == "pairs":
            raise DataError(
                "it is one answer with a label, among pairs of answers: put the two kinds in separate files"
            )
        self.shapes["an answer with a label"] += 1
        return [judged]

    def _pair(
        self, written: WrittenPair, margin: float | None, tools: list[dict[str, Any]] | None
    ) -> Preference | None:
        """Returns a pair; None if its sides are equal, which is counted."""
        counts = [(Counter[str](), Counter[str]()) for _ in range(2)]
        chosen, rejected = (
            _normalized(joined(written.prompt, turns, side), side, *counted)
            for side, turns, counted in zip(
                ("chosen", "rejected"), (written.chosen, written.rejected), counts, strict=True
            )
        )
        # The prompt is part of both sides and counts once.
        (unused, notes), (others, other_notes) = counts
        self.unused += unused | others
        self.notes += notes | other_notes
        same = _common(chosen, rejected)
        if same == len(chosen) == len(rejected):
            self.notes["pairs with equal sides were left out"] += 1
            return None
        if not (is_whole(written.chosen) or is_whole(written.rejected)):
            # Answers to a prompt, which ends there even if the answers begin alike.
            same = len(normalize_messages(written.prompt, Counter(), Counter())) if written.prompt else 0
        elif any(len(side) == same or side[same]["role"] != "assistant" for side in (chosen, rejected)):
            raise DataError(
                f"its chosen and rejected have different prompts: they part at message {same + 1}, which is not the "
                "assistant's in both"
            )
        if not same:
            raise DataError("it has no prompt: give one, or whole conversations in chosen and rejected")
        return Preference(chosen[:same], chosen[same:], rejected[same:], margin, tools)

    def _two_judged(self, pair: Preference) -> list[Judged]:
        self.notes["pairs were read as two answers with a label"] += 1
        return [Judged(pair.prompt, side, side is pair.chosen, pair.tools) for side in (pair.chosen, pair.rejected)]

    def _judged(self, row: Row, cells: Cells, tools: list[dict[str, Any]] | None) -> Judged:
        label = verdict_of(cells)
        if "completion" in self._named:
            before = asked(cells, contexts="prompt" not in self._named)
            written = [[*before, *as_turns(cells.take("completion"), "assistant")]]
        else:
            written = find_shape(row, cells).read(cells)
        if len(written) != 1:
            raise DataError(f"it has {len(written)} conversations and one label: give a row for each answer")
        messages = _normalized(written[0], "answer", self.unused, self.notes)
        asks = [index for index, message in enumerate(messages) if message["role"] in ("system", "user")]
        if not asks:
            raise DataError("it has no prompt")
        return Judged(messages[: asks[-1] + 1], messages[asks[-1] + 1 :], label, tools)


def read_preferences(
    sources: Sequence[CorpusSource],
    *,
    kind: str | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    skip_invalid: bool = False,
    named: PreferenceColumns | None = None,
) -> Preferences:
    """Reads preferences from one or several sources, in any of the known forms, mixed by weight as in `load_mixture`.

    Pairs with equal sides are left out and counted.

    Args:
        sources: The result of `parse_sources`. The form of each row is recognized separately.
        kind: `pairs`, or `judged` for single answers with a label; by the first row if not given. `judged` also takes
            pairs, each as a good and a bad answer.
        test_fraction: Share of the prompts to hold out, by a hash of the prompt, from each source without its own
            `test` split. All answers to a prompt are on the same side.
        seed: Seed of the order in which weighted sources are drawn from.
        skip_invalid: Leave out rows that cannot be used, with a warning that counts them, instead of raising an error.
        named: Columns to read instead of those with the usual names.

    Returns:
        The kind; the split `train`, and `test` if anything is held out; and a summary of each table. Columns of pairs:
        `prompt`, `chosen` and `rejected`, lists of messages; `margin`, a number or None. Of judged answers: `prompt`,
        `completion`, `label`. Of both: `tools`, a list of JSON schemas or None; `source`; `place`, the row and file.

    Raises:
        DataError: If a source does not exist, or a row is no preference or cannot be used: its sides have different
            prompts, or one is missing, empty, or does not end with the assistant. The message names the row and column.
        ConfigError: If `kind` is unknown.
    """
    if kind is None:
        kind = _kind_of(_first_cells(sources, named))
    if kind not in KINDS:
        raise ConfigError(f"the kind of preferences is {kind!r}: give one of {', '.join(KINDS)}")
    splits, summaries = read_splits(
        sources,
        partial(PreferenceReader, kind=kind, named=named),
        _columns,
        _FEATURES[kind],
        key=lambda rows: map(conversation_key, rows["prompt"]),
        units=("prompt", "preferences"),
        test_fraction=test_fraction,
        seed=seed,
        skip_invalid=skip_invalid,
    )
    if "test" in splits:
        warn_of_shared_prompts(splits["train"], splits["test"])
    return Preferences(kind, splits, summaries)


def load_preferences(sources: Sequence[CorpusSource], **options: Any) -> DatasetDict:
    """Returns the splits of `read_preferences`, which takes the same arguments."""
    return read_preferences(sources, **options).splits


def kind_of_preferences(sources: Sequence[CorpusSource], named: PreferenceColumns | None = None) -> str | None:
    """Returns the kind of the preferences in the sources' first row: `pairs`, `judged`, or None if it is no preference.

    Raises:
        DataError: If the first source cannot be read.
    """
    cells = _first_cells(sources, named)
    # A cell that is broken is named, with its row, by the reader of the rows.
    with suppress(DataError):
        if cells is not None and (preference_in(cells) or (named is not None and named.names()) or is_kto(cells)):
            return _kind_of(cells)
    return None


def _first_cells(sources: Sequence[CorpusSource], named: PreferenceColumns | None) -> Cells | None:
    for table in read_tables(sources[0].source, encoding=sources[0].encoding):
        for row in table.rows():
            if not all(map(is_blank, row.values())):
                return named_cells(row, named)
    return None


def _kind_of(cells: Cells | None) -> str:
    with suppress(DataError):
        if cells is not None and not pair_in(cells) and any(not is_blank(cells.peek(name)) for name in MARKS):
            return "judged"
    return "pairs"


def _columns(read: Preference | Judged) -> dict[str, Any]:
    if isinstance(read, Preference):
        sides: dict[str, Any] = {"chosen": as_json(read.chosen), "rejected": as_json(read.rejected)}
        sides["margin"] = read.margin
    else:
        sides = {"completion": as_json(read.completion), "label": read.label}
    return {"prompt": as_json(read.prompt), **sides, "tools": as_json(read.tools)}


def _normalized(messages: list[Any], side: str, unused: Counter[str], notes: Counter[str]) -> list[Message]:
    """Returns the checked messages of a conversation that ends with one side."""
    try:
        normalized = normalize_messages(messages, unused, notes)
        check_conversation(normalized)
    except DataError as error:
        raise DataError(f"with its {side}, {error}") from error
    if not normalized or normalized[-1]["role"] != "assistant":
        last = f"a message of the {normalized[-1]['role']}'s" if normalized else "nothing"
        raise DataError(f"its {side} ends with {last}: it must end with the assistant's answer")
    return normalized


def _common(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Returns the number of messages with which both conversations begin."""
    pairs = enumerate(zip(map(_said, chosen), map(_said, rejected), strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))


def _said(message: Message) -> Message:
    return {
        key: value.strip() if isinstance(value, str) else value for key, value in message.items() if key != "weight"
    }


def _margin(cells: Cells) -> float | None:
    """Returns how much better the chosen side is: a margin in a column, or the difference of two scores."""
    names = ("margin",) if not is_blank(cells.peek("margin")) else _filled_scores(cells)
    numbers = []
    for name in names:
        value = cells.take(name)
        try:
            numbers.append(float(text_of(value) or ""))
        except ValueError as error:
            raise DataError(f"its {name} is no number, but {value!r:.80}") from error
        if not math.isfinite(numbers[-1]):
            raise DataError(f"its {name} is {value!r:.80}: give a finite number")
    return numbers[0] - sum(numbers[1:]) if numbers else None


def _filled_scores(cells: Cells) -> tuple[str, ...]:
    return next((names for names in _SCORES if not any(is_blank(cells.peek(name)) for name in names)), ())


def _no_preference(row: Row, cells: Cells) -> str:
    try:
        find_shape(row, cells)
    except DataError:
        return f"it has the columns {', '.join(map(str, row)) or 'none'}, which are no preference. Known: {KNOWN}"
    return (
        "it is a conversation without a rejected answer and without a label: chatgpt-hf sft trains on those. Preferences are "
        f"{KNOWN}"
    )
