"""Tokenized documents to full training rows that keep the documents apart.

TRL's best-fit-decreasing packing decides who shares a row; what it leaves to a collator, restarting `position_ids`, is
written into the rows here, so that stock `Trainer` with transformers' `default_data_collator` trains on them and no
token sees another document, on every attention backend.
"""

from typing import Any

from datasets import Dataset
from trl import pack_dataset

from ..errors import ConfigError, DataError

IGNORE_INDEX = -100


def tokenize_corpus(dataset: Dataset, tokenizer: Any, *, num_proc: int | None = None) -> Dataset:
    """The `text` column as documents of token ids between bos and eos, in one column `input_ids`."""
    from ..tokenization_chatgpt import encode_documents

    return dataset.map(
        lambda batch: {"input_ids": encode_documents(tokenizer, batch["text"])},
        batched=True,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        desc="Tokenizing",
    )


def pack_documents(
    dataset: Dataset, block_size: int, *, pad_token_id: int, split_long: bool = True, seed: int = 0
) -> Dataset:
    """Packs tokenized documents into rows of `block_size`.

    Args:
        dataset: Column `input_ids`, and `labels` where not every token is learned.
        block_size: Tokens in a row.
        pad_token_id: Fills the gaps; never learned, and a document of its own to attention.
        split_long: Cut a document that is longer than a row into several pieces. False drops its end, which keeps
            conversations whole; rows with nothing left to learn are dropped.
        seed: Order of the documents. The same seed gives the same rows.

    Returns:
        Rows with `input_ids`, `labels` (-100 on the first token of each document, which nothing predicts, and on
        padding) and `position_ids` (restarting for each document), each a list of `block_size` integers.

    Raises:
        DataError: When `dataset` has no tokens, or none to learn within `block_size`.
        ConfigError: When `block_size` is below 2.
    """
    if block_size < 2:
        raise ConfigError(f"block_size is {block_size}: a row of fewer than 2 tokens has nothing to predict.")
    has_labels = "labels" in dataset.column_names
    dataset = dataset.select_columns(["input_ids", "labels"] if has_labels else ["input_ids"])
    dataset = dataset.filter(lambda ids: len(ids) > 0, input_columns="input_ids")
    if len(dataset) == 0:
        raise DataError("The corpus holds no tokens to pack: every document is empty.")
    packed = pack_dataset(
        dataset.shuffle(seed=seed),
        block_size,
        "bfd_split" if split_long else "bfd",
        map_kwargs={"desc": "Packing", "batch_size": 10_000},
    )

    def finish(row: dict[str, Any]) -> dict[str, list[int]]:
        gap = block_size - len(row["input_ids"])
        labels = list(row["labels"] if has_labels else row["input_ids"])
        positions: list[int] = []
        for length in row["seq_lengths"]:
            labels[len(positions)] = IGNORE_INDEX
            positions.extend(range(length))
        return {
            "input_ids": list(row["input_ids"]) + [pad_token_id] * gap,
            "labels": labels + [IGNORE_INDEX] * gap,
            "position_ids": positions + list(range(gap)),
        }

    rows = packed.map(finish, remove_columns=packed.column_names, desc="Separating documents")
    kept = rows.filter(lambda labels: any(label != IGNORE_INDEX for label in labels), input_columns="labels")
    if len(kept) == 0:
        raise DataError(
            f"No row of {block_size} tokens has anything to learn: the documents are empty, or what is to be learned "
            "lies beyond block_size. Take a larger block_size."
        )
    return kept
