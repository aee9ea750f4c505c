"""Word lists: texts that pass, texts that are blocked, and streaming, which agrees with checking the whole text."""

import json
import logging
import random
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from word_lists import blocked, splits, stream

from chatgpt_hf.errors import ContentFiltered, DataError
from chatgpt_hf.moderation import WordList
from chatgpt_hf.moderation.characters import LEET, fold
from chatgpt_hf.moderation.scanner import _JOINERS as JOINERS
from chatgpt_hf.moderation.scanner import _STOPS as STOPS

ENGLISH = ["dumbell", "piglet*", "twit", "shill", "lackwit fool", "*zorble"]
CHINESE = ["笨蛋", "坏东西"]
WORDS = [*ENGLISH, *CHINESE]

ORDINARY = [
    "It will, if I twitch. Twitter is shilling; the twits.",
    "He's hilly. It's hill country. That's hit, will it?",
    "A dumbells has dumb Ellen: dumb ell, dumb ells.",
    "two it tow it t with it",
    "A pig let go. The lackwit is a fool. lackwit foolish",
    "she'll, I'll, we'll; the U.S. hills",
    "It--what--tw--its, to wit",
    "50 or 7, 17 and 5.11; $11",
    "笨，蛋。笨。蛋 坏了东西 坏东；西",
    "twit\u0301s and twitt\u0301ed",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_words_pass(text: str) -> None:
    words = WordList(WORDS)
    assert not blocked(words, text)
    assert all(stream(words, pieces) == (text, None) for pieces in splits(text))


# None of these is a separate word in the sentences below. All occur inside words, or across the borders of two or
# three.
INNER_ENGLISH = [
    "sin",
    "tit",
    "ass",
    "anus",
    "arse",
    "nob",
    "rap",
    "spit",
    "dam",
    "crap",
    "hoe",
    "bum",
    "homo",
    "ther",
    "ation",
    "hing",
    "ell",
    "hin",
    "stat",
    "narch",
    "andthe",
    "suchas",
    "outof",
    "oneof",
    "wasthe",
    "partof",
    "thecount",
    "forthe",
]
INNER_CHINESE = ["件内", "子输", "示续", "空使", "子识", "集它"]


def sentences(folder: Path) -> list[str]:
    texts = [(folder / "corpus" / "wikipedia_en_30_articles.txt").read_text(encoding="utf-8")[:200_000]]
    for book in sorted((folder / "corpus" / "gutenberg_en").glob("*.txt"))[:4]:
        texts.append(book.read_text(encoding="utf-8")[20_000:100_000])
    texts += [
        (file.read_text(encoding="utf-8"))[:100_000] for file in sorted((folder / "corpus" / "zh").glob("*.txt"))
    ]
    tasks = (folder / "sft" / "belle_zh_seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    texts += [json.loads(line)["instruction"] for line in tasks]
    found = [part.strip() for text in texts for part in re.split(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n\n", text)]
    return [sentence for sentence in found if len(sentence) > 10]


def test_no_ordinary_sentence_is_blocked(shared_data: Path) -> None:
    found = sentences(shared_data)
    assert len(found) >= 500
    squeezed = "".join(char for char in "".join(found).lower() if char.isalpha())
    for word in [*INNER_ENGLISH, *INNER_CHINESE]:
        assert word in squeezed, f"{word} tests nothing"
    for words in (WordList([*INNER_ENGLISH, *INNER_CHINESE]), WordList(WORDS)):
        for sentence in found:
            assert stream(words, [sentence]) == (sentence, None)


PARTS = [
    *"twigodlasehnvc",
    *" .-'’!1$@I*%(_",
    "\u0301",
    "\u200b",
    "\n",
    "ﬁ",
    "笨",
    "蛋",
    "，",
    "tw",
    "it",
    "go",
    "hel",
    "can't",
]
PARTS += ["twit", "!!", "l!", "god", "lit", "ass", "bad", " egg", "hell", "cant", "sin", "he'll", "it's in"]
LISTED = ["twit", "god", "lit*", "*ass", "bad egg", "笨蛋", "hell", "cant", "sin", "fi"]


def reference(listed: list[str], text: str) -> int | None:
    """Start of the first certain match, found by trying every way to align every word with the text."""
    folded = [(char, index) for index, original in enumerate(text) for char in fold(original)]
    chars = [char for char, _ in folded]
    spaces = [c.isspace() or (c in "-." and chars[i - 1 : i] == [c]) for i, c in enumerate(chars)]
    found = []
    for word in listed:
        letters = reference_letters(word)
        for begin in range(len(chars)):
            for way in ways(letters, chars, begin, 0):
                if (certain := certain_at(word, letters, chars, spaces, way)) is not None:
                    found.append((certain, folded[begin][1]))
    return min(found)[1] if found else None


def reference_letters(word: str) -> list[tuple[str, str, bool]]:
    """Returns for each letter: the letter, the characters that may stand for it, and if a space follows."""
    plain = word.strip("*")
    letters = []
    for index, letter in enumerate(plain):
        if letter != " ":
            looks = letter + ("I" if letter == "i" else "") + LEET.get(letter, "")
            last = index == len(plain) - 1
            letters.append((letter, looks.replace("!", "") if last else looks, plain[index + 1 : index + 2] == " "))
    return letters


def han(char: str) -> bool:
    return "CJK" in unicodedata.name(char, "")


def ends_phrase(chars: list[str], before: int, following: int) -> bool:
    """True if a part of a sentence ends between two words."""
    stop = wide = False
    for at in range(before + 1, following):
        char = chars[at]
        dash = char in "-." and chars[at - 1] == char
        space = char.isspace() or dash
        if (space and (stop or dash)) or (not space and wide and char in STOPS):
            return True
        stop, wide = stop or char in STOPS, wide or space
    return False


def ways(letters: list, chars: list[str], at: int, letter: int) -> list[list[tuple[int, int]]]:
    """All ways to find the letters from number `letter`, with that one at `at`, as lists of (place, letter)."""
    if chars[at] not in letters[letter][1]:
        return []
    found = [[(at, letter)]] if letter == len(letters) - 1 else []
    for following in range(at + 1, len(chars)):
        # A repeated symbol stays a letter or a separator.
        symbol = not chars[following].isalnum() and not chars[following].isspace()
        again = symbol and chars[following] == chars[following - 1]
        if again and following > at + 1:
            continue
        argument = len(letters) <= 3 and following > at + 1 and chars[following - 1] == "%"
        over = letters[letter][2] and ends_phrase(chars, at, following)
        for next_letter in () if argument or over else (letter, letter + 1):
            if next_letter < len(letters) and not (next_letter == letter and han(chars[following])):
                found += [[(at, letter), *rest] for rest in ways(letters, chars, following, next_letter)]
        taken = any(chars[following] in looks for _, looks, _ in letters[letter : letter + 2])
        if chars[following].isalnum() or (again and taken) or (han(letters[0][0]) and chars[following] in ",。!?、;:"):
            break
    return found


def certain_at(word: str, letters: list, chars: list[str], spaces: list[bool], way: list) -> int | None:
    places = [place for place, _ in way]
    begin, end = places[0], places[-1]
    cjk = han(word[0])
    # Letters may not occur too often.
    for index, (letter, _, _) in enumerate(letters):
        found = [chars[place] for place, number in way if number == index]
        doubled = len(found) == 2 and found[1].isalnum()
        if len(letters) <= 3 and doubled and not (index and letters[index - 1][0] == letter):
            return None
    if not any((chars[p].isalpha() and (chars[p] != "I" or letters[n][0] == "i")) or chars[p] == "@" for p, n in way):
        return None
    # Pieces and the gaps between them; for a phrase, word by word.
    parts: list[list[list[tuple[int, int]]]] = [[[way[0]]]]
    gaps: list[list[tuple[int, int]]] = [[]]
    for before, after in pairwise(way):
        if after[0] == before[0] + 1:
            parts[-1][-1].append(after)
        elif letters[before[1]][2] and after[1] != before[1]:
            parts.append([[after]])
            gaps.append([])
        else:
            parts[-1].append([after])
            gaps[-1].append((before[0] + 1, after[0]))
    inside = False
    for char, space in zip(chars[:begin], spaces[:begin], strict=True):
        inside = (inside or char.isalnum()) and not space and not han(char)
    before = chars[begin - 1] if begin else " "
    in_word = before.isalnum() and not han(before)
    if in_word and not word.startswith("*") and not cjk:
        return None
    if len(letters) <= 3 and before == "%" and chars[begin].isdigit() and not word.startswith("*"):
        return None
    spaced = joined = False
    for number, (pieces, between) in enumerate(zip(parts, gaps, strict=True)):
        spaced = any(any(spaces[a:b]) for a, b in between)
        lengths = [len({n for _, n in piece}) for piece in pieces]
        bare = any(
            not any(
                (chars[p].isalpha() and (chars[p] != "I" or letters[n][0] == "i")) or chars[p] == "@" for p, n in piece
            )
            for piece in pieces
        )
        joined = len(between) == 1 and all(char in JOINERS for char in chars[slice(*between[0])])
        if joined and number == 0 and in_word and not cjk:
            return None
        numbers = any(chars[p].isdigit() and chars[p] != letters[n][0] for piece in pieces for p, n in piece)
        numbers = numbers or (number == 0 and before == "%")
        if len(letters) <= 3 and numbers and between:
            return None
        if spaced and not cjk:
            if number == 0 and in_word:
                return None
            if ((inside and number == 0) or bare or len(letters) <= 3) and max(lengths) > 1:
                return None
            if max(lengths) > 2 and min(lengths) > 1:
                return None
        if len(between) == 1 and between[0][1] - between[0][0] == 1 and chars[between[0][0]] in "'’":
            middle = between[0][0]
            tail = chars[middle - 1] + "".join(chars[p] for p, _ in pieces[-1])
            if re.fullmatch(".(ll|s|re|ve|d|m)|nt", tail):
                return None
    if word.endswith("*") and not spaced and not joined:
        return 2 * end + 1
    after = chars[end + 1] if end + 1 < len(chars) else " "
    if after.isalnum() and not han(after) and not cjk:
        return None
    return 2 * (end + 1)


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.randoms(use_true_random=False))
@example(["he", "'", "ll"], random.Random(0))
def test_streams_show_what_the_reference_lets_pass(parts: list[str], chance: random.Random) -> None:
    text = "".join(parts)
    start = reference(LISTED, text)
    expected = (text, None) if start is None else (text[:start], "content_filter")
    cuts = sorted(chance.choices(range(len(text) + 1), k=4))
    words = WordList(LISTED)
    assert stream(words, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == expected
    assert stream(words, list(text)) == expected
    assert blocked(words, text) == (start is not None)


def test_ordinary_text_is_held_back_only_where_a_word_may_begin() -> None:
    filter_ = WordList(["twit", "bad egg"]).filter()
    pieces = ["Now", " tw", "o of", " them", " b", "ad", " e", "nd. t", "."]
    assert [filter_.feed(piece) for piece in pieces] == ["Now", " ", "two of", " them", " ", "", "", "bad end. ", ""]
    assert filter_.finish() == "t."


def test_gaps_and_runs_are_bounded() -> None:
    words = WordList(["twit"])
    assert blocked(words, "t" + "." * 16 + "wit")
    assert not blocked(words, "t" + "." * 17 + "wit")
    assert blocked(words, "tw" + "i" * 300 + "t")
    filter_ = words.filter()
    assert filter_.feed("t" * 500) == "t" * 500
    assert filter_.feed(" t" + "." * 17) == " t" + "." * 17


@pytest.mark.parametrize(
    ("word", "matches", "others"),
    [
        ("a$$hat", "a$$hat", "a hat"),
        ("c++", "learn C++", "c+ c"),
        ("1488", "it is 1488.", "21488 14881"),
        ("нет", "НЕТ", "нетто"),
        ("ΝΑΙ", "ναι", "ναια"),
        ("straße", "STRASSE", "strase"),
        ("はか", "はか", "ばか はが"),
        ("바보", "바보!", "바보야"),
        ("바보*", "바보야", "바다"),
        ("ดี", "ดี", "ด ดิ"),
        ("कम", "कम", "काम कमी"),
        ("crap*", "crappy", "scrap"),
        ("*crap", "bullcrap", "crappy"),
        ("*crap*", "bullcrappy", "cra p-"),
        ("god", "goood", "good"),
    ],
)
def test_words_of_all_kinds(word: str, matches: str, others: str) -> None:
    words = WordList([word])
    assert blocked(words, matches)
    assert [text for text in others.split() if blocked(words, text)] == []


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\ufeff# not these\n\n  twit \r\ncurse*\n", encoding="utf-8")
    words = WordList.from_file(file)
    assert words.name == str(file)
    assert blocked(words, "twit")
    assert blocked(words, "cursed")
    assert not blocked(words, "not these")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no words"),
        (b"# nothing\n\n", "has no words"),
        ("idiot\nnaïf".encode("latin-1"), "is not UTF-8 .byte 8."),
        ("twit\n\u200b\u0301\n".encode(), "line 2"),
        (b"twit\n***\n", r"line 2: '\*\*\*' contains only"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        WordList.from_file(file)


def test_the_log_says_why_and_not_what(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "chatgpt_hf.moderation")
    words = WordList(["# insults", "twit"], name="list.txt")
    with pytest.raises(ContentFiltered) as refusal:
        words.check("You T.W.I.T, you")
    stream(words, ["You tw", "it, you"])
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["blocked input: word list list.txt, line 2", "blocked output: word list list.txt, line 2"]
    assert "T.W.I.T" not in str(refusal.value)
    caplog.clear()
    words = WordList(["twit"], log_text=True)
    stream(words, ["You tw", "it, you"])
    assert blocked(words, "a tw\u200bit.")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "word list words, line 1: 'twit'",
        "word list words, line 1: 'tw\\u200bit'",
    ]
