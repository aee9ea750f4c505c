"""Losses of classification tasks, and weights for rare classes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

LossFunction = Callable[..., torch.Tensor]


class ClassificationLoss:
    """The loss of `problem_type`, summed over a batch and divided by the number of items in all accumulated batches.

    `Trainer` counts the items: rows, or rows times labels. So one batch of 8 and eight of 1 give the same gradient.

    Args:
        weights: Class weights (classes,) for a single label. Each item counts as one, regardless of its weight.
    """

    def __init__(self, problem_type: str, weights: torch.Tensor | None = None) -> None:
        self.problem_type = problem_type
        self.weights = weights

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"]
        functional = torch.nn.functional
        if self.problem_type == "single_label_classification":
            weights = self.weights if self.weights is None else self.weights.to(logits)
            loss = functional.cross_entropy(
                logits.flatten(0, -2).float(), labels.flatten(), weight=weights, reduction="sum", ignore_index=-100
            )
            items = (labels != -100).sum()
        elif self.problem_type == "multi_label_classification":
            loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum")
            items = torch.tensor(labels.numel())
        else:
            loss = functional.mse_loss(logits.squeeze(-1), labels.to(logits), reduction="sum")
            items = torch.tensor(labels.numel())
        return loss / (items if num_items_in_batch is None else num_items_in_batch)


def balanced_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Weighs each class inversely to its frequency: rows / (classes * count), like scikit-learn's `balanced`."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)
