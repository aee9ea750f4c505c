"""Metrics with confidence intervals: every metric is a function of sums over examples, so resampling is cheap."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..extras import needed_by

# Turns sums of statistics over examples (..., statistics), and options, into one figure (...).
Aggregate = Callable[..., np.ndarray]

AGGREGATES: dict[str, Aggregate] = {}


def aggregate(name: str) -> Callable[[Aggregate], Aggregate]:
    """Registers a function that turns sums into a figure, under the name that saved evaluations use."""

    def decorate(function: Aggregate) -> Aggregate:
        AGGREGATES[name] = function
        return function

    return decorate


@aggregate("mean")
def mean(sums: np.ndarray) -> np.ndarray:
    """`[value, weight]`: their ratio, for example accuracy or nats per token."""
    return _ratio(sums[..., 0], sums[..., 1])


@aggregate("mean_where_defined")
def mean_where_defined(sums: np.ndarray) -> np.ndarray:
    """Like `mean`, but NaN where no example has a weight: nothing was there to measure."""
    return np.where(sums[..., 1] > 0, mean(sums), np.nan)


@aggregate("difference_of_means")
def difference_of_means(sums: np.ndarray) -> np.ndarray:
    """`[value, weight]` of a first group, then of a second: the first mean minus the second."""
    return mean(sums[..., :2]) - mean(sums[..., 2:])


@aggregate("perplexity")
def perplexity(sums: np.ndarray) -> np.ndarray:
    """`[nats, tokens]`: perplexity per token."""
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
    """`[right, predicted, true]` of one class after another: the mean of the classes' F1, like scikit-learn's `macro`.

    A class that is neither predicted nor true does not count.
    """
    classes = sums.reshape(*sums.shape[:-1], -1, 3)
    seen = classes[..., 1:].sum(-1) > 0
    return _ratio((f1(classes) * seen).sum(-1), seen.sum(-1))


@aggregate("weighted_f1")
def weighted_f1(sums: np.ndarray) -> np.ndarray:
    """Like `macro_f1`, with each class weighted by its number of true examples."""
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

    NaN if neither texts nor references have a token.

    Args:
        **options: Options of `BLEU.compute_bleu`: `smooth_method` (default `exp`, as in `BLEU`) ...

    Raises:
        TypeError: If `smooth_value` is neither a number nor None.
    """
    if not isinstance(value := options.get("smooth_value"), Real | None):
        # sacrebleu looks at it only if the texts have no long n-gram in common.
        raise TypeError(f"smooth_value is {value!r:.80}")
    with needed_by("BLEU"):
        from sacrebleu.metrics import BLEU

    order = (sums.shape[-1] - 2) // 2
    options = {"smooth_method": "exp", **options}

    def score(row: np.ndarray) -> float:
        length, reference_length, *counts = row.tolist()
        if not length and not reference_length:
            return float("nan")
        counted = BLEU.compute_bleu(
            counts[:order], counts[order:], int(length), int(reference_length), max_ngram_order=order, **options
        )
        return counted.score

    return np.apply_along_axis(score, -1, sums)


@aggregate("chrf")
def chrf(sums: np.ndarray, **options: Any) -> np.ndarray:
    """`[n-grams, n-grams of the reference, right]` of one order after another, by sacrebleu.

    NaN if no reference has a character.

    Args:
        **options: Options of `CHRF`: `beta`, `eps_smoothing`.
    """
    with needed_by("chrF"):
        from sacrebleu.metrics import CHRF

    # Word n-grams count like character n-grams.
    scorer = CHRF(char_order=sums.shape[-1] // 3, **options)
    scores = np.apply_along_axis(lambda row: scorer._compute_score_from_stats(row.tolist()).score, -1, sums)
    return np.where(sums.any(-1), scores, np.nan)


@aggregate("ter")
def ter(sums: np.ndarray) -> np.ndarray:
    """`[edits, reference length]`: edits per 100 words; 0 or 100 if the references have no words, as in sacrebleu."""
    edits, length = sums[..., 0], sums[..., 1]
    return 100 * np.where(length > 0, _ratio(edits, length), edits > 0)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divides, with zero where the divisor is zero."""
    return np.divide(above, below, out=np.zeros_like(np.asarray(above, dtype=float)), where=below != 0)


class _Interval(NamedTuple):
    value: float
    low: float
    high: float


class Figure(_Interval):
    """A value and its 95 % confidence interval, as a tuple of three; NaN where there was nothing that the metric can measure.

    Attributes:
        signature: How the figure was measured, such as `tok:zh`; see `Measure`.
    """

    signature: str

    def __new__(cls, value: float, low: float, high: float, signature: str = "") -> "Figure":
        figure = super().__new__(cls, value, low, high)
        figure.signature = signature
        return figure

    @property
    def number(self) -> float | None:
        """The value; None instead of NaN, which JSON does not have."""
        return None if math.isnan(self.value) else self.value

    def shown(self, format_spec: str = ".4g") -> str:
        """Formats the value; a dash if there is none."""
        return "–" if math.isnan(self.value) else format(self.value, format_spec)

    def interval(self) -> str:
        """Formats the interval like `0.786 to 0.838`; a dash if there is none."""
        return "–" if math.isnan(self.value) else f"{self.low:.4g} to {self.high:.4g}"


class Difference(NamedTuple):
    """B's figure minus A's on the same examples, its 95 % confidence interval, and the two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Measure:
    """One metric over the examples of an evaluation.

    Attributes:
        aggregate: A name in `AGGREGATES`.
        statistics: (examples, statistics); the aggregate takes their sum over examples.
        higher_is_better: False for perplexity, for example.
        options: Options of the aggregate.
        signature: How texts were read before they were counted (tokenizer, case), like sacrebleu's signatures. Figures with
            different signatures are not comparable.
    """

    aggregate: str
    statistics: np.ndarray
    higher_is_better: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    signature: str = ""

    def of(self, sums: np.ndarray) -> np.ndarray:
        """Returns the figures (...) for sums (..., statistics) over examples."""
        return AGGREGATES[self.aggregate](sums, **self.options)

    @property
    def value(self) -> float:
        return float(self.of(self.statistics.sum(0)))


def measured_with(signatures: Mapping[str, str]) -> list[str]:
    """Groups figures by signature: `["rouge1, rougeL: case:lc|tok:words|stem:no"]`. Those without one are left out."""
    groups: dict[str, list[str]] = {}
    for name, signature in signatures.items():
        if signature:
            groups.setdefault(signature, []).append(name)
    return [f"{', '.join(names)}: {signature}" for signature, names in groups.items()]


def bootstrap(measure: Measure, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """Returns the value and its interval by the percentile bootstrap over examples (Efron & Tibshirani 1993, ch. 13)."""
    (figure,) = bootstraps([measure], resamples=resamples, seed=seed)
    return figure


def bootstraps(measures: Sequence[Measure], *, resamples: int = 1000, seed: int = 0) -> list[Figure]:
    """Returns the same as `bootstrap` for each of several measures of the same examples, in less time."""
    return [
        Figure(measure.value, *_interval(drawn), measure.signature)
        for measure, drawn in zip(measures, _resampled(measures, resamples, seed), strict=True)
    ]


def paired_difference(a: Measure, b: Measure, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Returns B's figure minus A's by the paired bootstrap (Koehn 2004): resamples have the same examples of both.

    The p-value is twice the share of resamples on the less frequent side of zero, with one added to both counts.

    Raises:
        DataError: If the two have different numbers of examples, or different aggregates.
    """
    (difference,) = paired_differences([a], [b], resamples=resamples, seed=seed)
    return difference


def paired_differences(
    a: Sequence[Measure], b: Sequence[Measure], *, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """Returns the same as `paired_difference` for each of several measures of the same examples, in less time."""
    for one, other in zip(a, b, strict=True):
        kinds = [(measure.aggregate, dict(measure.options)) for measure in (one, other)]
        if len(one.statistics) != len(other.statistics) or kinds[0] != kinds[1]:
            said = [" ".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, options in kinds]
            raise DataError(
                f"The two evaluations have {len(one.statistics)} and {len(other.statistics)} examples ({said[0]} and "
                f"{said[1]}): a paired comparison needs the same figure on the same examples."
            )
    drawn = _resampled([*a, *b], resamples, seed)
    return [
        _difference(b[index].value - a[index].value, drawn[len(a) + index] - drawn[index]) for index in range(len(a))
    ]


def _difference(value: float, drawn: np.ndarray) -> Difference:
    drawn = drawn[~np.isnan(drawn)]
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
    return Difference(value, *_interval(drawn), p_value)


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    # A resample may have only examples without a weight.
    if not len(drawn := drawn[~np.isnan(drawn)]):
        return math.nan, math.nan
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _resampled(measures: Sequence[Measure], resamples: int, seed: int) -> list[np.ndarray]:
    """Computes each measure's figure on the same resamples of the examples, each of shape (resamples,)."""
    if not measures:
        return []
    examples = len(measures[0].statistics)
    generator = np.random.default_rng(seed)
    drawn: list[list[np.ndarray]] = [[] for _ in measures]
    # The matrix of counts (resample, example) could take gigabytes, so it is computed in parts.
    rows = max(1, 10_000_000 // examples)
    for begin in range(0, resamples, rows):
        size = min(rows, resamples - begin)
        counts = np.empty((size, examples))
        for row in counts:
            row[:] = np.bincount(generator.integers(examples, size=examples), minlength=examples)
        for measure, figures in zip(measures, drawn, strict=True):
            figures.append(measure.of(counts @ measure.statistics.astype(float)))
    return [np.concatenate(figures) for figures in drawn]
