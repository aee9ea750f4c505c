"""Letters that are written as in HTML in every valid way, or in characters that only a language model sees."""

import pytest
from word_lists import blocked, stream

from chatgpt_hf.moderation import WordList
from chatgpt_hf.moderation.scanner import Scanner

WORDS = WordList(["twit", "dumbell"])


def tags(text: str) -> str:
    return "".join(chr(0xE0000 + ord(char)) for char in text)


def selectors(text: str) -> str:
    """Bytes as variation selectors, which start to number them at 16."""
    return "".join(chr(0xE0100 + ord(char) - 16) for char in text)


HIDDEN = {
    "zeros": "&#x00000000074;wit",
    "very many zeros": f"tw&#{'0' * 3000}105;t",
    "an upper-case X, no semicolon": f"&#X{'0' * 70}74wit",
    "a long word, all zeros": "".join(f"&#{'0' * 90}{ord(char)};" for char in "dumbell"),
    "a control of Windows-1252": "t&#150;w&#x0000097;it",
    "a number for nothing": "t&#1;wit",
    "named, no semicolon": "t&shywit",
    "a letter by name, no semicolon": "tw&iacutet",
    "twice": "&amp;#116;wit",
    "twice, in numbers": "&#38;#x000074;wit",
    "three times, without semicolons": "&ampamp;amp;#116;wit",
    "JSON's ampersand": "\\u0026#116;wit",
    "HTML's backslash": "&#92;u0074wit",
    "tags": tags("twit"),
    "tags after a word": "hello" + tags("twit") + "hello",
    "tags in upper case": "a " + tags("TWIT"),
    "partly tags": "t" + tags("wit"),
    "tags between letters": "tw" + tags("x") + "it",
    "tags as in HTML": "".join(f"&#xE00{ord(char):02x};" for char in "twit"),
    "variation selectors": "t\U000e0100w\U000e01efit",
    "bytes in variation selectors": "😀" + selectors("you twit"),
    "very many invisible characters": "t" + "\u200d" * 3000 + "wit",
}


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("around", ["{}", "He said: {} and left."])
def test_hidden_words_are_found(kind: str, around: str) -> None:
    text = around.format(HIDDEN[kind])
    assert blocked(WORDS, text)
    shown, finish_reason = stream(WORDS, list(text))
    assert finish_reason == "content_filter"
    assert text.startswith(shown)
    assert not blocked(WORDS, shown)


@pytest.mark.parametrize(
    "text",
    [
        "R&amp;D and Q&A &copy; &#169; &",
        "https://example.org/?a=1&notify=2&twitter=1&amp;b=2",
        "The flag \U0001f3f4" + tags("gbeng") + "\U000e007f of England",
        "葛\U000e0100飾区",
        "&#",
        "&#x",
        "&#x000;",
        "&#0000000",
        "a && b &amp;&amp; c",
        "&amp",
        "\\\\u00",
        "&#x110000;twi",
        "&#99999999999999;",
    ],
)
def test_text_that_only_looks_like_it_arrives_unchanged(text: str) -> None:
    assert not blocked(WORDS, text)
    assert stream(WORDS, list(text)) == (text, None)


def test_an_unfinished_number_is_held_back_and_then_shown() -> None:
    answer = WORDS.filter()
    zeros = "0" * 500
    assert answer.feed("See &") == "See "
    assert answer.feed(f"#{zeros}") == ""
    assert answer.feed("97;") == f"&#{zeros}97;"


def test_one_character_of_the_text_is_read_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    read = Scanner._read

    def counted(self: Scanner, char: str, width: int) -> None:
        nonlocal reads
        reads += 1
        read(self, char, width)

    monkeypatch.setattr(Scanner, "_read", counted)
    for text in ("t&#" + "0" * 4000, "&amp;" + "amp;" * 1000, "&" * 4000, "\\" * 4000, "&abcdefghijklmnop" * 200):
        reads = 0
        assert not blocked(WORDS, text)
        assert reads <= 4 * len(text)
