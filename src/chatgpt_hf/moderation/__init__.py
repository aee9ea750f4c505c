"""Moderates messages to a chat model, and its answers while they stream. Off by default."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ..inference.filters import FilterChain, TextFilter

if TYPE_CHECKING:
    from .classifier import Classifier
    from .words import WordList


class Moderator(Protocol):
    """Decides which texts may pass."""

    def check(self, text: str) -> None:
        """Checks a complete message.

        Raises:
            ContentFiltered: If it is blocked; the error says why, but does not repeat the text.
        """

    def filter(self) -> TextFilter:
        """Returns a filter for one answer; it hides blocked text and ends the answer with reason `content_filter`."""


class Moderators:
    """Combines several moderators: a text passes if it passes all of them."""

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
    """Loads a moderator.

    The logger `chatgpt_hf.moderation` warns of every blocked text: whether it was input or output, and which line of
    the list or which label blocked it.

    Args:
        spec: A word list, if it ends with `.txt`; otherwise the folder or Hub id of a text-classification model.
        labels: The model's labels that are blocked; a word list needs none.
        threshold: The score from which a label is blocked.
        log_text: Also log the text.

    Raises:
        DataError: If the word list cannot be used.
        ConfigError: If the labels are missing or the model does not have them.
        CheckpointError: If there is no such model, or it is not for text classification.
    """
    if spec.endswith(".txt"):
        from .words import WordList

        return WordList.from_file(spec, log_text=log_text)
    from .classifier import Classifier

    return Classifier(spec, labels=labels, threshold=threshold, log_text=log_text)


# Imported when first used: one reads Unicode tables, the other needs a model.
_EXPORTS = {"Classifier": "classifier", "WordList": "words"}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


__all__ = ["Classifier", "Moderator", "Moderators", "WordList", "load_moderator"]
