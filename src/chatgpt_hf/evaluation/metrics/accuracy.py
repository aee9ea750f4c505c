"""Accuracy: the share of right classes."""

from typing import Any

import numpy as np

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import LabelMetric, mean_measure


class Accuracy(LabelMetric):
    """The share of right predictions; with several labels per row, all of a row's labels must be right.

    Args:
        predictions: Classes, as numbers or names; for several labels per row, lists of 0 and 1.
        references: The right classes, of the same kind.

    Returns:
        `accuracy`.
    """

    source = "Pedregosa et al. 2011, Scikit-learn"

    @classmethod
    def _measures(cls, predictions: Any, references: Any) -> dict[str, Measure]:
        right = np.array(predictions) == np.array(references)
        return {"accuracy": mean_measure(right.reshape(len(right), -1).all(1))}
