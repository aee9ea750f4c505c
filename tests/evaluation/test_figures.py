"""Figures from sums, compared with scikit-learn and scipy; the coverage of their intervals."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, precision_recall_fscore_support

from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.figures import (
    AGGREGATES,
    Measure,
    bootstrap,
    bootstraps,
    paired_difference,
    paired_differences,
)

RANDOM = np.random.default_rng(0)


def ratio(values: np.ndarray) -> Measure:
    return Measure("mean", np.stack([values, np.ones(len(values))], axis=1).astype(float))


def decisions(said: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Returns `[right, predicted, true]` of each class, (examples, 3 * classes)."""
    a, b = np.eye(classes)[said], np.eye(classes)[true]
    return np.stack([a * b, a, b], axis=-1).reshape(len(said), -1)


def test_language_modeling() -> None:
    nats, tokens = RANDOM.random(50) * 30, RANDOM.integers(1, 9, 50)
    statistics = np.stack([nats, tokens], axis=1)
    mean = nats.sum() / tokens.sum()
    assert Measure("mean", statistics).value == pytest.approx(mean)
    assert Measure("perplexity", statistics, False).value == pytest.approx(math.exp(mean))
    assert Measure("bits", statistics, False).value == pytest.approx(mean / math.log(2))


def test_f1() -> None:
    true = RANDOM.integers(4, size=300)
    said = np.where(RANDOM.random(300) < 0.6, true, RANDOM.integers(4, size=300))
    # One extra class, without examples.
    statistics = decisions(said, true, 5)
    assert Measure("macro_f1", statistics).value == pytest.approx(f1_score(true, said, average="macro"))
    assert Measure("weighted_f1", statistics).value == pytest.approx(f1_score(true, said, average="weighted"))
    *_, f1, _ = precision_recall_fscore_support(true, said)
    for kind in range(4):
        assert Measure("f1", statistics[:, 3 * kind : 3 * kind + 3]).value == pytest.approx(f1[kind])
    assert Measure("f1", statistics[:, 12:]).value == 0


def test_pearson() -> None:
    x = RANDOM.normal(size=200)
    y = 0.5 * x + RANDOM.normal(size=200)
    moments = np.stack([np.ones(200), x, y, x * x, y * y, x * y], axis=1)
    assert Measure("pearson", moments).value == pytest.approx(stats.pearsonr(x, y).statistic)
    moments[:, [1, 3, 5]] = 0
    assert Measure("pearson", moments).value == 0


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_many_sums_at_once(name: str) -> None:
    """(..., statistics) gives (...), each value the same as when computed separately."""
    widths = {"bleu": 10, "chrf": 18, "difference_of_means": 4, "f1": 3, "macro_f1": 9, "pearson": 6, "weighted_f1": 9}
    width = widths.get(name, 2)
    sums = np.sort(RANDOM.integers(1, 50, size=(2, 3, width)), axis=-1).astype(float)
    found = AGGREGATES[name](sums)
    assert found.shape == (2, 3)
    assert [float(AGGREGATES[name](row)) for row in sums.reshape(6, width)] == pytest.approx(list(found.flat))


def test_the_interval_of_a_mean() -> None:
    values = RANDOM.normal(3, 2, size=400)
    found = bootstrap(ratio(values), resamples=4000)
    error = values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(
        [found.value - 1.96 * error, found.value + 1.96 * error], abs=error / 8
    )
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, random_state=1, batch=500)
    assert [found.low, found.high] == pytest.approx(list(theirs.confidence_interval), abs=error / 8)


def test_coverage() -> None:
    """95 % of the samples' intervals contain the true figure, here micro F1."""
    confusion = np.array([[0.5, 0.1], [0.1, 0.3]])
    truth = 2 * 0.3 / (0.4 + 0.4)
    draws = np.random.default_rng(4).choice(4, size=(200, 150), p=confusion.ravel())
    hits = 0
    for draw in draws:
        said, true = draw // 2, draw % 2
        found = bootstrap(Measure("f1", np.stack([said * true, said, true], axis=1)), resamples=250)
        hits += found.low <= truth <= found.high
    assert 0.9 <= hits / 200 <= 0.985


def test_several_at_once_are_as_each_alone() -> None:
    first, second = (ratio(RANDOM.random(60)) for _ in range(2))
    other = Measure("perplexity", first.statistics, False)
    assert bootstraps([first, other]) == [bootstrap(first), bootstrap(other)]
    pairs = paired_differences([first, other], [second, other], resamples=500)
    assert pairs[0] == paired_difference(first, second, resamples=500)
    assert bootstraps([]) == []


def test_more_resamples_than_fit_at_once() -> None:
    """With many examples, resamples are drawn in parts, with the same result."""
    measure = ratio(np.tile([0.0, 1.0], 10_000))
    found = bootstrap(measure, resamples=700)
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(20_000), rel=0.15)


def test_a_difference_that_is_there() -> None:
    true = np.random.default_rng(1).random(500)
    a = ratio(true)
    b = ratio(true + np.random.default_rng(2).normal(0.02, 0.1, size=500))
    found = paired_difference(a, b)
    assert found.value == pytest.approx(b.value - a.value)
    assert 0 < found.low < found.value < found.high
    assert found.p_value < 0.01
    # Unpaired, the spread of the examples would hide the same difference.
    assert bootstrap(a).high > bootstrap(b).low
    assert found.p_value == pytest.approx(stats.ttest_rel(b.statistics[:, 0], a.statistics[:, 0]).pvalue, abs=0.003)
    turned = paired_difference(b, a)
    assert (turned.value, turned.p_value) == (pytest.approx(-found.value), found.p_value)


def test_no_difference() -> None:
    a = ratio(RANDOM.random(200))
    assert paired_difference(a, a) == (0, 0, 0, 1)


def test_p_values_without_a_difference() -> None:
    """They are below 0.05 in 5 % of the cases, and uniformly distributed."""
    random = np.random.default_rng(3)
    p_values = [
        paired_difference(ratio(random.random(100) < 0.6), ratio(random.random(100) < 0.6), resamples=400).p_value
        for _ in range(120)
    ]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.1)


def test_unlike_measures_are_refused() -> None:
    a = ratio(RANDOM.random(20))
    with pytest.raises(DataError, match="20 and 19 examples"):
        paired_difference(a, ratio(RANDOM.random(19)))
    with pytest.raises(DataError, match=r"\(mean and perplexity\)"):
        paired_difference(a, Measure("perplexity", a.statistics))
    counts = np.ones((20, 10))
    with pytest.raises(DataError, match=r"\(bleu and bleu smooth_method=floor\)"):
        paired_difference(Measure("bleu", counts), Measure("bleu", counts, options={"smooth_method": "floor"}))
