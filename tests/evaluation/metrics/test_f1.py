"""F1, compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from chatgpt_hf.evaluation.metrics import load_metric, measures

RANDOM = np.random.default_rng(1)
TRUE = RANDOM.choice(5, size=400, p=[0.5, 0.3, 0.15, 0.05, 0])
SAID = np.where(RANDOM.random(400) < 0.7, TRUE, RANDOM.choice(5, size=400))
AVERAGES = ["macro", "micro", "weighted", None]


@pytest.mark.parametrize("average", AVERAGES)
def test_classes(average: str | None) -> None:
    expected = f1_score(TRUE, SAID, average=average)
    found = load_metric("f1").compute(predictions=SAID, references=TRUE, average=average)
    assert found["f1"] == pytest.approx(expected if average else list(expected))
    names = np.array(["World", "Sports", "经济", "Sci/Tech", "none"])
    assert load_metric("f1").compute(
        predictions=names[SAID].tolist(), references=names[TRUE].tolist(), average=average
    )["f1"] == pytest.approx(f1_score(names[TRUE], names[SAID], average=average))


@pytest.mark.parametrize("average", AVERAGES)
def test_resampled(average: str | None) -> None:
    """Also if a class is absent from a resample."""
    rows = np.flatnonzero((TRUE != 3) & (SAID != 3))[::3]
    found = measures("f1", SAID, TRUE, average=average)
    values = [float(measure.of(measure.statistics[rows].sum(0))) for measure in found.values()]
    labels = [0, 1, 2, 4] if average else range(5)
    expected = f1_score(TRUE[rows], SAID[rows], average=average, labels=labels, zero_division=0)
    if average is None:
        assert list(found) == [f"f1_{label}" for label in range(5)]
        assert values == pytest.approx(list(expected))
    else:
        assert values == [pytest.approx(expected)]


@pytest.mark.parametrize("average", AVERAGES)
def test_several_labels_a_row(average: str | None) -> None:
    true = (RANDOM.random((200, 4)) < [0.5, 0.2, 0.1, 0]).astype(int)
    said = np.where(RANDOM.random((200, 4)) < 0.8, true, (RANDOM.random((200, 4)) < [0.5, 0.2, 0.1, 0])).astype(int)
    found = load_metric("f1").compute(predictions=said.tolist(), references=true.tolist(), average=average)
    expected = f1_score(true, said, average=average, zero_division=np.nan if average else 0)
    assert found["f1"] == pytest.approx(expected if average else list(expected))


@pytest.mark.parametrize("pos_label", [0, 1])
def test_binary(pos_label: int) -> None:
    said, true = (SAID > 0).astype(int), (TRUE > 0).astype(int)
    found = load_metric("f1").compute(predictions=said, references=true, pos_label=pos_label)
    assert found == {"f1": pytest.approx(f1_score(true, said, pos_label=pos_label))}
    assert load_metric("f1").compute(predictions=[0, 0], references=[0, 0]) == {"f1": 0}
