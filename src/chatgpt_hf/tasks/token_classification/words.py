"""Joins words to the text that people type: with spaces, or without them where the script has none."""

import re
from collections.abc import Sequence

# Han, Kana, Bopomofo and their punctuation and full-width forms; Thai, Lao, Tibetan, Myanmar, Khmer. Korean has spaces.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\u2e80-\u2fdf\u3001-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U000323af"
)
_HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
# A word that the scripts without spaces still put spaces around: `iPhone`, `New`, but neither `7` nor `%`.
_FOREIGN = re.compile(rf"(?=.*[^\W\d_].*)[^{UNSPACED}]{{2,}}", re.DOTALL)


def is_unspaced(text: str) -> bool:
    """True if a text has characters of a script that puts no spaces between words."""
    return bool(_HAS_UNSPACED.search(text))


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """Joins words to the text that the model reads; returns it and where each word begins.

    Words are joined by spaces, but not two characters of a script without spaces, such as Chinese, Japanese or Thai.
    In a sentence of such a script, only longer words of other scripts have spaces around them: `我 用 iPhone 7 。`
    becomes `我用 iPhone 7。`.
    """
    text = "".join(words)
    unspaced = len(_HAS_UNSPACED.findall(text))
    # A Chinese sentence may have many Latin letters, but a Latin one has few Chinese characters.
    is_mostly_unspaced = unspaced and (
        5 * unspaced >= sum(map(str.isalpha, text)) or all(len(word) == 1 for word in words)
    )
    starts, length = [], 0
    parts: list[str] = []
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        joined = unspaced and (
            (_HAS_UNSPACED.match(before[-1:]) and _HAS_UNSPACED.match(word[:1]))
            or (is_mostly_unspaced and not _is_apart(before, word))
        )
        if index and not joined:
            parts.append(" ")
            length += 1
        starts.append(length)
        parts.append(word)
        length += len(word)
    return "".join(parts), starts


def _is_apart(before: str, word: str) -> bool:
    """True if a space belongs between two words of a sentence in a script without spaces."""
    left, right = before[-1:], word[:1]
    if not left.isalnum() or not right.isalnum():
        # White space is its own space; punctuation and symbols need none: `GDP。`
        return False
    if _FOREIGN.fullmatch(before) or _FOREIGN.fullmatch(word):
        return True
    # Two numbers, but not the digits of one that is written with a character per word.
    return min(len(before), len(word)) > 1 and not is_unspaced(left + right)
