"""Metrics as modules of `evaluate`, one file each, that load without a network.

`load_metric("bleu").compute(predictions=..., references=...)`, or `evaluate.load` with the path of the file, is for people
and for other libraries; `measures("bleu", predictions, references)` is the same figure with each example's part in it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..figures import Measure

if TYPE_CHECKING:
    from .base import MetricModule

METRICS = (
    "accuracy",
    "bleu",
    "chrf",
    "diversity",
    "exact_match",
    "f1",
    "rouge",
    "seqeval",
    "ter",
    "token_f1",
)


def metric_class(name: str) -> "type[MetricModule]":
    """The class of a metric, whose docstring tells its options.

    Raises:
        ConfigError: When there is no metric of this name.
    """
    if name not in METRICS:
        raise ConfigError(f"There is no metric {name!r}; there are {', '.join(METRICS)}.")
    from evaluate.loading import import_main_class

    return import_main_class(f"{__name__}.{name}")


def load_metric(name: str, **kwargs: Any) -> "MetricModule":
    """As `evaluate.load`, of the metrics of this package.

    Args:
        name: One of `METRICS`.
        **kwargs: Those of `evaluate.Metric`, such as `experiment_id`.

    Raises:
        ConfigError: When there is no metric of this name.
    """
    return metric_class(name)(**kwargs)


def measures(
    name: str, predictions: Sequence[Any], references: Sequence[Any] | None = None, **options: Any
) -> dict[str, Measure]:
    """The figures of a metric, each with the examples' parts in it.

    Args:
        name: One of `METRICS`.
        predictions: What the model said, one for each example.
        references: What would have been right; of text, also several for each example. None for `diversity`.
        **options: The metric's.

    Raises:
        ConfigError: When there is no metric of this name, or an option has an unknown value.
        DataError: When there are no predictions, or not as many references, or they are not of the metric's kind.
    """
    return metric_class(name).measures(predictions, references, **options)
