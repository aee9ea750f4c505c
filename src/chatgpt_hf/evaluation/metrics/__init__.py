"""Metrics as modules of `evaluate`, one file each, which load without a network.

`load_metric("bleu").compute(predictions=..., references=...)`, or `evaluate.load` with the path of the file, is for people
and for other libraries; `measures("bleu", predictions, references)` returns the same figure with each example's contribution.
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
    """Returns the class of a metric; its docstring describes the metric's options.

    Raises:
        ConfigError: If there is no metric with this name.
    """
    if name not in METRICS:
        raise ConfigError(f"There is no metric {name!r}; choose one of {', '.join(METRICS)}.")
    from evaluate.loading import import_main_class

    return import_main_class(f"{__name__}.{name}")


def load_metric(name: str, **kwargs: Any) -> "MetricModule":
    """Loads a metric of this package, like `evaluate.load`.

    Args:
        name: One of `METRICS`.
        **kwargs: Arguments of `evaluate.Metric`, such as `experiment_id`.

    Raises:
        ConfigError: If there is no metric with this name.
    """
    return metric_class(name)(**kwargs)


def measures(
    name: str, predictions: Sequence[Any], references: Sequence[Any] | None = None, **options: Any
) -> dict[str, Measure]:
    """Returns the figures of a metric, with the examples' contributions.

    Args:
        name: One of `METRICS`.
        predictions: The model's output for each example.
        references: The right output for each example; for texts, also a list of several. None for `diversity`.
        **options: The metric's options.

    Raises:
        ConfigError: If there is no metric with this name, or an option has an unknown value.
        DataError: If there are no predictions, the numbers of predictions and references differ, or the metric cannot
            take their type.
    """
    return metric_class(name).measures(predictions, references, **options)
