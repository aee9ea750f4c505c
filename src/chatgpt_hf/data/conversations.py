"""Tokenizes conversations and marks the tokens to learn: what the assistant says, with its end mark."""

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Json,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
)
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from ..tokenization_chatgpt import encode_conversation
from .corpus import load_rows
from .packing import IGNORE_INDEX
from .shapes import find_shape, read_rows
from .sources import CorpusSource, probabilities
from .splits import hold_out

logger = logging.getLogger(__name__)

_FEATURES = Features({"messages": List(Json()), "tools": List(Json()), "source": Value("string")})


def load_conversations(
    sources: Sequence[CorpusSource],
    *,
    test_fraction: float = 0.0,
    seed: int = 0,
    skip_invalid: bool = False,
) -> DatasetDict:
    """Loads conversations from one or several sources, in any of the `SHAPES`, mixed by weight as in `load_mixture`.

    Args:
        sources: The result of `parse_sources`. The shape of each file is recognized separately.
        test_fraction: Share of conversations to hold out, by a hash of the conversation, from each source without its
            own `test` split.
        seed: Seed of the order in which weighted sources are drawn from.
        skip_invalid: Leave out rows that cannot be used, with a warning that counts them, instead of raising an error.

    Returns:
        The split `train`, and `test` if anything is held out. Columns: `messages`, a list of dicts with `role` and
        `content`; `tools`, a list of JSON schemas or None; `source`.

    Raises:
        DataError: If a source does not exist, its columns are unknown, or a row cannot be used; the message names the
            row.
    """
    train, test = [], []
    for source in sources:
        parts: dict[str, list[Dataset]] = {}
        for where, splits in load_rows(source.source):
            for name, split in splits.items():
                parts.setdefault(name, []).append(_read(split, where, source.source, skip_invalid))
        if "train" not in parts:
            raise DataError(f"{source.source} has no split `train`; it has {', '.join(sorted(parts))}.")
        rows = concatenate_datasets(parts["train"])
        held_out = parts.get("test")
        if held_out is None and test_fraction:
            sides = hold_out(
                map(conversation_key, rows["messages"]), test_fraction, source.source, unit="conversation"
            )
            held_out = [rows.select([index for index, side in enumerate(sides) if side])]
            rows = rows.select([index for index, side in enumerate(sides) if not side])
        if len(rows) == 0:
            raise DataError(f"{source.source} has no conversations to train on.")
        train.append(rows)
        test += held_out or []
    result = DatasetDict(train=concatenate_datasets(train))
    if shares := probabilities(sources):
        result["train"] = interleave_datasets(train, shares, seed=seed, stopping_strategy="all_exhausted")
    if any(len(part) for part in test):
        result["test"] = concatenate_datasets(test)
    return result


def _read(rows: Dataset, where: str, source: str, skip_invalid: bool) -> Dataset:
    """Reads the conversations of one table."""
    shape = find_shape(rows, where)
    invalid: list[str] = []

    def conversations() -> Iterator[dict[str, Any]]:
        for number, read in read_rows(shape, rows):
            if isinstance(read, DataError):
                invalid.append(f"row {number} of {where} cannot be used: {read}")
                if not skip_invalid:
                    return
            else:
                yield {**read._asdict(), "source": source}

    result = Dataset.from_list(list(conversations()), _FEATURES)
    if invalid and not skip_invalid:
        raise DataError(f"{invalid[0][0].upper()}{invalid[0][1:]} (--skip_invalid leaves such rows out).")
    if invalid:
        logger.warning("%d rows of %s are left out; the first: %s.", len(invalid), where, invalid[0])
    return result


def conversation_key(messages: list[dict[str, Any]]) -> str:
    """Returns the text whose hash decides whether a conversation is held out."""
    return json.dumps(messages, sort_keys=True, ensure_ascii=False)


def tokenize_conversations(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    long_conversations: str = "cut",
) -> Dataset:
    """Tokenizes conversations to `input_ids` and `labels`, with -100 on everything that the assistant does not say.

    Drops rows without a target. Logs the number of dropped rows and of long conversations.

    Args:
        dataset: Conversations with a column `messages` and optionally `tools`, as `load_conversations` returns them.
        max_length: Maximum number of tokens in a row.
        long_conversations: How to treat longer ones: `cut` drops their end, `drop` drops the whole conversation, and
            `keep` splits it over several rows, each starting with the last token of the row before.

    Raises:
        DataError: If no row has a target, or a row has something other than messages.
    """
    long = 0

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[list[int]]]:
        nonlocal long
        rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        tools = batch.get("tools") or [None] * len(indices)
        for messages, row_tools, index in zip(batch["messages"], tools, indices, strict=True):
            ids, labels = _encode(messages, row_tools, tokenizer, index)
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
    kept = rows.filter(_has_target, input_columns="labels", load_from_cache_file=False)
    if len(kept) == 0:
        raise DataError(
            f"None of the {len(dataset)} conversations has an assistant turn to learn from within {max_length or 'its'} "
            "tokens (is the chat template missing its {% generation %} mark?)."
        )
    if len(kept) < len(rows):
        logger.warning("%d of %d rows have nothing to learn from and were dropped.", len(rows) - len(kept), len(rows))
    return kept


def _has_target(labels: list[int]) -> bool:
    # Nothing predicts the first token of a row.
    return any(label != IGNORE_INDEX for label in labels[1:])


def _encode(messages: Any, tools: Any, tokenizer: PreTrainedTokenizerBase, index: int) -> tuple[list[int], list[int]]:
    if not messages:
        return [], []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"Row {index + 1} has no list of messages with role and content, but {messages!r:.80}.")
    try:
        encoded = encode_conversation(tokenizer, messages, tools=tools)
    except DataError as error:
        raise DataError(f"Row {index + 1}: {error}") from error
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    return encoded["input_ids"], [token if mask else IGNORE_INDEX for token, mask in pairs]


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
            piece = tokenizer.decode([token for token, _ in pairs], skip_special_tokens=False)
            if is_learned:
                text.append(piece if console.color_system else f"⟦{piece}⟧", style="bold green")
            else:
                text.append(piece, style="dim")
        console.print(text)
