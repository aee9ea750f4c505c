"""Diversity, compared with its definitions."""

from pathlib import Path

import pytest

from chatgpt_hf.evaluation.metrics import load_metric, measures
from chatgpt_hf.evaluation.text import words


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = words(text)
    return [tuple(tokens[index : index + n]) for index in range(len(tokens) - n + 1)]


def test_by_hand() -> None:
    texts = ["a b a b a b", "c d e f", "我我我", "x", ""]
    found = load_metric("diversity").compute(predictions=texts)
    # The first text has: ab ba; aba bab; abab baba.
    assert found == pytest.approx(
        {
            "distinct_1": (2 + 4 + 1 + 1) / 14,
            "distinct_2": (2 + 3 + 1) / 10,
            "distinct_3": (2 + 2 + 1) / 7,
            "rep_2": (1 - 2 / 5 + 0 + 1 / 2) / 3,
            "rep_3": (1 - 2 / 4 + 0 + 0) / 3,
            "rep_4": (1 - 2 / 3 + 0) / 2,
            "diversity": (2 / 5 * 2 / 4 * 2 / 3 + 1) / 2,
            "length": 14 / 5,
        }
    )


def test_real_text(shared_data: Path) -> None:
    texts = (shared_data / "corpus" / "zh" / "西游记.txt").read_text(encoding="utf-8").splitlines()[200:260]
    found = load_metric("diversity").compute(predictions=texts)
    for n in (1, 2, 3):
        everything = [gram for text in texts for gram in grams(text, n)]
        assert found[f"distinct_{n}"] == pytest.approx(len(set(everything)) / len(everything))
    for n in (2, 3, 4):
        shares = [1 - len(set(grams(text, n))) / len(grams(text, n)) for text in texts if grams(text, n)]
        assert found[f"rep_{n}"] == pytest.approx(sum(shares) / len(shares))
    assert 0.1 < found["distinct_1"] < found["distinct_2"] < found["distinct_3"] < 1


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts = ["a b c", "a b d", "a"]
    forth, back = (measures("diversity", said)["distinct_1"].statistics for said in (texts, texts[::-1]))
    assert forth.tolist() == back[::-1].tolist()
    assert forth[2].tolist() == pytest.approx([1 / 3, 1])


def test_directions() -> None:
    found = measures("diversity", ["a b"])
    assert [name for name, measure in found.items() if not measure.higher_is_better] == ["rep_2", "rep_3", "rep_4"]
