"""ROUGE: rouge-score's values for English, and a tokenizer that keeps other languages."""

import json
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from chatgpt_hf.evaluation.metrics import load_metric
from chatgpt_hf.evaluation.metrics.rouge import Tokenizer

NAMES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_english_is_as_rouge_score(use_stemmer: bool, shared_data: Path) -> None:
    lines = (shared_data / "summarization" / "cnn_dailymail_t0prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:12]]
    summaries = [row["completion"] for row in rows]
    leads = ["\n".join(row["prompt"].split(". ")[:4]) for row in rows]
    found = load_metric("rouge").compute(
        predictions=leads, references=summaries, use_stemmer=use_stemmer, use_aggregator=False
    )
    scorer = RougeScorer(NAMES, use_stemmer=use_stemmer)
    for index, pair in enumerate(zip(summaries, leads, strict=True)):
        scores = scorer.score(*pair)
        assert {name: found[name][index] for name in NAMES} == {name: scores[name].fmeasure for name in NAMES}
    assert sum(found["rougeL"]) > 0
    assert found["rougeL"] != found["rougeLsum"]


def test_tokens() -> None:
    assert Tokenizer().tokenize("我们用GPT-4写诗，café!") == [*"我们用", "gpt", "4", *"写诗", "café"]
    assert Tokenizer(True).tokenize("running 跑步 runs カナ 𠀋") == ["run", *"跑步", "run", *"カナ", "𠀋"]


def test_chinese() -> None:
    predictions, references = ["床前明月光\n疑是地上霜"], ["床前看月光\n疑是地上霜"]
    found = load_metric("rouge").compute(predictions=predictions, references=references)
    # 9 of 10 characters; 7 of 9 pairs, which cross the end of the line.
    assert found == pytest.approx({"rouge1": 0.9, "rouge2": 7 / 9, "rougeL": 0.9, "rougeLsum": 0.9})
    # rouge-score's own tokenizer drops Chinese.
    assert RougeScorer(["rouge1"]).score(references[0], predictions[0])["rouge1"].fmeasure == 0


def test_the_best_reference_counts() -> None:
    found = load_metric("rouge").compute(
        predictions=["a b"], references=[["x", "a b c", "a"]], rouge_types=["rouge1", "rouge3"]
    )
    assert found == {"rouge1": pytest.approx(0.8), "rouge3": 0}
