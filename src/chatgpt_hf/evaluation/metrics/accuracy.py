"""The share of right classes."""

from typing import Any

import numpy as np

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import LabelMetric, mean_measure


class Accuracy(LabelMetric):
    """The share of predictions that are right; for several labels a row, that are right in all of them.

    Args:
        predictions: Classes, as numbers or names; for several labels a row, lists of 0 and 1.
        references: As many of the same kind.

    Returns:
        `accuracy`.
    """

    source = "Pedregosa et al. 2011, Scikit-learn"

    @classmethod
    def _measures(cls, predictions: Any, references: Any) -> dict[str, Measure]:
        right = np.array(predictions) == np.array(references)
        return {"accuracy": mean_measure(right.reshape(len(right), -1).all(1))}
