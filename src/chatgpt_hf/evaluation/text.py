"""Splits texts into words for metrics, also in languages without spaces between words."""

import re
import string
import sys
import unicodedata
from functools import cache

# One character: Han with its extensions and compatibility forms, kana, and the marks that replace a character.
CJK = r"[\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f]"
_WORDS = re.compile(rf"{CJK}|(?:(?!{CJK})\S)+")
# These characters, or full-width punctuation.
_CHINESE_OR_JAPANESE = re.compile(rf"{CJK}|[\u3000-\u303f\uff00-\uffef]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """Splits a text at spaces, and around each Chinese or Japanese character."""
    return _WORDS.findall(text)


def squad_normalize(text: str) -> str:
    """Lowercases, and removes punctuation, articles and extra spaces like SQuAD's script (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", remove_punctuation(text.lower())).split())


def remove_punctuation(text: str) -> str:
    """Removes ASCII punctuation; from a text that contains Chinese or Japanese, all Unicode punctuation.

    SQuAD's script does the former, MLQA's the latter (Lewis et al. 2020).
    """
    return text.translate(_punctuation(everywhere=bool(_CHINESE_OR_JAPANESE.search(text))))


@cache
def _punctuation(*, everywhere: bool) -> dict[int, None]:
    unicode = (point for point in range(sys.maxunicode) if unicodedata.category(chr(point)).startswith("P"))
    return dict.fromkeys([*(unicode if everywhere else ()), *map(ord, string.punctuation)])
