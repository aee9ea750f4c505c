"""Filters between a model's text and its reader: they may hold back pieces, and may end the answer."""

from collections.abc import Sequence
from typing import Protocol


class TextFilter(Protocol):
    """Receives an answer in pieces, and decides what to show and when.

    Attributes:
        finish_reason: None while the answer continues; `"stop"` or `"content_filter"` (OpenAI's terms) once it must
            end. Text that is held back at that point is never shown.
    """

    finish_reason: str | None

    def feed(self, piece: str) -> str:
        """Takes the next piece; returns the text to show now, from this piece and from text that was held back."""

    def finish(self) -> str:
        """Called at the end of the answer; returns the text that was held back, as far as it may be shown."""


class StopStrings:
    """Ends an answer before the first of some strings, even if the string spans several tokens.

    transformers' own `stop_strings` end the answer after the string, which stays in it.

    Args:
        strings: At least one string, none of them empty.
    """

    def __init__(self, strings: list[str]) -> None:
        self.finish_reason: str | None = None
        self._strings = strings
        self._held = ""

    def feed(self, piece: str) -> str:
        text = self._held + piece
        found = [at for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            self.finish_reason = "stop"
            self._held = ""
            return text[: min(found)]
        # Hold back the longest end of the text that may be the beginning of a stop string.
        longest = max(map(len, self._strings)) - 1
        start = next(
            (at for at in range(max(0, len(text) - longest), len(text)) if self._begins(text[at:])), len(text)
        )
        self._held = text[start:]
        return text[:start]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held

    def _begins(self, end: str) -> bool:
        return any(string.startswith(end) for string in self._strings)


class FilterChain:
    """Chains several filters into one. If several of them end an answer, the last one's reason counts."""

    def __init__(self, filters: Sequence[TextFilter]) -> None:
        self.finish_reason: str | None = None
        self._filters = filters

    def feed(self, piece: str) -> str:
        return self._pass(piece, ending=False)

    def finish(self) -> str:
        return self._pass("", ending=True)

    def _pass(self, piece: str, ending: bool) -> str:
        for stage in self._filters:
            piece = stage.feed(piece)
            if ending and stage.finish_reason is None:
                piece += stage.finish()
            if stage.finish_reason is not None:
                self.finish_reason = stage.finish_reason
                ending = True
        return piece
