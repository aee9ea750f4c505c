"""Tokenizes preferences and marks the tokens to score: exactly those of each side that `sft` would learn."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..terminal import visible
from .conversations import InvalidRows, encode_messages, warn_of_keys
from .packing import IGNORE_INDEX

logger = logging.getLogger(__name__)

# How to treat preferences that are too long. Unlike a conversation, a side cannot be split over several rows.
LONG = ("cut", "drop")
# The sides of each kind of preferences.
_SIDES = {"pairs": ("chosen", "rejected"), "judged": ("completion",)}
_IDS = List(Value("int64"))


class EncodedSides(NamedTuple):
    """The answers to one prompt as tokens.

    Attributes:
        prompt_ids: Token ids that all sides begin with, (prompt,).
        ids: For each side the ids that follow, up to the last one that is scored, (side,).
        masks: For each side 1 where a token is scored, (side,). All ones, except in sides of several turns.
    """

    prompt_ids: list[int]
    ids: list[list[int]]
    masks: list[list[int]]


class TokenizedPreferences(NamedTuple):
    """Preferences as tokens.

    Attributes:
        rows: The result of `tokenize_preferences`.
        notes: What was cut or left out, with the number of times.
    """

    rows: Dataset
    notes: dict[str, int]


def tokenize_preferences(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    long_preferences: str = "cut",
    skip_invalid: bool = False,
) -> TokenizedPreferences:
    """Tokenizes preferences with the encoding that `sft` uses, so that training scores what fine-tuning taught.

    The end mark of an answer is scored, what the chat template writes after it is not, and text that looks like a
    special token does not become one. Logs the number of rows that are cut or left out.

    Args:
        dataset: A split of `read_preferences`, of either kind.
        tokenizer: A fast tokenizer with a chat template.
        max_length: Maximum number of tokens of a prompt with one side.
        long_preferences: How to treat longer ones: `cut` drops their end, `drop` drops the row. Rows whose prompt
            leaves no room for an answer are always dropped.
        skip_invalid: Leave out rows that the chat template refuses or does not show in full, with a warning that
            counts them, instead of raising an error.

    Returns:
        Rows of pairs have `prompt_ids`, `chosen_ids`, `rejected_ids`, `chosen_mask`, `rejected_mask`, and `margin` if
        every pair has one. Rows of judged answers have `prompt_ids`, `completion_ids`, `completion_mask` and `label`.
        Prompt and side together are the conversation's ids, up to the last token that is scored; masks are 1 where a
        token is scored. These are the columns of TRL's DPO and KTO trainers, which score whole sides and so need the
        masks only for sides of several turns.

    Raises:
        DataError: If no row is left, or a row cannot be encoded; see `tokenize_conversations`.
        ConfigError: If `long_preferences` is unknown.
    """
    if long_preferences not in LONG:
        raise ConfigError(f"long_preferences is {long_preferences!r}: give one of {', '.join(LONG)}")
    sides = _SIDES["pairs" if "chosen" in dataset.column_names else "judged"]
    columns = {"prompt_ids": _IDS, **{f"{side}_{part}": _IDS for side in sides for part in ("ids", "mask")}}
    if sides == _SIDES["judged"]:
        columns["label"] = Value("bool")
    elif "margin" in dataset.column_names and (margins := _margins(dataset)):
        columns["margin"] = margins
    notes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    invalid = InvalidRows(skip_invalid)

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in columns}
        for position, index in enumerate(indices):
            row = {name: values[position] for name, values in batch.items()}
            try:
                encoded = encode_sides(
                    row["prompt"], [row[side] for side in sides], row.get("tools"), tokenizer, left_out
                )
            except DataError as error:
                invalid.add(row.get("place") or f"row {index + 1}", error)
                continue
            fitted = _fitted(encoded, max_length, long_preferences, notes)
            if fitted is None:
                continue
            rows["prompt_ids"].append(fitted.prompt_ids)
            for side, ids, mask in zip(sides, fitted.ids, fitted.masks, strict=True):
                rows[f"{side}_ids"].append(ids)
                rows[f"{side}_mask"].append(mask)
            for name in ("label", "margin"):
                if name in columns:
                    rows[name].append(row[name])
        return rows

    rows = dataset.map(
        encode,
        batched=True,
        batch_size=100,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(columns),
        # A cached result would not restore the counters.
        load_from_cache_file=False,
        desc="Tokenizing preferences",
    )
    for note, count in notes.items():
        logger.warning("%d of %d preferences %s.", count, len(dataset), note)
    if count := invalid.warn("preferences"):
        notes["were refused by the chat template and left out"] += count
    warn_of_keys(left_out)
    if len(rows) == 0:
        raise DataError(
            f"None of the {len(dataset)} preferences has answers to compare within {max_length or 'its'} tokens."
        )
    return TokenizedPreferences(rows, dict(notes))


def encode_sides(
    prompt: Sequence[dict[str, Any]],
    sides: Sequence[Sequence[dict[str, Any]]],
    tools: Sequence[dict[str, Any]] | None,
    tokenizer: PreTrainedTokenizerBase,
    left_out: Counter[str] | None = None,
) -> EncodedSides:
    """Tokenizes the answers to one prompt; scored is what `sft` would learn of them.

    Args:
        prompt: The messages before the answers.
        sides: The messages of each answer.
        tools: JSON schemas of functions that the assistant may call.
        tokenizer: A fast tokenizer with a chat template.
        left_out: Counts the keys of messages that the template leaves out.

    Raises:
        DataError: If the chat template refuses a conversation, writes the prompt differently for different answers, or
            nothing of a side is scored.
    """
    # What the assistant said before is context, as with this flag in conversations.
    context = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in prompt]
    counts: list[Counter[str]] = []
    encoded = []
    for side in sides:
        counts.append(Counter())
        ids, labels = encode_messages([*context, *side], tools, tokenizer, counts[-1])
        scored = [index for index, label in enumerate(labels) if label != IGNORE_INDEX]
        if not scored:
            raise DataError("nothing of an answer is scored: all its messages are marked not to be learned")
        encoded.append((ids[: scored[-1] + 1], labels[: scored[-1] + 1], scored[0]))
    start = min(first for _, _, first in encoded)
    prompt_ids = encoded[0][0][:start]
    if any(ids[:start] != prompt_ids for ids, _, _ in encoded):
        raise DataError(
            "the chat template writes the prompt differently for the two answers, so they cannot be compared"
        )
    if left_out is not None:
        for key in {key for count in counts for key in count}:
            # The prompt is part of every side and counts once.
            left_out[key] += max(count[key] for count in counts)
    return EncodedSides(
        prompt_ids,
        [ids[start:] for ids, _, _ in encoded],
        [[int(label != IGNORE_INDEX) for label in labels[start:]] for _, labels, _ in encoded],
    )


def _margins(dataset: Dataset) -> Value | None:
    """Returns the type of the column `margin`, if every pair has one; warns if only some have."""
    given = sum(margin is not None for margin in dataset["margin"])
    if 0 < given < len(dataset):
        logger.warning("%d of %d pairs have no margin, so no margin is used.", len(dataset) - given, len(dataset))
    return Value("float64") if 0 < given == len(dataset) else None


def _fitted(encoded: EncodedSides, max_length: int | None, long: str, notes: Counter[str]) -> EncodedSides | None:
    """Returns the tokens that fit; None, and a note, if the row is left out."""
    prompt, sides, masks = encoded
    room = max(map(len, sides)) if max_length is None else max_length - len(prompt)
    if any(len(side) > room for side in sides):
        if long == "drop":
            notes[f"are longer than {max_length} tokens and are left out"] += 1
            return None
        sides, masks = ([part[: max(0, room)] for part in parts] for parts in (sides, masks))
        if not all(map(any, masks)):
            notes[f"have a prompt that leaves no room for an answer in {max_length} tokens and are left out"] += 1
            return None
        notes[f"are longer than {max_length} tokens: their end is cut off"] += 1
    if len(sides) == 2 and sides[0] == sides[1]:
        notes["have the same tokens on both sides and are left out"] += 1
        return None
    return EncodedSides(prompt, sides, masks)


def preference_parts(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool | str]]:
    """Returns the text of a tokenized row in parts, each with the name of its side if it is scored, else with False."""
    parts: list[tuple[str, bool | str]] = [(_text(row["prompt_ids"], tokenizer), False)]
    kind = "pairs" if "chosen_ids" in row else "judged"
    for side in _SIDES[kind]:
        name = side if kind == "pairs" else ("good" if row["label"] else "bad")
        parts.append((f"\n{name}: ", False))
        spans = groupby(zip(row[f"{side}_ids"], row[f"{side}_mask"], strict=True), lambda pair: pair[1])
        parts += [
            (_text([token for token, _ in span], tokenizer), name if is_scored else False) for is_scored, span in spans
        ]
    return parts


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def show_pairs(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Prints rows of `tokenize_preferences`, with scored text in color or, without color, between marks."""
    console = Console(highlight=False)
    for number, row in enumerate(rows, start=1):
        counts = [
            f"{sum(mask)} of {name.removesuffix('_mask')}" for name, mask in row.items() if name.endswith("_mask")
        ]
        console.rule(f"preference {number}: scored tokens: {', '.join(counts)}")
        text = Text()
        for part, side in preference_parts(row, tokenizer):
            piece = visible(part)
            if not side:
                text.append(piece, style="dim")
                continue
            style = "bold red" if side in ("rejected", "bad") else "bold green"
            text.append(piece if console.color_system else f"⟦{piece}⟧", style=style)
        console.print(text)
