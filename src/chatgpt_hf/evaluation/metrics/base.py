"""What the metrics share: the same figures through `evaluate` and as `Measure`s, and what they refuse."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf

from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.figures import Measure


class MetricModule(evaluate.Metric, ABC):
    """A metric of `evaluate` whose figures are made of a part for each example.

    A subclass stands in a file of its own, which `evaluate.load` copies elsewhere before it runs it: such a file imports by
    absolute names alone.
    """

    source: str

    @abstractmethod
    def _features(self) -> Features | list[Features]:
        """The columns that `compute` takes, or the kinds of them."""

    @classmethod
    @abstractmethod
    def _measures(cls, *args: Any, **options: Any) -> dict[str, Measure]:
        """`measures`, of predictions and references that `check` has let pass."""

    @classmethod
    def measures(
        cls, predictions: Sequence[Any], references: Sequence[Any] | None = None, **options: Any
    ) -> dict[str, Measure]:
        """The metric's figures by name; see `chatgpt_hf.evaluation.metrics.measures`."""
        cls.check(predictions, references)
        return cls._measures(predictions, references, **options)

    @classmethod
    def check(cls, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
        """Raises `DataError` for anything but one reference for each of at least one prediction."""
        said, right = (0 if given is None else len(given) for given in (predictions, references))
        if said != right:
            raise DataError(
                f"There are {said} predictions and {right} references: each prediction needs its reference, or a list of "
                "them."
            )
        if not said:
            raise DataError("There are 0 predictions and 0 references: there is nothing to measure.")

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Keeps some predictions and references for `compute`."""
        self.check(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = inspect.getdoc(type(self)) or ""
        return evaluate.MetricInfo(
            description=text, citation=self.source, inputs_description=text, features=self._features()
        )

    def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
        return {name: measure.value for name, measure in self.measures(predictions, references, **options).items()}


class TextMetric(MetricModule):
    """Of texts, each with one reference or a list of them."""

    def _features(self) -> list[Features]:
        text = Value("string")
        return [Features({"predictions": text, "references": references}) for references in (ListOf(text), text)]

    @classmethod
    def check(cls, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
        super().check(predictions, references)
        for number, text in enumerate([] if predictions is None else predictions, start=1):
            if not isinstance(text, str):
                raise DataError(f"Prediction {number} is no text, but {text!r:.80}.")
        for number, texts in enumerate(several([] if references is None else references), start=1):
            if not texts:
                raise DataError(f"Prediction {number} has an empty list of references: give it one at least.")
            if bad := [text for text in texts if not isinstance(text, str)]:
                raise DataError(f"Reference {number} is no text and no list of texts, but {bad[0]!r:.80}.")


class LabelMetric(MetricModule):
    """Of classes, as numbers or names; for several labels a row, lists of 0 and 1."""

    def _features(self) -> list[Features]:
        kinds = (Value("int64"), Value("string"), ListOf(Value("int64")))
        return [Features({"predictions": kind, "references": kind}) for kind in kinds]

    @classmethod
    def check(cls, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
        super().check(predictions, references)
        kinds = set()
        for name, labels in (("Prediction", predictions), ("Reference", references)):
            for number, label in enumerate([] if labels is None else labels, start=1):
                several_labels = isinstance(label, list | tuple | np.ndarray)
                row = list(label) if several_labels else [label]
                # In a list of 1.0 and 0.0, as in a column that was read as floats, nothing is lost.
                if bad := [item for item in row if item is None or _is_fraction(item)]:
                    raise DataError(f"{name} {number} is {bad[0]!r}, which is no class: give its number or its name.")
                kinds.add((len(row) if several_labels else None, isinstance(row[0] if row else 0, str)))
        if len(kinds) > 1:
            raise DataError(
                "The labels are not all of one kind: give numbers, or names, or lists of 0 and 1 of one length."
            )


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not float(value).is_integer()


def several(references: Sequence[Any]) -> list[list[str]]:
    """A list of references for each example."""
    return [list(given) if isinstance(given, list | tuple) else [given] for given in references]


def streams(references: list[list[str]]) -> list[list[Any]]:
    """sacrebleu's order: the first reference of each example, the second of each, ... with None where there is none."""
    most = max(map(len, references))
    return [[texts[number] if number < len(texts) else None for texts in references] for number in range(most)]


def mean_measure(values: Any) -> Measure:
    """A figure that is the mean of `values`, one for each example."""
    values = np.asarray(values, dtype=float)
    return Measure("mean", np.stack([values, np.ones_like(values)], axis=1))
