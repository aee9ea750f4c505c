"""Token F1, compared with SQuAD's script for English answers."""

import json
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from chatgpt_hf.evaluation.metrics import measures


def squad_f1(prediction: str, truth: str) -> float:
    """Reimplements `f1_score` of SQuAD's evaluate-v1.1.py."""

    def normalize(text: str) -> str:
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    said, right = normalize(prediction).split(), normalize(truth).split()
    same = sum((Counter(said) & Counter(right)).values())
    if same == 0:
        return 0
    precision, recall = same / len(said), same / len(right)
    return (2 * precision * recall) / (precision + recall)


def test_english_is_as_squad(shared_data: Path) -> None:
    content = json.loads((shared_data / "qa" / "xquad_en_a.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    predictions, references = [], []
    for paragraph in paragraphs:
        for item in paragraph["qas"]:
            # The answer with some more words around it.
            start, text = item["answers"][0]["answer_start"], item["answers"][0]["text"]
            predictions.append(paragraph["context"][max(0, start - 12) : start + len(text) + 8])
            references.append([text, paragraph["context"][:20]])
    parts = measures("token_f1", predictions, references)["token_f1"].statistics
    expected = [
        max(squad_f1(said, reference) for reference in right)
        for said, right in zip(predictions, references, strict=True)
    ]
    assert len(expected) > 300
    assert parts[:, 0] == pytest.approx(expected, abs=1e-12)
    assert 0.3 < parts[:, 0].mean() < 0.95


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("在北京市", "北京", 2 * 2 / 6),
        ("《红楼梦》", "红楼梦", 1),
        ("GPT 模型", "GPT模型。", 1),
        ("1912年", "1912 年", 1),
        ("", "", 1),
        ("the", "", 1),
        ("something", "", 0),
        ("", "something", 0),
    ],
)
def test_other_answers(prediction: str, reference: str, expected: float) -> None:
    assert measures("token_f1", [prediction], [reference])["token_f1"].value == pytest.approx(expected)
