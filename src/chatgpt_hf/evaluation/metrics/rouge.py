"""ROUGE, by rouge-score, with words of Chinese too."""

import re
from collections.abc import Sequence
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, mean_measure, several
from chatgpt_hf.evaluation.text import CJK


class Rouge(TextMetric):
    """The F-measure of ROUGE from 0 to 1 as rouge-score computes it, the mean over the examples.

    A Chinese or Japanese character is a word; anything else is read as rouge-score does, which knows the letters a to z and
    digits.

    Args:
        predictions: Texts; for `rougeLsum` with a sentence on each line.
        references: A text, or several, of which the best counts.
        rouge_types: Any of `rouge1` to `rouge9`, `rougeL` and `rougeLsum`; 1, 2, L and Lsum where it is left out.
        use_stemmer: Whether English words are compared by their stems.
        use_aggregator: False for a list with each example's figure, from `compute`.

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
                raise ConfigError(f"There is no {name!r} in ROUGE; there are rouge1 to rouge9, rougeL and rougeLsum.")
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
    """rouge-score's, which drops everything but a to z and digits, with each Chinese or Japanese character as a token."""

    def tokenize(self, text: str) -> list[str]:
        words = super().tokenize
        parts = re.split(f"({CJK})", text)
        return [token for index, part in enumerate(parts) for token in ([part] if index % 2 else words(part))]
