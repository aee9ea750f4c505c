"""Exact match: the share of predictions that equal a reference."""

import re
from collections.abc import Sequence
from typing import Any

from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, mean_measure, several, signature
from chatgpt_hf.evaluation.text import remove_punctuation, squad_pair


class ExactMatch(TextMetric):
    """The share of predictions that equal a reference.

    Exact is exact: a letter with an accent and the same letter followed by a combining accent differ, except with `squad`.

    Args:
        predictions: Texts.
        references: A text, or several, for each prediction.
        squad: Compare in lower case without punctuation and articles, like SQuAD; without any Unicode punctuation if the
            texts are not in Latin letters, as MLQA and CMRC 2018 do.
        regexes_to_ignore: Regular expressions; their matches are first removed from both texts.
        ignore_case, ignore_punctuation, ignore_numbers: Differences to ignore. By default every difference counts.

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
        def normalize(text: str, other: str) -> str:
            for regex in regexes_to_ignore or ():
                text = re.sub(regex, "", text)
            text = text.lower() if ignore_case else text
            text = remove_punctuation(text, other) if ignore_punctuation else text
            return re.sub(r"\d", "", text) if ignore_numbers else text

        def equal(prediction: str, reference: str) -> bool:
            said, right = normalize(prediction, reference), normalize(reference, prediction)
            if squad:
                said, right = squad_pair(said, right)
            return said == right

        pairs = zip(predictions, several(references), strict=True)
        ignored = {"case": ignore_case, "punct": ignore_punctuation, "num": ignore_numbers}
        how = {
            "norm": "squad" if squad else "none",
            **{f"ignore-{name}": "yes" for name, value in ignored.items() if value},
            **({"ignore-regexes": " ".join(regexes_to_ignore)} if regexes_to_ignore else {}),
        }
        return {
            "exact_match": mean_measure(
                [any(equal(said, reference) for reference in right) for said, right in pairs], signature(**how)
            )
        }
