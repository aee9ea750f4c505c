"""Tokenizes conversations and marks the tokens to learn: what the assistant says, with its end mark."""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, Features, Json, List, Value
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..chat_templates import encode_turns
from ..errors import DataError
from ..terminal import visible
from .conversation_rows import Conversation, ConversationReader
from .json_rows import written_json
from .messages import is_blank, is_empty
from .packing import IGNORE_INDEX
from .row_splits import read_splits
from .shapes import PairColumns
from .sources import CorpusSource
from .splits import warn_of_overlap
from .summary import RowSummary

logger = logging.getLogger(__name__)

_FEATURES = Features(
    {"messages": List(Json()), "tools": List(Json()), "source": Value("string"), "place": Value("string")}
)
# The keys of a message that every chat template knows.
_TEMPLATE_KEYS = ("role", "content", "tool_calls", "weight")


class Conversations(NamedTuple):
    """Conversations, and what was done with the rows and columns that they come from.

    Attributes:
        splits: The split `train`, and `test` if anything is held out.
        summaries: One for each file, built-in or Hub data set.
    """

    splits: DatasetDict
    summaries: list[RowSummary]


def load_conversations(
    sources: Sequence[CorpusSource],
    *,
    test_fraction: float = 0.0,
    seed: int = 0,
    skip_invalid: bool = False,
    named: PairColumns | None = None,
) -> DatasetDict:
    """Loads conversations from one or several sources, in any of the `SHAPES`, mixed by weight as in `load_mixture`.

    Args:
        sources: The result of `parse_sources`. The shape of each file is recognized separately.
        test_fraction: Share of conversations to hold out, by a hash of the conversation, from each source without its
            own `test` split.
        seed: Seed of the order in which weighted sources are drawn from.
        skip_invalid: Leave out rows that cannot be used, with a warning that counts them, instead of raising an error.
        named: Columns or templates of question and answer, instead of a recognized shape.

    Returns:
        The split `train`, and `test` if anything is held out. Columns: `messages`, a list of dicts with `role` and
        `content` (and `weight` 0 if the message is not to be learned); `tools`, a list of JSON schemas or None;
        `source`; `place`, the row and file.

    Raises:
        DataError: If a source does not exist, its columns are unknown, or a row cannot be used; the message names the
            row.
        ConfigError: If `named` contradicts itself.
    """
    return read_conversations(
        sources, test_fraction=test_fraction, seed=seed, skip_invalid=skip_invalid, named=named
    ).splits


def read_conversations(
    sources: Sequence[CorpusSource],
    *,
    test_fraction: float = 0.0,
    seed: int = 0,
    skip_invalid: bool = False,
    named: PairColumns | None = None,
) -> Conversations:
    """Does the work of `load_conversations`, and also returns a summary of each table."""
    if named is not None:
        named.check()
    splits, summaries = read_splits(
        sources,
        lambda where: ConversationReader(where, named),
        _columns,
        _FEATURES,
        key=lambda rows: map(conversation_key, rows["messages"]),
        units=("conversation", "conversations"),
        test_fraction=test_fraction,
        seed=seed,
        skip_invalid=skip_invalid,
    )
    return Conversations(splits, summaries)


def _columns(read: Conversation) -> dict[str, Any]:
    return {"messages": as_json(read.messages), "tools": as_json(read.tools)}


def as_json(items: Sequence[Any] | None) -> list[str] | None:
    """Returns messages or tools as text for a `Json` column, because the data set's own writer rounds numbers."""
    return None if items is None else list(map(written_json, items))


def conversation_key(messages: list[dict[str, Any]]) -> str:
    """Returns the text whose hash decides whether a conversation is held out."""
    return json.dumps(messages, sort_keys=True, ensure_ascii=False)


def warn_of_shared_prompts(train: Dataset, held_out: Dataset) -> None:
    """Logs a warning that counts the held-out rows whose `prompt`, a list of messages, is also trained on."""
    warn_of_overlap(*(map(conversation_key, rows["prompt"]) for rows in (train, held_out)), unit="prompt")


class InvalidRows:
    """Rows that cannot be encoded: the first one is an error, or all are left out and counted.

    Args:
        skip: Leave them out.
    """

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self._messages: list[str] = []

    def add(self, place: str, error: DataError) -> None:
        """Counts a row of which `place` names number and file, or raises `DataError` with them."""
        message = f"{place[0].upper()}{place[1:]}: {error}"
        if not self._skip:
            raise DataError(message) from error
        self._messages.append(message)

    def warn(self, noun: str) -> int:
        """Logs a warning about the rows that were left out, if there are any; returns their number."""
        if self._messages:
            logger.warning("%d %s are left out; the first: %s.", len(self._messages), noun, self._messages[0])
        return len(self._messages)


def tokenize_conversations(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    long_conversations: str = "cut",
    skip_invalid: bool = False,
) -> Dataset:
    """Tokenizes conversations to `input_ids` and `labels`, with -100 on everything that the assistant does not say.

    Drops rows without a target. Logs the number of dropped rows and of long conversations, and the keys of messages
    that the chat template leaves out.

    Args:
        dataset: Conversations with a column `messages` and optionally `tools` and `place`, as `load_conversations`
            returns them.
        max_length: Maximum number of tokens in a row.
        long_conversations: How to treat longer ones: `cut` drops their end, `drop` drops the whole conversation, and
            `keep` splits it over several rows, each starting with the last token of the row before.
        skip_invalid: Leave out conversations that the chat template refuses or does not show in full, with a warning
            that counts them, instead of raising an error.

    Raises:
        DataError: If no row has a target, a row has something other than messages, or the chat template leaves out
            the words of the system or user, or makes an empty turn of the assistant's.
    """
    long = 0
    invalid = InvalidRows(skip_invalid)
    left_out: Counter[str] = Counter()

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[list[int]]]:
        nonlocal long
        rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        tools = batch.get("tools") or [None] * len(indices)
        places = batch.get("place") or [f"row {index + 1}" for index in indices]
        for messages, row_tools, place in zip(batch["messages"], tools, places, strict=True):
            try:
                ids, labels = encode_messages(messages, row_tools, tokenizer, left_out)
            except DataError as error:
                invalid.add(place, error)
                continue
            limit = max_length or len(ids)
            if len(ids) > limit:
                long += 1
                if long_conversations == "drop":
                    continue
            starts = range(0, max(1, len(ids) - 1), max(1, limit - 1)) if long_conversations == "keep" else (0,)
            for start in starts:
                rows["input_ids"].append(ids[start : start + limit])
                rows["labels"].append(labels[start : start + limit])
        return rows

    rows = dataset.map(
        encode,
        batched=True,
        batch_size=100,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))}),
        # A cached result would not restore the counter.
        load_from_cache_file=False,
        desc="Tokenizing conversations",
    )
    if long:
        done = {"cut": "their end is cut off", "drop": "they are dropped", "keep": "they are split over several rows"}
        logger.warning(
            "%d of %d conversations are longer than %d tokens: %s.",
            long,
            len(dataset),
            max_length,
            done[long_conversations],
        )
    invalid.warn("conversations")
    warn_of_keys(left_out)
    kept = rows.filter(_has_target, input_columns="labels", load_from_cache_file=False)
    if len(kept) == 0:
        raise DataError(
            f"None of the {len(dataset)} conversations has an assistant turn to learn from within {max_length or 'its'} "
            "tokens."
        )
    if len(kept) < len(rows):
        logger.warning("%d of %d rows have nothing to learn from and were dropped.", len(rows) - len(kept), len(rows))
    return kept


def _has_target(labels: list[int]) -> bool:
    # Nothing predicts the first token of a row.
    return any(label != IGNORE_INDEX for label in labels[1:])


def encode_messages(
    messages: Any, tools: Any, tokenizer: PreTrainedTokenizerBase, left_out: Counter[str]
) -> tuple[list[int], list[int]]:
    """Tokenizes one conversation; counts the keys of messages that the template leaves out in `left_out`.

    Returns:
        `input_ids` and `labels`, both (seq,); labels are -100 where nothing is learned.

    Raises:
        DataError: See `tokenize_conversations`; the message does not name the row.
    """
    if not messages:
        return [], []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"it has no list of messages with role and content, but {messages!r:.80}")
    shown = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    encoded = encode_turns(tokenizer, shown, tools=tools)
    answers = [message for message in messages if message["role"] == "assistant"]
    learned = [message.get("weight") != 0 for message in answers]
    if len(encoded.turns) == len(answers):
        for message, text, is_learned in zip(answers, encoded.turns, learned, strict=True):
            if is_learned and is_empty(text):
                raise DataError(f"the chat template makes an empty turn of the assistant's message {message!r:.80}")
    elif encoded.turns and not all(learned):
        raise DataError(
            f"the chat template marks {len(encoded.turns)} turns for the assistant's {len(answers)} messages, so it is "
            "unknown which of them must not be learned"
        )
    else:
        learned = [True] * len(encoded.turns)
    _check_shown(shown, encoded.text, encoded.template, left_out)
    # A name may occur in the text by chance: then nothing is said.
    left_out["tools"] += any(_name_of(tool) not in encoded.text for tool in tools or [])
    for message in answers:
        left_out["tool_calls"] += any(_name_of(call) not in encoded.text for call in message.get("tool_calls") or [])
    labels = [
        token if turn and learned[turn - 1] else IGNORE_INDEX
        for token, turn in zip(encoded.input_ids, encoded.turn, strict=True)
    ]
    return encoded.input_ids, labels


def _name_of(tool: Any) -> str:
    """The name of the function of a tool or a call; empty if it has none."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return str(function.get("name") or "") if isinstance(function, dict) else ""


def warn_of_keys(left_out: Counter[str]) -> None:
    """Logs a warning about the keys of messages, and the tools, that the template leaves out, if there are any."""
    if left_out := +left_out:
        counts = ", ".join(f"{key} ({count})" for key, count in left_out.most_common())
        logger.warning("The chat template does not show these keys of messages, so they are not learned: %s.", counts)


def _check_shown(messages: list[dict[str, Any]], text: str, template: str, left_out: Counter[str]) -> None:
    """Raises if the template left out what the system or user says; counts other keys that it left out."""
    for number, message in enumerate(messages, start=1):
        content = message.get("content")
        if message["role"] in ("system", "user") and isinstance(content, str) and content.strip() not in text:
            raise DataError(f"the chat template leaves out message {number}, the {message['role']}'s: {content!r:.80}")
        for key, value in message.items():
            if key in _TEMPLATE_KEYS or is_blank(value):
                continue
            # The template may ask for a name that only tools have, and a number may occur in the text by chance.
            if not re.search(rf"\b{re.escape(key)}\b", template) or str(value).strip() not in text:
                left_out[key] += 1


def share_supervised(rows: Dataset) -> float:
    """Returns the share of the tokens in `labels` that are learned."""
    labels = [label for row in rows["labels"] for label in row]
    return sum(label != IGNORE_INDEX for label in labels) / len(labels)


def show_masks(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Prints rows of `tokenize_conversations`, with learned text in color or, without color, between marks."""
    console = Console(highlight=False)
    for number, row in enumerate(rows, start=1):
        learned = sum(label != IGNORE_INDEX for label in row["labels"])
        console.rule(f"row {number}: {learned} of {len(row['labels'])} tokens are learned")
        text = Text()
        spans = groupby(zip(row["input_ids"], row["labels"], strict=True), lambda pair: pair[1] != IGNORE_INDEX)
        for is_learned, pairs in spans:
            piece = visible(tokenizer.decode([token for token, _ in pairs], skip_special_tokens=False))
            if is_learned:
                text.append(piece if console.color_system else f"⟦{piece}⟧", style="bold green")
            else:
                text.append(piece, style="dim")
        console.print(text)
