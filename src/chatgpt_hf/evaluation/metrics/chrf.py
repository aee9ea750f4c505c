"""chrF and chrF++, by sacrebleu."""

from typing import Any

import numpy as np

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, sacrebleu_signature, several, streams
from chatgpt_hf.extras import needed_by

with needed_by("chrF"):
    from sacrebleu.metrics import CHRF


class Chrf(TextMetric):
    """chrF from 0 to 100 as computed by sacrebleu: the F-score of character n-grams, over the whole corpus.

    Args:
        predictions: Raw texts.
        references: A text, or several, for each prediction.
        word_order: 2 for chrF++, which also counts word n-grams.
        char_order, beta, lowercase, whitespace, eps_smoothing: Options of sacrebleu.

    Returns:
        `chrf`.
    """

    source = "Popović 2015, chrF: character n-gram F-score for automatic MT evaluation; Popović 2017, chrF++; Post 2018, sacreBLEU"

    @classmethod
    def _measures(cls, predictions: Any, references: Any, **options: Any) -> dict[str, Measure]:
        scorer, given = CHRF(**options), several(references)
        statistics = scorer._extract_corpus_statistics(predictions, streams(given))
        kept: dict[str, Any] = {name: options[name] for name in ("beta", "eps_smoothing") if name in options}
        how = sacrebleu_signature(scorer, given)
        return {"chrf": Measure("chrf", np.array(statistics), options=kept, signature=how)}
