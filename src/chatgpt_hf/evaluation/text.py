"""Splits texts into words for metrics, in any language. ROUGE, BLEU's choice, TER, token F1 and diversity all use this module.

A word is a run of letters, marks and digits. In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese ...), each character with its marks is a word.
"""

import string
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache

from ..extras import needed_by

# `re` knows neither scripts nor the marks that belong to a letter.
with needed_by("Evaluation"):
    import regex

# Name of the splitting in the signatures of metrics.
WORDS = "words"
CHARACTERS = "char"
# The share of references in scripts without spaces from which BLEU and TER split a whole data set into characters.
_SHARE = 0.1

_SPACELESS = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar"),
    *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom"),
)
# The sign of a long vowel is used with two scripts and belongs to none.
_SCRIPTS = "".join(rf"\p{{Script={name}}}" for name in _SPACELESS)
_BASE = rf"[[{_SCRIPTS}\u30fc\uff70]&&[\p{{L}}\p{{M}}\p{{N}}]]"
# Variation selectors and enclosing marks make emoji of digits and signs; they belong to no letter.
_MARK = r"[[\p{Mn}\p{Mc}]--[\ufe00-\ufe0f\U000e0100-\U000e01ef]]"
# A letter below another in Khmer and Burmese; Thai and Lao am, which are letters but never stand alone.
_CHARACTER = rf"{_BASE}(?:[\u17d2\u1039]\p{{L}}|[\p{{M}}\u0e33\u0eb3])*"
_WORD = rf"(?!{_BASE})[\p{{L}}\p{{N}}](?:(?!{_BASE})(?:[\p{{L}}\p{{N}}]|{_MARK}|[\u200c\u200d](?=\p{{L}})))*"

_SPACED = regex.compile(rf"{_CHARACTER}|(?:(?!{_BASE})\S)+", regex.V1)
_LETTERS = regex.compile(rf"{_CHARACTER}|{_WORD}", regex.V1)
_CHARACTERS = regex.compile(_CHARACTER, regex.V1)
_HAN = regex.compile(r"\p{Script=Han}", regex.V1)
# Texts whose punctuation is not only ASCII's: any letter that is not Latin, or full-width punctuation.
_NOT_LATIN = regex.compile(r"[\p{L}--\p{Script=Latin}--\p{Script=Common}]|[\u3000-\u303f\uff00-\uffef]", regex.V1)
_ARTICLES = regex.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """Splits a text at spaces, and around each character of a script without spaces; punctuation stays with its word."""
    return _SPACED.findall(unicodedata.normalize("NFC", text))


def letter_words(text: str) -> list[str]:
    """Returns the words of letters, marks and digits in lower case, without punctuation and symbols.

    For text in ASCII these are the words of rouge-score. The two ways to write an accented letter (NFC, NFD) are the same.
    """
    return _LETTERS.findall(unicodedata.normalize("NFC", text).lower())


def characters(text: str) -> list[str]:
    """Returns what a reader sees as characters, without spaces; an emoji is one."""
    found = regex.findall(r"\X", unicodedata.normalize("NFC", text).lower())
    return [character for character in found if not character.isspace()]


def without_spaces(text: str) -> bool:
    """True if at least half of a text's words are characters of a script without spaces."""
    tokens = words(text)
    return 2 * sum(_CHARACTERS.match(token) is not None for token in tokens) >= max(1, len(tokens))


def bleu_tokenizer(references: Iterable[str]) -> str:
    """Returns sacrebleu's tokenizer for a data set: `13a`, or `zh` or `char` if its references need one of them.

    They do if at least a tenth of them are in a script without spaces. `zh` keeps words in Latin letters whole; `char`
    splits everything, but knows every script.
    """
    texts = [text for text in references if text.strip()]
    spaceless = [text for text in texts if without_spaces(text)]
    if len(spaceless) < max(1, _SHARE * len(texts)):
        return "13a"
    han = sum(len(_HAN.findall(text)) for text in spaceless)
    others = sum(len(_CHARACTERS.findall(text)) - len(_HAN.findall(text)) for text in spaceless)
    # Japanese text has as many kana as kanji, or more; a Chinese text may quote a few.
    return "zh" if han > 4 * others else "char"


def squad_pair(prediction: str, reference: str) -> tuple[str, str]:
    """Normalizes an answer and its reference in the same way, by `squad_normalize`.

    If nothing is left of a reference that is not blank (it is "A", "?" or "！"), only case and spaces are normalized.
    """
    everywhere = _has_other_punctuation(prediction + reference)
    said, right = (_squad(text, everywhere=everywhere) for text in (prediction, reference))
    if right or not reference.strip():
        return said, right
    said, right = (" ".join(unicodedata.normalize("NFC", text).lower().split()) for text in (prediction, reference))
    return said, right


def squad_normalize(text: str) -> str:
    """Lowercases, and removes punctuation, articles and extra spaces like SQuAD's script (Rajpurkar et al. 2016)."""
    return _squad(text, everywhere=_has_other_punctuation(text))


def remove_punctuation(text: str, *others: str) -> str:
    """Removes ASCII punctuation; all Unicode punctuation if this or one of the other texts is not in Latin letters.

    SQuAD's script does the former, those of MLQA (Lewis et al. 2020) and CMRC 2018 the latter.

    Args:
        *others: What the text is compared with.
    """
    return text.translate(_punctuation(everywhere=_has_other_punctuation("".join((text, *others)))))


def _squad(text: str, *, everywhere: bool) -> str:
    kept = unicodedata.normalize("NFC", text).lower().translate(_punctuation(everywhere=everywhere))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _has_other_punctuation(text: str) -> bool:
    return _NOT_LATIN.search(text) is not None


@cache
def _punctuation(*, everywhere: bool) -> dict[int, None]:
    ascii_points = list(map(ord, string.punctuation))
    if not everywhere:
        return dict.fromkeys(ascii_points)
    # Full-width forms too of what Unicode calls symbols, such as the tilde.
    wide = (point + 0xFEE0 for point in ascii_points)
    unicode = (point for point in range(sys.maxunicode) if unicodedata.category(chr(point)).startswith("P"))
    return dict.fromkeys([*unicode, *wide, *ascii_points])
