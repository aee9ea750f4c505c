"""F1 of classes."""

from typing import Any

import numpy as np

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import LabelMetric


class F1(LabelMetric):
    """The harmonic mean of precision and recall, as scikit-learn's `f1_score`.

    A class that is neither predicted nor true does not count (`zero_division=nan` there).

    Args:
        predictions: Classes, as numbers or names; for several labels a row, lists of 0 and 1.
        references: As many of the same kind.
        average: `binary`, the F1 of `pos_label`; `macro`, the mean over classes; `weighted`, the same by how many examples are of
            each; `micro`, of all decisions together; None, each class's.
        pos_label: The class that `binary` is of.

    Returns:
        `f1`. With None, `compute` gives a list in the order of the classes, `measures` a figure `f1_CLASS` for each.
    """

    source = "Pedregosa et al. 2011, Scikit-learn"

    @classmethod
    def _measures(
        cls, predictions: Any, references: Any, *, average: str | None = "binary", pos_label: Any = 1
    ) -> dict[str, Measure]:
        said, true, classes = _decisions(np.array(predictions), np.array(references))
        # (examples, classes, 3)
        counts = np.stack([said & true, said, true], axis=-1).astype(int)
        flat = counts.reshape(len(counts), -1)
        if average is None:
            return {f"f1_{name}": Measure("f1", counts[:, index]) for index, name in enumerate(classes)}
        if average == "micro":
            return {"f1": Measure("f1", counts.sum(1))}
        if average in ("macro", "weighted"):
            return {"f1": Measure(f"{average}_f1", flat)}
        if average != "binary":
            raise ConfigError(f"F1's average is {average!r}; it can be binary, macro, micro, weighted or None.")
        if np.ndim(predictions[0]) or len(classes) > 2:
            raise DataError(
                f"F1's average binary is for two classes, and here are {len(classes)}: choose macro, micro, weighted or None."
            )
        if pos_label not in classes:
            if len(classes) == 2:
                raise DataError(
                    f"pos_label is {pos_label!r}, which is none of the classes {classes[0]} and {classes[1]}."
                )
            return {"f1": Measure("f1", np.zeros((len(counts), 3)))}
        return {"f1": Measure("f1", counts[:, classes.index(pos_label)])}

    def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
        figures = super()._compute(predictions, references, **options)
        return {"f1": list(figures.values())} if options.get("average", "") is None else figures


def _decisions(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Of each example and class, whether it was predicted and whether it is true: two (examples, classes)."""
    if predictions.ndim == 2:
        return predictions != 0, references != 0, list(range(predictions.shape[1]))
    classes = np.union1d(predictions, references)
    return predictions[:, None] == classes, references[:, None] == classes, classes.tolist()
