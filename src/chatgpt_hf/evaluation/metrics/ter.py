"""Translation edit rate, by sacrebleu."""

from typing import Any

import numpy as np

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, several
from chatgpt_hf.extras import needed_by

with needed_by("TER"):
    from sacrebleu.metrics import TER


class Ter(TextMetric):
    """Edits per 100 words of the references as computed by sacrebleu, over the whole corpus; lower is better.

    Args:
        predictions: Raw texts.
        references: A text, or several, for each prediction.
        normalized, no_punct, asian_support, case_sensitive: Options of sacrebleu. Chinese needs `normalized` and
            `asian_support`.

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
