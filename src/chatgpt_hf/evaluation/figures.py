"""Figures with their uncertainty: every metric is a function of sums over examples, so that resampling them is cheap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import DataError

# Sums of statistics over examples (..., statistics) as one figure (...).
Aggregate = Callable[[np.ndarray], np.ndarray]

AGGREGATES: dict[str, Aggregate] = {}


def aggregate(name: str) -> Callable[[Aggregate], Aggregate]:
    """Registers how sums become a figure, by the name that a saved evaluation keeps."""

    def decorate(function: Aggregate) -> Aggregate:
        AGGREGATES[name] = function
        return function

    return decorate


@aggregate("mean")
def mean(sums: np.ndarray) -> np.ndarray:
    """`[value, weight]`: their ratio, as for accuracy, or for nats per token."""
    return _ratio(sums[..., 0], sums[..., 1])


@aggregate("perplexity")
def perplexity(sums: np.ndarray) -> np.ndarray:
    """`[nats, tokens]`."""
    return np.exp(mean(sums))


@aggregate("bits")
def bits(sums: np.ndarray) -> np.ndarray:
    """`[nats, bytes]`: bits per byte."""
    return mean(sums) / np.log(2)


@aggregate("f1")
def f1(sums: np.ndarray) -> np.ndarray:
    """`[right, predicted, true]`: the harmonic mean of precision and recall, over all examples (micro)."""
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


@aggregate("macro_f1")
def macro_f1(sums: np.ndarray) -> np.ndarray:
    """`[right, predicted, true]` of each class one after another: the mean of the classes' F1, as scikit-learn's `macro`.

    A class that is neither predicted nor true does not count.
    """
    classes = sums.reshape(*sums.shape[:-1], -1, 3)
    seen = classes[..., 1:].sum(-1) > 0
    return _ratio((f1(classes) * seen).sum(-1), seen.sum(-1))


@aggregate("pearson")
def pearson(sums: np.ndarray) -> np.ndarray:
    """`[1, x, y, x², y², xy]`: the correlation of predictions and references."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return _ratio(n * xy - x * y, spread)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Zero where nothing was counted."""
    return np.divide(above, below, out=np.zeros_like(np.asarray(above, dtype=float)), where=below != 0)


class Figure(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much more B has than A on the same examples, its 95 % confidence interval, and the two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Measure:
    """One metric over the examples of an evaluation.

    Attributes:
        aggregate: A name in `AGGREGATES`.
        statistics: (examples, statistics); their sum is what the aggregate takes.
        higher_is_better: As the name says; perplexity is better when it is lower.
    """

    aggregate: str
    statistics: np.ndarray
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        return float(AGGREGATES[self.aggregate](self.statistics.sum(0)))


def bootstrap(measure: Measure, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """The percentile bootstrap over examples (Efron & Tibshirani 1993, chapter 13)."""
    (drawn,) = _resampled([measure], resamples, seed)
    return Figure(measure.value, *(float(bound) for bound in np.quantile(drawn, [0.025, 0.975])))


def paired_difference(a: Measure, b: Measure, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """B's figure minus A's, with the paired bootstrap (Koehn 2004): both are resampled with the same examples.

    The p-value is twice the share of resamples on the other side of zero than most, at least one of them.

    Raises:
        DataError: When the two have differing numbers of examples, or different aggregates.
    """
    if a.statistics.shape[0] != b.statistics.shape[0] or a.aggregate != b.aggregate:
        raise DataError(
            f"The two evaluations are of {len(a.statistics)} and {len(b.statistics)} examples ({a.aggregate} and "
            f"{b.aggregate}): only figures of the same examples can be compared in pairs."
        )
    of_a, of_b = _resampled([a, b], resamples, seed)
    drawn = of_b - of_a
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
    return Difference(b.value - a.value, low, high, p_value)


def _resampled(measures: Sequence[Measure], resamples: int, seed: int) -> list[np.ndarray]:
    """Each measure's figure on the same resamples of their examples, (resamples,) each."""
    examples = len(measures[0].statistics)
    generator = np.random.default_rng(seed)
    drawn: list[list[np.ndarray]] = [[] for _ in measures]
    # How often each resample has each example is a matrix, which for all of them at once may be gigabytes.
    rows = max(1, 10_000_000 // examples)
    for begin in range(0, resamples, rows):
        size = min(rows, resamples - begin)
        counts = generator.multinomial(examples, np.full(examples, 1 / examples), size=size).astype(float)
        for measure, figures in zip(measures, drawn, strict=True):
            figures.append(AGGREGATES[measure.aggregate](counts @ measure.statistics.astype(float)))
    return [np.concatenate(figures) for figures in drawn]
