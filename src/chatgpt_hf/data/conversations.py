"""Conversations to token ids, and which of them are learned: what the assistant says, with its end mark."""

import logging
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from ..tokenization_chatgpt import encode_conversation
from .builtin import load_builtin
from .corpus import load_rows
from .packing import IGNORE_INDEX

logger = logging.getLogger(__name__)


def load_conversations(source: str) -> DatasetDict:
    """Conversations with the ecosystem's column `messages`, from `builtin:python-qa`, a file, or a Hub id.

    Raises:
        DataError: When there is no such source, or its rows have no `messages`; the message lists their columns.
    """
    splits = load_builtin(source) if source.startswith("builtin:") else load_rows(source)
    columns = splits["train"].column_names
    if "messages" not in columns:
        raise DataError(
            f"{source} has no column `messages` (a list of role and content); it has {', '.join(columns)}."
        )
    return splits


def tokenize_conversations(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The `messages` column as `input_ids` and `labels`, -100 on everything that the assistant does not say.

    Rows without a target are dropped and counted on the log.

    Raises:
        DataError: When no row has a target, or one holds something else than messages.
    """

    def encode(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        messages = row["messages"] or []
        if not messages:
            return {"input_ids": [], "labels": []}
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise DataError(f"Row {index + 1} holds no list of messages with role and content, but {messages!r:.80}.")
        try:
            encoded = encode_conversation(tokenizer, messages)
        except DataError as error:
            raise DataError(f"Row {index + 1}: {error}") from error
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        return {
            "input_ids": encoded["input_ids"],
            "labels": [token if mask else IGNORE_INDEX for token, mask in pairs],
        }

    rows = dataset.map(
        encode,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))}),
        desc="Tokenizing conversations",
    )
    kept = rows.filter(lambda labels: any(label != IGNORE_INDEX for label in labels), input_columns="labels")
    if len(kept) == 0:
        raise DataError(
            f"None of the {len(rows)} conversations has an assistant turn to learn from (is the chat template missing "
            "its {% generation %} mark?)."
        )
    if len(kept) < len(rows):
        logger.warning(
            "%d of %d conversations have nothing to learn from and were dropped.", len(rows) - len(kept), len(rows)
        )
    return kept


def share_supervised(rows: Dataset) -> float:
    """Share of the tokens of `labels` that are learned."""
    labels = [label for row in rows["labels"] for label in row]
    return sum(label != IGNORE_INDEX for label in labels) / len(labels)
