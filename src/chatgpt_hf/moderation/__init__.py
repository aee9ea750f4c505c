"""Moderation of what goes into a chat model and of what comes out, while it streams. Off unless asked for."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ..inference.filters import FilterChain, TextFilter

if TYPE_CHECKING:
    from .classifier import Classifier
    from .words import WordList


class Moderator(Protocol):
    """Decides what may pass."""

    def check(self, text: str) -> None:
        """Looks at a whole message.

        Raises:
            ContentFiltered: If it must not pass; the error says why and does not repeat the text.
        """

    def filter(self) -> TextFilter:
        """A filter for one answer, which ends it with the reason `content_filter` and shows nothing that must not pass."""


class Moderators:
    """Several moderators as one: what passes has passed all of them."""

    def __init__(self, moderators: Sequence[Moderator]) -> None:
        self._moderators = list(moderators)

    def check(self, text: str) -> None:
        for moderator in self._moderators:
            moderator.check(text)

    def filter(self) -> TextFilter:
        return FilterChain([moderator.filter() for moderator in self._moderators])


def load_moderator(
    spec: str, labels: list[str] | None = None, threshold: float = 0.5, log_text: bool = False
) -> Moderator:
    """A moderator by its name.

    What it blocks is logged as a warning of the logger `chatgpt_hf.moderation`: whether it went in or came out, and which
    line of the list or which label it was.

    Args:
        spec: A word list, if it ends in `.txt`; otherwise the folder or Hub id of a text-classification model.
        labels: Of the model, those that are blocked; a word list needs none.
        threshold: From which score on they are.
        log_text: Also log the text.

    Raises:
        DataError: If the word list cannot be used.
        ConfigError: If the labels are missing or not the model's.
        CheckpointError: If there is no such model, or it is none for text classification.
    """
    if spec.endswith(".txt"):
        from .words import WordList

        return WordList.from_file(spec, log_text=log_text)
    from .classifier import Classifier

    return Classifier(spec, labels=labels, threshold=threshold, log_text=log_text)


# Loaded when first used: the one reads tables of Unicode, the other is a model.
_EXPORTS = {"Classifier": "classifier", "WordList": "words"}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


__all__ = ["Classifier", "Moderator", "Moderators", "WordList", "load_moderator"]
