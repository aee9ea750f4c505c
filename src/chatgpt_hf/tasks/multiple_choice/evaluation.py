"""Evaluates multiple choice by likelihood: a model's answer is the choice that it finds most likely."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...evaluation.metrics import measures
from ...evaluation.record import Evaluation
from ...evaluation.scoring import continuation, negative_log_likelihoods

TASK = "multiple-choice"


def evaluate_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    data: str,
    max_length: int,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Scores every continuation after its context.

    `accuracy` compares their likelihoods; `accuracy_norm` compares the likelihoods divided by the continuations'
    lengths in bytes, like `acc` and `acc_norm` of lm-evaluation-harness.

    Args:
        rows: Rows with columns `contexts`, `continuations` (both lists with one entry per choice) and `label`.
        max_length: Maximum number of tokens of a context with its continuation; longer ones are cut at the beginning.
    """
    items: list[dict[str, Any]] = rows.to_list()
    pieces, sizes = [], []
    for row in items:
        for context, text in zip(row["contexts"], row["continuations"], strict=True):
            pieces.append(continuation(tokenizer, context, text, max_length=max_length))
            sizes.append(len(text.encode()))
    nats = negative_log_likelihoods(
        model,
        pieces,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        desc="Scoring choices",
        progress=progress,
    )
    chosen, chosen_by_length, examples = [], [], []
    begin = 0
    for row in items:
        end = begin + len(row["continuations"])
        mine, lengths = nats[begin:end], np.array(sizes[begin:end])
        begin = end
        label, choices = row["label"], row["continuations"]
        chosen.append(int(mine.argmin()))
        chosen_by_length.append(int((mine / np.maximum(lengths, 1)).argmin()))
        examples.append(
            {
                "text": row["contexts"][label],
                "prediction": choices[chosen[-1]],
                "reference": choices[label],
                "nats": mine.tolist(),
            }
        )
    labels = [row["label"] for row in items]
    found = {
        "accuracy": measures("accuracy", chosen, labels)["accuracy"],
        "accuracy_norm": measures("accuracy", chosen_by_length, labels)["accuracy"],
    }
    return Evaluation(TASK, data, found, examples)
