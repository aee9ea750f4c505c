"""Named entities, found by seqeval in the tags of tokens."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import seqeval.scheme
from datasets import Features, Value
from datasets import Sequence as ListOf
from seqeval.metrics.sequence_labeling import get_entities

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import MetricModule

_SCHEMES = ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU")


class Seqeval(MetricModule):
    """Precision, recall and F1 of entities, over the whole corpus; an entity is right when its type and both its ends are.

    Args:
        predictions: For each example, a list of tags, one a token.
        references: As many lists, as long.
        scheme: None reads tags as the script of CoNLL-2000 does, which takes IOB1 and IOB2. With a name (`IOB1`, `IOB2`, `IOE1`,
            `IOE2`, `IOBES`, `BILOU`) what does not follow the scheme is no entity: `mode="strict"` in seqeval.

    Returns:
        `overall_precision`, `overall_recall`, `overall_f1`, and `overall_accuracy` of the tags. Of each type, `compute` gives
        `precision`, `recall`, `f1` and `number` under its name, `measures` a figure `f1_TYPE`.
    """

    source = "Tjong Kim Sang and De Meulder 2003, CoNLL-2003; Nakayama 2018, seqeval"

    def _features(self) -> Features:
        tags = ListOf(Value("string"))
        return Features({"predictions": tags, "references": tags})

    @classmethod
    def check(cls, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
        super().check(predictions, references)
        pairs = zip(predictions or (), references or (), strict=True)
        for number, (said, right) in enumerate(pairs, start=1):
            if len(said) != len(right):
                raise DataError(
                    f"Example {number} has {len(said)} predicted tags and {len(right)} true ones: it needs one for each token."
                )
            if bad := [tag for tag in (*said, *right) if not re.match("O$|[BILUES](-|$)", str(tag))]:
                raise DataError(f"Example {number} has the tag {bad[0]!r}, which is neither O nor as B-PER or I-PER.")

    @classmethod
    def _measures(cls, predictions: Any, references: Any, *, scheme: str | None = None) -> dict[str, Measure]:
        counts, types = _counts(predictions, references, scheme)
        overall = counts.sum(1)
        tags = [
            (sum(a == b for a, b in zip(said, right, strict=True)), len(right))
            for said, right in zip(predictions, references, strict=True)
        ]
        return {
            "overall_f1": Measure("f1", overall),
            "overall_precision": Measure("mean", overall[:, [0, 1]]),
            "overall_recall": Measure("mean", overall[:, [0, 2]]),
            "overall_accuracy": Measure("mean", np.array(tags)),
            **{f"f1_{name}": Measure("f1", counts[:, index]) for index, name in enumerate(types)},
        }

    def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
        found = self.measures(predictions, references, **options)
        results: dict[str, Any] = {}
        for name, measure in found.items():
            if name.startswith("overall_"):
                results[name] = measure.value
                continue
            precision, recall = (Measure("mean", measure.statistics[:, [0, below]]).value for below in (1, 2))
            results[name.removeprefix("f1_")] = {
                "precision": precision,
                "recall": recall,
                "f1": measure.value,
                "number": int(measure.statistics[:, 2].sum()),
            }
        return results


def _counts(predictions: Any, references: Any, scheme: str | None) -> tuple[np.ndarray, list[str]]:
    """Right, predicted and true entities of each example and type: (examples, types, 3), and the types."""
    said, true = ([_entities(list(tags), scheme) for tags in rows] for rows in (predictions, references))
    types = sorted({entity[0] for entities in (*said, *true) for entity in entities})
    place = {name: index for index, name in enumerate(types)}
    counts = np.zeros((len(said), len(types), 3), dtype=int)
    for example, (a, b) in enumerate(zip(said, true, strict=True)):
        for column, entities in enumerate((a & b, a, b)):
            for entity in entities:
                counts[example, place[entity[0]], column] += 1
    return counts, types


def _entities(tags: list[str], scheme: str | None) -> set[tuple[str, int, int]]:
    if scheme is None:
        return set(get_entities(tags))
    if scheme not in _SCHEMES:
        raise ConfigError(f"There is no scheme {scheme!r} of entities; there are {', '.join(_SCHEMES)}.")
    try:
        found = seqeval.scheme.Tokens(tags, getattr(seqeval.scheme, scheme)).entities
    except ValueError as error:
        raise DataError(f"The tags {' '.join(tags):.80} are not of the scheme {scheme}: {error}") from error
    return {(entity.tag, entity.start, entity.end) for entity in found}
