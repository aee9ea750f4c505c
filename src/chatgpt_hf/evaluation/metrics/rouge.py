"""ROUGE, by rouge-score, extended to all languages."""

import re
from collections.abc import Sequence
from typing import Any

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, mean_measure, several, signature
from chatgpt_hf.evaluation.text import WORDS, characters, letter_words
from chatgpt_hf.extras import needed_by

with needed_by("ROUGE"):
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer
    from rouge_score.tokenizers import Tokenizer as AnyTokenizer


class Rouge(TextMetric):
    """ROUGE's F-measure from 0 to 1 as computed by rouge-score, averaged over the examples.

    Texts in ASCII are split by rouge-score. In others a word is a run of letters, marks and digits, and each character is
    a word in scripts without spaces (Chinese, Japanese, Thai ...). If a reference has no word at all (emoji, punctuation),
    it and its prediction are compared by characters. Two texts with the same words score 1, even if they have fewer words
    than an n-gram, or none; rouge-score gives 0 then.

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
        words, signs = Tokenizer(use_stemmer), CharacterTokenizer()
        scorers = [(tokenizer, RougeScorer(list(rouge_types), tokenizer=tokenizer)) for tokenizer in (words, signs)]

        def score(prediction: str, reference: str) -> dict[str, float]:
            tokenizer, scorer = scorers[0 if words.tokenize(reference) else 1]
            found = {name: value.fmeasure for name, value in scorer.score(reference, prediction).items()}
            same = tokenizer.tokenize(prediction) == tokenizer.tokenize(reference)
            return {name: value or float(same) for name, value in found.items()}

        pairs = zip(predictions, several(references), strict=True)
        scores = [[score(said, reference) for reference in right] for said, right in pairs]
        how = signature(case="lc", tok=WORDS, stem=use_stemmer)
        return {name: mean_measure([max(row[name] for row in rows) for rows in scores], how) for name in rouge_types}

    def _compute(
        self, predictions: Any, references: Any = None, *, use_aggregator: bool = True, **options: Any
    ) -> dict[str, Any]:
        if use_aggregator:
            return super()._compute(predictions, references, **options)
        found = self.measures(predictions, references, **options)
        return {name: measure.statistics[:, 0].tolist() for name, measure in found.items()}


class Tokenizer(DefaultTokenizer):
    """Words of any language in lower case; those of ASCII text are rouge-score's own, with its stemmer."""

    def tokenize(self, text: str) -> list[str]:
        split = super().tokenize
        if text.isascii():
            return split(text)
        return [part for word in letter_words(text) for part in (split(word) if word.isascii() else [word])]


class CharacterTokenizer(AnyTokenizer):
    """Characters as a reader sees them, for texts without any word."""

    def tokenize(self, text: str) -> list[str]:
        return characters(text)
