"""Words are joined to the text that people type, with the place of each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgpt_hf.tasks.token_classification.words import join_words


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["我", "爱", "北", "京"], "我爱北京"),
        (["我", "爱", "北京", "天安门", "。"], "我爱北京天安门。"),
        (["2", "0", "0", "8", "年", "8", "月"], "2008年8月"),
        (["P", "y", "t", "h", "o", "n", "课"], "Python课"),
        (["我", "用", "iPhone", "7", "。"], "我用 iPhone 7。"),
        (["他", "在", "New", "York", ",", "3", "%"], "他在 New York,3%"),
        (["1998", "2000", "年"], "1998 2000年"),
        (["N", "Y", " ", "A", "市"], "NY A市"),
        (["東京", "タワー", "へ", "行く"], "東京タワーへ行く"),
        (["ผม", "รัก", "กรุงเทพ"], "ผมรักกรุงเทพ"),
        (["ຂ້ອຍ", "ຮັກ", "ລາວ"], "ຂ້ອຍຮັກລາວ"),
        (["ខ្ញុំ", "ស្រឡាញ់"], "ខ្ញុំស្រឡាញ់"),
        (["မြန်မာ", "နိုင်ငံ"], "မြန်မာနိုင်ငံ"),
        (["나는", "서울을", "사랑한다"], "나는 서울을 사랑한다"),
        (["मैं", "दिल्ली", "में", "हूँ"], "मैं दिल्ली में हूँ"),
        (["He", "said", "你", "好", "to", "me", "."], "He said 你好 to me ."),
        (["a", "1", "2", "."], "a 1 2 ."),
    ],
)
def test_the_text_that_people_type(words: list[str], text: str) -> None:
    joined, starts = join_words(words)
    assert joined == text
    assert [joined[start:].startswith(word) for start, word in zip(starts, words, strict=True)] == [True] * len(words)


@given(st.lists(st.text("aZ7.%é한 我爱。ア", min_size=1, max_size=4), max_size=10))
def test_words_stand_where_they_begin(words: list[str]) -> None:
    text, starts = join_words(words)
    assert starts == sorted(starts)
    for word, start in zip(words, starts, strict=True):
        assert text[start : start + len(word)] == word
    assert text.replace(" ", "") == "".join(words).replace(" ", "")


@given(st.lists(st.text(st.characters(codec="latin-1", exclude_characters=" "), min_size=1), max_size=10))
def test_scripts_with_spaces_are_joined_by_spaces(words: list[str]) -> None:
    assert join_words(words)[0] == " ".join(words)
