"""Base classes of the metrics: the same figures through `evaluate` and as `Measure`s, and checks of the input."""

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
    """A metric of `evaluate` whose figures are computed from one contribution per example.

    Each subclass is in a separate file. `evaluate.load` copies the file elsewhere before it runs it, so the file must use
    absolute imports only.
    """

    source: str

    @abstractmethod
    def _features(self) -> Features | list[Features]:
        """Returns the columns that `compute` takes, or a list of alternatives."""

    @classmethod
    @abstractmethod
    def _measures(cls, *args: Any, **options: Any) -> dict[str, Measure]:
        """Computes `measures` for predictions and references that passed `check`."""

    @classmethod
    def measures(
        cls, predictions: Sequence[Any], references: Sequence[Any] | None = None, **options: Any
    ) -> dict[str, Measure]:
        """Returns the metric's figures by name; see `chatgpt_hf.evaluation.metrics.measures`."""
        cls.check(predictions, references)
        return cls._measures(predictions, references, **options)

    @classmethod
    def check(cls, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
        """Raises `DataError` unless there is at least one prediction, and one reference for each."""
        said, right = (0 if given is None else len(given) for given in (predictions, references))
        if said != right:
            raise DataError(
                f"There are {said} predictions and {right} references: each prediction needs one reference, or one list of "
                "references."
            )
        if not said:
            raise DataError("There are 0 predictions and 0 references: there is nothing to measure.")

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Stores some predictions and references for `compute`."""
        self.check(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = inspect.getdoc(type(self)) or ""
        return evaluate.MetricInfo(
            description=text, citation=self.source, inputs_description=text, features=self._features()
        )

    def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
        return {name: measure.value for name, measure in self.measures(predictions, references, **options).items()}


def sacrebleu_signature(scorer: Any, references: list[list[str]], **parts: str) -> str:
    """Returns sacrebleu's signature of a metric, such as `nrefs:1|case:mixed|eff:yes|tok:zh|smooth:exp|version:2.6.0`.

    Args:
        scorer: A metric of sacrebleu that has scored something.
        references: All references of each example.
        **parts: Parts of the signature that differ from the scorer's.
    """
    found = scorer.get_signature()
    numbers = {len(texts) for texts in references}
    for name, value in {"nrefs": "var" if len(numbers) > 1 else str(*numbers), **parts}.items():
        found.update(name, value)
    return str(found)


def signature(**parts: str | bool) -> str:
    """Returns a signature like sacrebleu's, such as `case:lc|tok:words`."""
    named = {name: value if isinstance(value, str) else ("yes" if value else "no") for name, value in parts.items()}
    return "|".join(f"{name}:{value}" for name, value in named.items())


class TextMetric(MetricModule):
    """A metric of texts, each with one reference or a list of references."""

    def _features(self) -> list[Features]:
        text = Value("string")
        return [Features({"predictions": text, "references": references}) for references in (ListOf(text), text)]

    @classmethod
    def check(cls, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
        super().check(predictions, references)
        for number, text in enumerate([] if predictions is None else predictions, start=1):
            if not isinstance(text, str):
                raise DataError(f"Prediction {number} must be text, but is {text!r:.80}.")
        for number, texts in enumerate(several([] if references is None else references), start=1):
            if not texts:
                raise DataError(f"Prediction {number} has an empty list of references: give at least one.")
            if bad := [text for text in texts if not isinstance(text, str)]:
                raise DataError(f"Reference {number} must be text or a list of texts, but has {bad[0]!r:.80}.")


class LabelMetric(MetricModule):
    """A metric of classes, given as numbers or names, or as lists of 0 and 1 for several labels per row."""

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
                # 1.0 and 0.0 are allowed, because a column may have been read as floats.
                if bad := [item for item in row if item is None or _is_fraction(item)]:
                    raise DataError(f"{name} {number} is {bad[0]!r}, which is not a class: give its number or name.")
                kinds.add((len(row) if several_labels else None, isinstance(row[0] if row else 0, str)))
        if len(kinds) > 1:
            raise DataError(
                "The labels are of different kinds: give only numbers, only names, or only lists of 0 and 1 of one length."
            )


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not float(value).is_integer()


def several(references: Sequence[Any]) -> list[list[str]]:
    """Returns a list of references for each example."""
    return [list(given) if isinstance(given, list | tuple) else [given] for given in references]


def streams(references: list[list[str]]) -> list[list[Any]]:
    """Returns references in sacrebleu's order: the first of each example, the second of each, ... or None if missing."""
    most = max(map(len, references))
    return [[texts[number] if number < len(texts) else None for texts in references] for number in range(most)]


def mean_measure(values: Any, signature: str = "") -> Measure:
    """Returns a figure that is the mean of `values`, one for each example."""
    values = np.asarray(values, dtype=float)
    return Measure("mean", np.stack([values, np.ones_like(values)], axis=1), signature=signature)
