"""How many words a prediction shares with its reference, as answers to questions are scored."""

from collections import Counter
from typing import Any

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, mean_measure, several
from chatgpt_hf.evaluation.text import squad_normalize, words


class TokenF1(TextMetric):
    """The F1 of a prediction's words from 0 to 1, the mean over the examples.

    Words are compared as SQuAD does, in lower case without punctuation and articles; a Chinese or Japanese character is a
    word, as in MLQA. Where one of the two has no words, both must have none, as in SQuAD 2.0.

    Args:
        predictions: Texts.
        references: A text, or several, of which the best counts.

    Returns:
        `token_f1`.
    """

    source = "Rajpurkar et al. 2016, SQuAD; Rajpurkar et al. 2018, SQuAD 2.0; Lewis et al. 2020, MLQA"

    @classmethod
    def _measures(cls, predictions: Any, references: Any) -> dict[str, Measure]:
        pairs = zip(predictions, several(references), strict=True)
        return {"token_f1": mean_measure([max(_f1(said, reference) for reference in right) for said, right in pairs])}


def _f1(prediction: str, reference: str) -> float:
    said, right = (words(squad_normalize(text)) for text in (prediction, reference))
    if not said or not right:
        return float(said == right)
    return 2 * (Counter(said) & Counter(right)).total() / (len(said) + len(right))
