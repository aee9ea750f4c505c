"""Moderation of what goes into a chat model and of what comes out, while it streams. Off unless asked for."""

from typing import Protocol

from ..inference.filters import TextFilter


class Moderator(Protocol):
    """Decides what may pass."""

    def check(self, text: str) -> None:
        """Looks at a whole message.

        Raises:
            ContentFiltered: When it must not pass; the error says why and does not repeat the text.
        """

    def filter(self) -> TextFilter:
        """A filter for one answer, which ends it with the reason `content_filter` and shows nothing that must not pass."""


__all__ = ["Moderator"]
