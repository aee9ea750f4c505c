"""BLEU, by sacrebleu."""

import logging
from typing import Any

import numpy as np

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics.base import TextMetric, sacrebleu_signature, several, streams
from chatgpt_hf.evaluation.text import bleu_tokenizer
from chatgpt_hf.extras import needed_by

with needed_by("BLEU"):
    from sacrebleu.metrics import BLEU

logger = logging.getLogger("chatgpt_hf.evaluation.metrics.bleu")

# These know words only between spaces.
_FOR_SPACES = ("13a", "intl", "none")
_INSTALL = {"ja-mecab": "pip install 'sacrebleu[ja]'", "ko-mecab": "pip install 'sacrebleu[ko]'"}


class Bleu(TextMetric):
    """BLEU from 0 to 100 as computed by sacrebleu, over the whole corpus.

    Args:
        predictions: Raw texts, not tokenized.
        references: A text, or several, for each prediction.
        tokenize: `13a`, `zh`, `char`, `intl`, `none`, `ja-mecab`, `ko-mecab`, or `spm`, `flores101` and `flores200`, which
            download their model. By default `zh` for Chinese references, `char` for other scripts without spaces (Japanese,
            Thai, Khmer ...), and `13a` for all others.
        effective_order: Leave out n-grams that are longer than all predictions, so that a correct answer of one word scores
            100. By default True, unlike in sacrebleu, which gives 0 then; longer texts have the same score either way.
        lowercase, smooth_method (`exp`, `floor`, `add-k`, `none`), smooth_value, max_ngram_order, force: Options of
            sacrebleu.
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
        _check(reference_length, options)
        given = several(references)
        texts = [text for row in given for text in row]
        if options.get("tokenize") is None:
            options = {**options, "tokenize": bleu_tokenizer(texts)}
        elif options["tokenize"] in _FOR_SPACES and (better := bleu_tokenizer(texts)) != "13a":
            logger.warning(
                "BLEU's tokenizer %s does not split the script of the references, so a sentence counts as one word: use %s.",
                options["tokenize"],
                better,
            )
        options = {"effective_order": True, **options}
        scorer = _scorer(options)
        # Not by sacrebleu's public score of each sentence, which would not warn about texts that are already tokenized.
        statistics = np.array(scorer._extract_corpus_statistics(predictions, streams(given)))
        if reference_length == "shortest":
            statistics[:, 1] = [_shortest(scorer, *pair) for pair in zip(predictions, given, strict=True)]
        names = ("smooth_method", "smooth_value", "effective_order")
        return {
            "bleu": Measure(
                "bleu",
                statistics,
                options={name: options[name] for name in names if name in options},
                signature=_signature(scorer, given, reference_length),
            )
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


def _scorer(options: dict[str, Any]) -> BLEU:
    try:
        return BLEU(**options)
    except (ImportError, OSError, RuntimeError) as error:
        name = options["tokenize"]
        remedy = _INSTALL.get(name, f"it needs sentencepiece, and a model that sacrebleu downloads ({error!r:.200})")
        raise ConfigError(f"BLEU's tokenizer {name} cannot be used here: {remedy}") from error


def _signature(scorer: BLEU, references: list[list[str]], reference_length: str) -> str:
    own = {} if reference_length == "closest" else {"ref-length": reference_length}
    return sacrebleu_signature(scorer, references, **own)


def _shortest(scorer: BLEU, prediction: str, references: list[str]) -> int:
    """Returns the number of tokens of the shortest reference."""
    return min(scorer.corpus_score([prediction], [[reference]]).ref_len for reference in references)


def _check(reference_length: str, options: dict[str, Any]) -> None:
    known = {
        "reference_length": (reference_length, ("closest", "shortest")),
        "tokenize": (options.get("tokenize") or BLEU.TOKENIZER_DEFAULT, BLEU.TOKENIZERS),
        "smooth_method": (options.get("smooth_method", "none"), BLEU.SMOOTH_DEFAULTS),
    }
    for name, (value, values) in known.items():
        if value not in values:
            raise ConfigError(f"BLEU's {name} is {value!r}, but must be one of {', '.join(values)}.")
