"""Figures with their uncertainty: every metric is a function of sums over examples, so that resampling them is cheap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError

# Sums of statistics over examples (..., statistics), and options, as one figure (...).
Aggregate = Callable[..., np.ndarray]

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


@aggregate("difference_of_means")
def difference_of_means(sums: np.ndarray) -> np.ndarray:
    """`[value, weight]` of one group, then of another: the first's mean minus the second's."""
    return mean(sums[..., :2]) - mean(sums[..., 2:])


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


@aggregate("weighted_f1")
def weighted_f1(sums: np.ndarray) -> np.ndarray:
    """As `macro_f1`, each class weighing as much as it has true examples."""
    classes = sums.reshape(*sums.shape[:-1], -1, 3)
    return _ratio((f1(classes) * classes[..., 2]).sum(-1), classes[..., 2].sum(-1))


@aggregate("pearson")
def pearson(sums: np.ndarray) -> np.ndarray:
    """`[1, x, y, x², y², xy]`: the correlation of predictions and references."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return _ratio(n * xy - x * y, spread)


@aggregate("bleu")
def bleu(sums: np.ndarray, **options: Any) -> np.ndarray:
    """`[length, reference length, right n-grams of each order, n-grams of each order]`, by sacrebleu.

    Args:
        **options: Those of `BLEU.compute_bleu`: `smooth_method` (`exp` where it is left out, as in `BLEU`) ...
    """
    from sacrebleu.metrics import BLEU

    order = (sums.shape[-1] - 2) // 2
    options = {"smooth_method": "exp", **options}

    def score(row: np.ndarray) -> float:
        length, reference_length, *counts = row.tolist()
        counted = BLEU.compute_bleu(
            counts[:order], counts[order:], int(length), int(reference_length), max_ngram_order=order, **options
        )
        return counted.score

    return np.apply_along_axis(score, -1, sums)


@aggregate("chrf")
def chrf(sums: np.ndarray, **options: Any) -> np.ndarray:
    """`[n-grams, n-grams of the reference, right]` of each order one after another, by sacrebleu.

    Args:
        **options: Those of `CHRF`: `beta`, `eps_smoothing`.
    """
    from sacrebleu.metrics import CHRF

    # Orders of words count as those of characters do.
    scorer = CHRF(char_order=sums.shape[-1] // 3, **options)
    return np.apply_along_axis(lambda row: scorer._compute_score_from_stats(row.tolist()).score, -1, sums)


@aggregate("ter")
def ter(sums: np.ndarray) -> np.ndarray:
    """`[edits, reference length]`: edits for each 100 words; without a word of reference 0 or 100, as by sacrebleu."""
    edits, length = sums[..., 0], sums[..., 1]
    return 100 * np.where(length > 0, _ratio(edits, length), edits > 0)


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
        options: Of the aggregate.
    """

    aggregate: str
    statistics: np.ndarray
    higher_is_better: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, sums: np.ndarray) -> np.ndarray:
        """The figures (...) of sums (..., statistics) over examples."""
        return AGGREGATES[self.aggregate](sums, **self.options)

    @property
    def value(self) -> float:
        return float(self.of(self.statistics.sum(0)))


def bootstrap(measure: Measure, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """The percentile bootstrap over examples (Efron & Tibshirani 1993, chapter 13)."""
    (figure,) = bootstraps([measure], resamples=resamples, seed=seed)
    return figure


def bootstraps(measures: Sequence[Measure], *, resamples: int = 1000, seed: int = 0) -> list[Figure]:
    """`bootstrap` of several measures of the same examples, each as it is alone, in less time."""
    return [
        Figure(measure.value, *_interval(drawn))
        for measure, drawn in zip(measures, _resampled(measures, resamples, seed), strict=True)
    ]


def paired_difference(a: Measure, b: Measure, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """B's figure minus A's, with the paired bootstrap (Koehn 2004): both are resampled with the same examples.

    The p-value is twice the share of resamples on the other side of zero than most, at least one of them.

    Raises:
        DataError: When the two have differing numbers of examples, or different aggregates.
    """
    (difference,) = paired_differences([a], [b], resamples=resamples, seed=seed)
    return difference


def paired_differences(
    a: Sequence[Measure], b: Sequence[Measure], *, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """`paired_difference` of several measures of the same examples, each as it is alone, in less time."""
    for one, other in zip(a, b, strict=True):
        kinds = [(measure.aggregate, dict(measure.options)) for measure in (one, other)]
        if len(one.statistics) != len(other.statistics) or kinds[0] != kinds[1]:
            said = [" ".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, options in kinds]
            raise DataError(
                f"The two evaluations are of {len(one.statistics)} and {len(other.statistics)} examples ({said[0]} and "
                f"{said[1]}): only figures of the same examples can be compared in pairs."
            )
    drawn = _resampled([*a, *b], resamples, seed)
    return [
        _difference(b[index].value - a[index].value, drawn[len(a) + index] - drawn[index]) for index in range(len(a))
    ]


def _difference(value: float, drawn: np.ndarray) -> Difference:
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
    return Difference(value, *_interval(drawn), p_value)


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _resampled(measures: Sequence[Measure], resamples: int, seed: int) -> list[np.ndarray]:
    """Each measure's figure on the same resamples of their examples, (resamples,) each."""
    if not measures:
        return []
    examples = len(measures[0].statistics)
    generator = np.random.default_rng(seed)
    drawn: list[list[np.ndarray]] = [[] for _ in measures]
    # How often each resample has each example is a matrix, which for all of them at once may be gigabytes.
    rows = max(1, 10_000_000 // examples)
    for begin in range(0, resamples, rows):
        size = min(rows, resamples - begin)
        counts = np.empty((size, examples))
        for row in counts:
            row[:] = np.bincount(generator.integers(examples, size=examples), minlength=examples)
        for measure, figures in zip(measures, drawn, strict=True):
            figures.append(measure.of(counts @ measure.statistics.astype(float)))
    return [np.concatenate(figures) for figures in drawn]
