"""Words and normalized answers."""

import pytest

from chatgpt_hf.evaluation.text import squad_normalize, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  stop,\nnow", ["Don't", "stop,", "now"]),
        ("我爱NLP和GPT-2。", ["我", "爱", "NLP", "和", "GPT-2。"]),
        ("ひらがなカナ人々〇", [*"ひらがなカナ人々〇"]),
        ("𠀋字 서울 Café", ["𠀋", "字", "서울", "Café"]),
        (" \u3000\n", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S.A.", "usa"),
        ("An apple, a day!", "apple day"),
        ("theatre", "theatre"),
        ("“Yes” – no", "“yes” – no"),
        ("“。3，", "3"),
        ("《论语》，“子曰”…", "论语子曰"),
    ],
)
def test_squad_normalize(text: str, expected: str) -> None:
    assert squad_normalize(text) == expected
