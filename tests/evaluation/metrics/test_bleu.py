"""BLEU, compared with sacrebleu's own corpus scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

from chatgpt_hf.evaluation.metrics import load_metric, measures


@pytest.fixture(scope="module")
def pairs(shared_data: Path) -> dict[str, tuple[list[str], list[str]]]:
    """English and Chinese sentences, each paired with the one two places later."""
    lines = (shared_data / "translation" / "tatoeba_eng_cmn_a.tsv").read_text(encoding="utf-8").splitlines()[1000:1150]
    texts = {"en": [line.split("\t")[0] for line in lines], "zh": [line.split("\t")[1] for line in lines]}
    return {language: (said, said[2:] + said[:2]) for language, said in texts.items()}


@pytest.mark.parametrize(
    ("language", "options"),
    [
        ("en", {}),
        ("en", {"lowercase": True, "tokenize": "intl", "smooth_method": "floor", "smooth_value": 0.5}),
        ("en", {"smooth_method": "add-k", "tokenize": "char"}),
        ("zh", {"tokenize": "zh", "smooth_method": "none"}),
        ("zh", {"tokenize": "13a"}),
    ],
)
def test_as_sacrebleu(language: str, options: dict[str, Any], pairs: Any) -> None:
    predictions, references = pairs[language]
    reference = sacrebleu.corpus_bleu(predictions, [references], **options)
    found = load_metric("bleu").compute(predictions=predictions, references=references, **options)
    assert found["bleu"] == reference.score
    assert {name: getattr(reference, name) for name in found if name != "bleu"} == {
        name: value for name, value in found.items() if name != "bleu"
    }


@pytest.mark.parametrize(
    "options", [{}, {"max_ngram_order": 2, "effective_order": True, "smooth_method": "add-k", "smooth_value": 2}]
)
def test_resampled(options: dict[str, Any], pairs: Any) -> None:
    """The bootstrap's figure from sums equals the score of the resampled texts."""
    predictions, references = pairs["en"]
    measure = measures("bleu", predictions, references, **options)["bleu"]
    chosen = np.random.default_rng(0).integers(len(predictions), size=(3, 100))
    sums = np.stack([measure.statistics[rows].sum(0) for rows in chosen]).astype(float)
    scorer = sacrebleu.BLEU(**options)
    for rows, score in zip(chosen, measure.of(sums), strict=True):
        texts = [predictions[row] for row in rows], [[references[row] for row in rows]]
        assert score == scorer.corpus_score(*texts).score > 0


def test_differing_numbers_of_references() -> None:
    found = load_metric("bleu").compute(
        predictions=["hello there general", "foo bar foobar"],
        references=[["hello there general", "hello there !"], ["foo bar foobar"]],
        effective_order=False,
    )
    streams = [["hello there general", "foo bar foobar"], ["hello there !", None]]
    assert found["bleu"] == sacrebleu.corpus_bleu(["hello there general", "foo bar foobar"], streams).score


def test_nothing_right() -> None:
    assert load_metric("bleu").compute(predictions=["", "x"], references=["a b", "c d"])["bleu"] == 0
