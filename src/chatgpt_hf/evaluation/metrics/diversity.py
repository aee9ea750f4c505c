"""How much generated texts repeat themselves and one another."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, Value

from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import MetricModule
from chatgpt_hf.evaluation.text import words

Ngrams = Counter[tuple[str, ...]]


class Diversity(MetricModule):
    """Distinct and repeated n-grams of words, and the length in words; a Chinese or Japanese character is a word.

    Args:
        predictions: Generated texts. There are no references.

    Returns:
        `distinct_1` to `distinct_3`: of all the n-grams of all the texts, the share of different ones (Li et al. 2016), which falls
        with more or longer texts; its interval takes how often each n-gram occurs as given.
        `rep_2` to `rep_4`: the share of a text's n-grams that it has had before (seq-rep-n of Welleck et al. 2020), the mean
        over the texts that have any; lower is better.
        `diversity`: (1 - rep_2)(1 - rep_3)(1 - rep_4) of a text (Su et al. 2022), the mean over texts of at least four words.
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
            raise DataError(f"Predictions are texts, and one is {bad[0]!r:.80}.")

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Keeps some predictions for `compute`."""
        super().add_batch(predictions=predictions, **kwargs)

    @classmethod
    def _measures(cls, predictions: Any, references: Any = None) -> dict[str, Measure]:
        tokens = [words(text) for text in predictions]
        grams = {n: [_ngrams(row, n) for row in tokens] for n in (1, 2, 3, 4)}
        repeated = {n: np.array([_repeated(row) for row in grams[n]]) for n in (2, 3, 4)}
        kept = math.prod(1 - part[:, 0] for part in repeated.values())
        long_enough = repeated[4][:, 1]
        return {
            **{f"distinct_{n}": Measure("mean", _distinct(grams[n])) for n in (1, 2, 3)},
            **{f"rep_{n}": Measure("mean", part, higher_is_better=False) for n, part in repeated.items()},
            "diversity": Measure("mean", np.stack([kept * long_enough, long_enough], axis=1)),
            "length": Measure("mean", np.array([(len(row), 1) for row in tokens])),
        }


def _ngrams(tokens: list[str], n: int) -> Ngrams:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _repeated(grams: Ngrams) -> tuple[float, int]:
    """The share, and 1; zeros for a text that is too short to have any."""
    total = grams.total()
    return (1 - len(grams) / total, 1) if total else (0, 0)


def _distinct(texts: list[Ngrams]) -> np.ndarray:
    """Different n-grams and all of them, (texts, 2): an n-gram that occurs k times counts a kth each time.

    So the parts sum to the number of different n-grams, and do not depend on the order of the texts.
    """
    everywhere: Ngrams = Counter()
    for grams in texts:
        everywhere.update(grams)
    return np.array(
        [(sum(count / everywhere[gram] for gram, count in grams.items()), grams.total()) for grams in texts]
    )
