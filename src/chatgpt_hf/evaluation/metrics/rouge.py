"""ROUGE, by rouge-score, extended to Chinese and Japanese."""

import re
from collections.abc import Sequence
from typing import Any

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, mean_measure, several
from chatgpt_hf.evaluation.text import CJK
from chatgpt_hf.extras import needed_by

with needed_by("ROUGE"):
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer


class Rouge(TextMetric):
    """ROUGE's F-measure from 0 to 1 as computed by rouge-score, averaged over the examples.

    A Chinese or Japanese character is a word; other words are split by rouge-score, which knows only the letters a to z and
    digits.

    Args:
        predictions: Texts; for `rougeLsum` with one sentence per line.
        references: A text, or several; the best match counts.
        rouge_types: Any of `rouge1` to `rouge9`, `rougeL` and `rougeLsum`; the default is 1, 2, L and Lsum.
        use_stemmer: Compare English words by their stems.
        use_aggregator: With False, `compute` returns lists with each example's figure.

    Returns:
        A figure for each of `rouge_types`.
    """

    source = "Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries"

    @classmethod
    def _measures(
        cls,
        predictions: Any,
        references: Any,
        *,
        rouge_types: Sequence[str] = ("rouge1", "rouge2", "rougeL", "rougeLsum"),
        use_stemmer: bool = False,
    ) -> dict[str, Measure]:
        for name in rouge_types:
            if not re.fullmatch("rouge([1-9]|L|Lsum)", name):
                raise ConfigError(f"ROUGE has no {name!r}; choose from rouge1 to rouge9, rougeL and rougeLsum.")
        scorer = RougeScorer(list(rouge_types), tokenizer=Tokenizer(use_stemmer))
        scores = [scorer.score_multi(*pair) for pair in zip(several(references), predictions, strict=True)]
        return {name: mean_measure([score[name].fmeasure for score in scores]) for name in rouge_types}

    def _compute(
        self, predictions: Any, references: Any = None, *, use_aggregator: bool = True, **options: Any
    ) -> dict[str, Any]:
        if use_aggregator:
            return super()._compute(predictions, references, **options)
        found = self.measures(predictions, references, **options)
        return {name: measure.statistics[:, 0].tolist() for name, measure in found.items()}


class Tokenizer(DefaultTokenizer):
    """rouge-score's tokenizer, which keeps only a to z and digits, plus each Chinese or Japanese character as a token."""

    def tokenize(self, text: str) -> list[str]:
        words = super().tokenize
        parts = re.split(f"({CJK})", text)
        return [token for index, part in enumerate(parts) for token in ([part] if index % 2 else words(part))]
