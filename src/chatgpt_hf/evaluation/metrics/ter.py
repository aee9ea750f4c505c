"""Translation edit rate, by sacrebleu."""

from typing import Any

import numpy as np
from sacrebleu.metrics import TER

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, several


class Ter(TextMetric):
    """Edits for each 100 words of the references, as sacrebleu computes it over the whole corpus; lower is better.

    Args:
        predictions: Texts as they are.
        references: A text, or several, for each.
        normalized, no_punct, asian_support, case_sensitive: sacrebleu's. Chinese needs `normalized` and `asian_support`.

    Returns:
        `ter`.
    """

    source = (
        "Snover et al. 2006, A Study of Translation Edit Rate with Targeted Human Annotation; Post 2018, sacreBLEU"
    )

    @classmethod
    def _measures(cls, predictions: Any, references: Any, **options: Any) -> dict[str, Measure]:
        scorer = TER(**options)
        scores = [scorer.sentence_score(*pair) for pair in zip(predictions, several(references), strict=True)]
        statistics = np.array([[score.num_edits, score.ref_length] for score in scores])
        return {"ter": Measure("ter", statistics, higher_is_better=False)}
