"""BLEU, by sacrebleu."""

from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU

from ...errors import ConfigError
from ..figures import Measure
from .base import TextMetric, several, streams


class Bleu(TextMetric):
    """BLEU from 0 to 100 as computed by sacrebleu, over the whole corpus.

    Args:
        predictions: Raw texts, not tokenized.
        references: A text, or several, for each prediction.
        tokenize: `13a` (the default), `zh` for Chinese, `char`, `intl`, `none`, `ja-mecab`, `ko-mecab`, or `spm`, `flores101`
            and `flores200`, which download their model.
        lowercase, smooth_method (`exp`, `floor`, `add-k`, `none`), smooth_value, max_ngram_order, effective_order, force:
            Options of sacrebleu.
        reference_length: With several references, use the length of the `closest` (Papineni et al. 2002, sacrebleu) or the
            `shortest` (NIST's script, and `evaluate.load("bleu")`).

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
        scorer = _scorer(reference_length, options)
        statistics = np.array(scorer._extract_corpus_statistics(predictions, streams(several(references))))
        names = ("smooth_method", "smooth_value", "effective_order")
        return {
            "bleu": Measure("bleu", statistics, options={name: options[name] for name in names if name in options})
        }

    def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
        (measure,) = self.measures(predictions, references, **options).values()
        options.pop("reference_length", None)
        score = BLEU(**options)._compute_score_from_stats(measure.statistics.sum(0).tolist())
        names = ("counts", "totals", "precisions", "bp", "sys_len", "ref_len")
        return {"bleu": measure.value, **{name: getattr(score, name) for name in names}}


class _ShortestReferenceBLEU(BLEU):
    def _get_closest_ref_len(self, hyp_len: int, ref_lens: list[int]) -> int:
        return min(ref_lens)


def _scorer(reference_length: str, options: dict[str, Any]) -> BLEU:
    kinds = {"closest": BLEU, "shortest": _ShortestReferenceBLEU}
    known = {
        "reference_length": (reference_length, kinds),
        "tokenize": (options.get("tokenize") or BLEU.TOKENIZER_DEFAULT, BLEU.TOKENIZERS),
        "smooth_method": (options.get("smooth_method", "none"), BLEU.SMOOTH_DEFAULTS),
    }
    for name, (value, values) in known.items():
        if value not in values:
            raise ConfigError(f"BLEU's {name} is {value!r}, but must be one of {', '.join(values)}.")
    return kinds[reference_length](**options)
