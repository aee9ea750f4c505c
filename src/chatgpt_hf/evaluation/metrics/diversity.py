"""Measures how much generated texts repeat themselves and one another."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, Value

from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import MetricModule, signature
from chatgpt_hf.evaluation.text import WORDS, words

Ngrams = Counter[tuple[str, ...]]


class Diversity(MetricModule):
    """Distinct and repeated n-grams of words, and the length in words; a character of a script without spaces is a word.

    A figure that no text is long enough for is NaN.

    Args:
        predictions: Generated texts. There are no references.

    Returns:
        `distinct_1` to `distinct_3`: the number of different n-grams in all texts, divided by the number of n-grams (Li et
        al. 2016); it falls with more or longer texts. Its interval treats the frequency of each n-gram as fixed.
        `rep_2` to `rep_4`: the share of a text's n-grams that repeat an earlier one (seq-rep-n of Welleck et al. 2020),
        averaged over the texts that have n-grams; lower is better.
        `diversity`: (1 - rep_2)(1 - rep_3)(1 - rep_4) of a text (Su et al. 2022), averaged over texts of at least four words.
        `length`: the mean number of words.
    """

    source = (
        "Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models; Welleck et al. 2020, "
        "Neural Text Generation with Unlikelihood Training; Su et al. 2022, A Contrastive Framework for Neural Text Generation"
    )

    def _features(self) -> Features:
        return Features({"predictions": Value("string")})

    @classmethod
    def check(cls, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
        if predictions is None or not len(predictions):
            raise DataError("There are 0 predictions: there is nothing to measure.")
        if bad := [text for text in predictions if not isinstance(text, str)]:
            raise DataError(f"Predictions must be texts, but one is {bad[0]!r:.80}.")

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Stores some predictions for `compute`."""
        super().add_batch(predictions=predictions, **kwargs)

    @classmethod
    def _measures(cls, predictions: Any, references: Any = None) -> dict[str, Measure]:
        tokens = [words(text) for text in predictions]
        grams = {n: [_ngrams(row, n) for row in tokens] for n in (1, 2, 3, 4)}
        repeated = {n: np.array([_repeated(row) for row in grams[n]]) for n in (2, 3, 4)}
        kept = math.prod(1 - part[:, 0] for part in repeated.values())
        long_enough = repeated[4][:, 1]
        parts = {
            **{f"distinct_{n}": _distinct(grams[n]) for n in (1, 2, 3)},
            **{f"rep_{n}": part for n, part in repeated.items()},
            "diversity": np.stack([kept * long_enough, long_enough], axis=1),
            "length": np.array([(len(row), 1) for row in tokens]),
        }
        how = signature(tok=WORDS)
        return {
            name: Measure("mean_where_defined", part, not name.startswith("rep_"), signature=how)
            for name, part in parts.items()
        }


def _ngrams(tokens: list[str], n: int) -> Ngrams:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _repeated(grams: Ngrams) -> tuple[float, int]:
    """Returns the share of repeated n-grams, and 1; zeros for a text that is too short for n-grams."""
    total = grams.total()
    return (1 - len(grams) / total, 1) if total else (0, 0)


def _distinct(texts: list[Ngrams]) -> np.ndarray:
    """Returns the numbers of different n-grams and of all n-grams, (texts, 2).

    Each of the k occurrences of an n-gram counts as 1/k different n-grams, so the parts sum to the number of different
    n-grams and do not depend on the order of the texts.
    """
    everywhere: Ngrams = Counter()
    for grams in texts:
        everywhere.update(grams)
    return np.array(
        [(sum(count / everywhere[gram] for gram, count in grams.items()), grams.total()) for grams in texts]
    )
