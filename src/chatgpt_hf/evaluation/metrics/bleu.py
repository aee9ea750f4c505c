"""BLEU, by sacrebleu."""

from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, several, streams


class Bleu(TextMetric):
    """BLEU from 0 to 100 as sacrebleu computes it, over the whole corpus.

    Args:
        predictions: Texts as they are, not cut into tokens.
        references: A text, or several, for each.
        tokenize: `13a` (the default), `zh` for Chinese, `char`, `intl`, `none`, `ja-mecab`, `ko-mecab`, or `spm`, `flores101`
            and `flores200`, which download their model.
        lowercase, smooth_method (`exp`, `floor`, `add-k`, `none`), smooth_value, max_ngram_order, effective_order, force:
            sacrebleu's.
        reference_length: Of several references, the length of the `closest` counts (Papineni et al. 2002, sacrebleu) or that of
            the `shortest` (NIST's script, and `evaluate.load("bleu")`).

    Returns:
        `bleu`, and from `compute` also `counts`, `totals`, `precisions`, `bp`, `sys_len` and `ref_len`.
    """

    source = (
        "Papineni et al. 2002, BLEU: a Method for Automatic Evaluation of Machine Translation; Post 2018, sacreBLEU"
    )

    @classmethod
    def _measures(
        cls, predictions: Any, references: Any, *, reference_length: str = "closest", **options: Any
    ) -> dict[str, Measure]:
        _check(reference_length, options)
        scorer, given = BLEU(**options), several(references)
        # By example: sacrebleu's public scores of one sentence each would not warn of texts that were cut into tokens already.
        statistics = np.array(scorer._extract_corpus_statistics(predictions, streams(given)))
        if reference_length == "shortest":
            statistics[:, 1] = [_shortest(scorer, *pair) for pair in zip(predictions, given, strict=True)]
        names = ("smooth_method", "smooth_value", "effective_order")
        return {
            "bleu": Measure("bleu", statistics, options={name: options[name] for name in names if name in options})
        }

    def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
        (measure,) = self.measures(predictions, references, **options).values()
        length, right_length, *counts = measure.statistics.sum(0).tolist()
        order = len(counts) // 2
        score = BLEU.compute_bleu(
            counts[:order],
            counts[order:],
            int(length),
            int(right_length),
            max_ngram_order=order,
            **{"smooth_method": "exp", **measure.options},
        )
        names = ("counts", "totals", "precisions", "bp", "sys_len", "ref_len")
        return {"bleu": measure.value, **{name: getattr(score, name) for name in names}}


def _shortest(scorer: BLEU, prediction: str, references: list[str]) -> int:
    """The tokens of the shortest reference."""
    return min(scorer.corpus_score([prediction], [[reference]]).ref_len for reference in references)


def _check(reference_length: str, options: dict[str, Any]) -> None:
    known = {
        "reference_length": (reference_length, ("closest", "shortest")),
        "tokenize": (options.get("tokenize") or BLEU.TOKENIZER_DEFAULT, BLEU.TOKENIZERS),
        "smooth_method": (options.get("smooth_method", "none"), BLEU.SMOOTH_DEFAULTS),
    }
    for name, (value, values) in known.items():
        if value not in values:
            raise ConfigError(f"BLEU's {name} is {value!r}; it can be {', '.join(values)}.")
