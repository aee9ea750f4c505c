"""chrF and chrF++, by sacrebleu."""

from typing import Any

import numpy as np
from sacrebleu.metrics import CHRF

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, several, streams


class Chrf(TextMetric):
    """chrF from 0 to 100 as sacrebleu computes it: the F-score of character n-grams, over the whole corpus.

    Args:
        predictions: Texts as they are.
        references: A text, or several, for each.
        word_order: 2 for chrF++, which counts words as well.
        char_order, beta, lowercase, whitespace, eps_smoothing: sacrebleu's.

    Returns:
        `chrf`.
    """

    source = "Popović 2015, chrF: character n-gram F-score for automatic MT evaluation; Popović 2017, chrF++; Post 2018, sacreBLEU"

    @classmethod
    def _measures(cls, predictions: Any, references: Any, **options: Any) -> dict[str, Measure]:
        statistics = CHRF(**options)._extract_corpus_statistics(predictions, streams(several(references)))
        kept: dict[str, Any] = {name: options[name] for name in ("beta", "eps_smoothing") if name in options}
        return {"chrf": Measure("chrf", np.array(statistics), options=kept)}
