"""Texts under a word list: checked whole, and streamed in pieces."""

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatgpt_hf.moderation import WordList


def blocked(words: "WordList", text: str) -> bool:
    """True if the word list refuses the whole text."""
    from chatgpt_hf.errors import ContentFiltered

    try:
        words.check(text)
    except ContentFiltered:
        return True
    return False


def stream(words: "WordList", pieces: list[str]) -> tuple[str, str | None]:
    """Returns what a reader gets of an answer that arrives in pieces, and why it ended."""
    filter_ = words.filter()
    shown = ""
    for piece in pieces:
        shown += filter_.feed(piece)
        if filter_.finish_reason:
            return shown, filter_.finish_reason
    return shown + filter_.finish(), filter_.finish_reason


def splits(text: str) -> list[list[str]]:
    """Splits a text: into one piece, single characters, twos, threes, and at random."""
    found = [[text[i : i + size] for i in range(0, len(text), size)] for size in (len(text), 1, 2, 3)]
    for seed in range(3):
        cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=3))
        found.append([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    return found
