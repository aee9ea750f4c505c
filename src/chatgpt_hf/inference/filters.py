"""What stands between a model's text and its reader: filters that may hold a piece back, and may end the answer."""

from collections.abc import Sequence
from typing import Protocol


class TextFilter(Protocol):
    """Sees an answer in pieces, and decides what may be shown and when.

    Attributes:
        finish_reason: None while the answer goes on; `"stop"` or `"content_filter"` (OpenAI's words) once it must end.
            What is held back then is never shown.
    """

    finish_reason: str | None

    def feed(self, piece: str) -> str:
        """Takes the next piece and returns what may be shown now: of this piece, of what was held back, or nothing."""

    def finish(self) -> str:
        """Takes the end of the answer and returns what was held back, as far as it may be shown."""


class StopStrings:
    """Ends an answer before the first of some strings, also where one spans tokens.

    transformers' own `stop_strings` end it after the string and leave the string in the answer.

    Args:
        strings: Not empty, none of them either.
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
        # The longest end of the text that one of the strings begins with.
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
    """Several filters one behind another, as one. Where several end an answer, the last gives the reason."""

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
