"""Accuracy, compared with scikit-learn."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from chatgpt_hf.evaluation.metrics import load_metric


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([0, 2, 1, 1], [0, 1, 1, 1]),
        (["World", "体育"], ["Sports", "体育"]),
        ([[1, 0], [1, 1], [0, 0]], [[1, 0], [1, 0], [0, 0]]),
    ],
)
def test_as_scikit_learn(predictions: list[Any], references: list[Any]) -> None:
    expected = accuracy_score(np.array(references), np.array(predictions))
    found = load_metric("accuracy").compute(predictions=predictions, references=references)
    assert found == {"accuracy": pytest.approx(expected)}
    assert 0 < expected < 1
