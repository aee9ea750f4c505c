"""Whether predictions are what was asked for, to the letter."""

import re
import string
from collections.abc import Sequence
from typing import Any

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, mean_measure, several
from chatgpt_hf.evaluation.text import remove_punctuation, squad_normalize


class ExactMatch(TextMetric):
    """The share of predictions that equal a reference.

    Args:
        predictions: Texts.
        references: A text, or several, for each.
        squad: Compares lower case without punctuation and articles, as SQuAD does.
        regexes_to_ignore: Regular expressions whose matches are taken out of both, before all else.
        ignore_case, ignore_punctuation, ignore_numbers: What makes no difference. Without any of these options, everything
            does.

    Returns:
        `exact_match`.
    """

    source = "Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text"

    @classmethod
    def _measures(
        cls,
        predictions: Any,
        references: Any,
        *,
        squad: bool = False,
        regexes_to_ignore: Sequence[str] = (),
        ignore_case: bool = False,
        ignore_punctuation: bool = False,
        ignore_numbers: bool = False,
    ) -> dict[str, Measure]:
        def normalize(text: str) -> str:
            for regex in regexes_to_ignore or ():
                text = re.sub(regex, "", text)
            text = text.lower() if ignore_case else text
            text = remove_punctuation(text) if ignore_punctuation else text
            text = text.translate(dict.fromkeys(map(ord, string.digits))) if ignore_numbers else text
            return squad_normalize(text) if squad else text

        pairs = zip(predictions, several(references), strict=True)
        return {"exact_match": mean_measure([normalize(said) in map(normalize, right) for said, right in pairs])}
