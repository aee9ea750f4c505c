"""Printing text that may come from a model, a file or a folder.

A terminal, and stderr in any case, gets it without control characters. A file or a pipe gets it unchanged, because programs
may read it.
"""

import logging
import re
import sys
from typing import TYPE_CHECKING, Any

from . import static

if TYPE_CHECKING:
    from chatgpt_hf.terminal import visible
else:
    # From the source: importing the library takes seconds, and a usage error must not wait for it.
    visible = static.load("chatgpt_hf.terminal").value("visible")

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def write(text: str) -> None:
    """Writes to stdout at once, without a newline."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Writes a line to stdout."""
    write(f"{text}\n")


def say_aside(text: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


class VisibleFormatter(logging.Formatter):
    """Formats log records, which may quote files, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class VisibleRecord(logging.LogRecord):
    """A log record whose message, which may quote files, shows control characters.

    Made the class of all records, because libraries bring their own handlers, such as transformers. Their colours are
    left out too: a file could bring the same.
    """

    def getMessage(self) -> str:
        return visible(_COLOUR.sub("", super().getMessage()))


class Visible:
    """Draws a renderable of rich's without control characters, also those that Markdown wrote as `&#x202e;`."""

    def __init__(self, renderable: Any) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.segment import Segment

        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


__all__ = ["Visible", "VisibleFormatter", "VisibleRecord", "say", "say_aside", "visible", "write"]
