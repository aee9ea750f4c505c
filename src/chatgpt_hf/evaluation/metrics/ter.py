"""Translation edit rate, by sacrebleu."""

from typing import Any

import numpy as np

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, sacrebleu_signature, several
from chatgpt_hf.evaluation.text import CHARACTERS, bleu_tokenizer, words
from chatgpt_hf.extras import needed_by

with needed_by("TER"):
    from sacrebleu.metrics import TER


class Ter(TextMetric):
    """Edits per 100 words of the references as computed by sacrebleu, over the whole corpus; lower is better.

    Args:
        predictions: Raw texts.
        references: A text, or several, for each prediction.
        normalized, no_punct, asian_support, case_sensitive: Options of sacrebleu. Without the first three, texts of a data
            set in a script without spaces (Chinese, Japanese, Thai ...) are first split into characters: `tok:char`.

    Returns:
        `ter`.
    """

    source = (
        "Snover et al. 2006, A Study of Translation Edit Rate with Targeted Human Annotation; Post 2018, sacreBLEU"
    )

    @classmethod
    def _measures(cls, predictions: Any, references: Any, **options: Any) -> dict[str, Measure]:
        scorer, given = TER(**options), several(references)
        tokenizer = "tercom"
        by_default = not {"normalized", "no_punct", "asian_support"} & options.keys()
        if by_default and bleu_tokenizer(text for texts in given for text in texts) != "13a":
            tokenizer = CHARACTERS
            predictions = [" ".join(words(text)) for text in predictions]
            given = [[" ".join(words(text)) for text in texts] for texts in given]
        scores = [scorer.sentence_score(*pair) for pair in zip(predictions, given, strict=True)]
        statistics = np.array([[score.num_edits, score.ref_length] for score in scores])
        how = sacrebleu_signature(scorer, given, tok=tokenizer)
        return {"ter": Measure("ter", statistics, higher_is_better=False, signature=how)}
