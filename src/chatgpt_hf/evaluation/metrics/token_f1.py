"""F1 of the words that a prediction shares with its reference, the usual score for question answering."""

from collections import Counter
from typing import Any

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, mean_measure, several, signature
from chatgpt_hf.evaluation.text import WORDS, squad_pair, words


class TokenF1(TextMetric):
    """The F1 of a prediction's words from 0 to 1, averaged over the examples.

    Words are compared as in SQuAD, in lower case without punctuation and articles; a character of a script without spaces
    (Chinese, Japanese, Thai ...) is a word, as in MLQA. The order does not count, unlike in CMRC 2018's script. If one text
    is empty, the score is 1 only if the other has no words either, as in SQuAD 2.0; a reference of punctuation only is
    compared as it is.

    Args:
        predictions: Texts.
        references: A text, or several; the best match counts.

    Returns:
        `token_f1`.
    """

    source = "Rajpurkar et al. 2016, SQuAD; Rajpurkar et al. 2018, SQuAD 2.0; Lewis et al. 2020, MLQA"

    @classmethod
    def _measures(cls, predictions: Any, references: Any) -> dict[str, Measure]:
        pairs = zip(predictions, several(references), strict=True)
        scores = [max(_f1(said, reference) for reference in right) for said, right in pairs]
        return {"token_f1": mean_measure(scores, signature(norm="squad", tok=WORDS))}


def _f1(prediction: str, reference: str) -> float:
    said, right = map(words, squad_pair(prediction, reference))
    if not said or not right:
        return float(said == right)
    return 2 * (Counter(said) & Counter(right)).total() / (len(said) + len(right))
