"""Finds the assistant's turns in a rendered conversation whose template does not mark them with `{% generation %}`.

TRL has training templates for some families, the originals with these marks. For others the conversation is rendered message
by message: what the template adds for an assistant's message, after what it puts before an answer, is what the assistant says.
Each turn found this way is compared with its message.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from .errors import DataError
from .extras import needed_by

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Unmarked(Exception):
    """The assistant's words cannot be told from the rest; the message says why."""


class Render(Protocol):
    """Renders the first messages of a conversation."""

    def __call__(self, count: int, *, add_generation_prompt: bool = False) -> str: ...


def has_generation_mark(template: str) -> bool:
    """True if a chat template marks what the assistant says."""
    return _GENERATION.search(template) is not None


# TRL's training template for each template that was asked for; "" if there is none.
_FOUND: dict[str, str] = {}


def training_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """Returns TRL's training template of a family; None if TRL has none for this template."""
    if template != tokenizer.chat_template:  # TRL looks only at a tokenizer's main template
        return None
    if template not in _FOUND:
        with needed_by("Training on this chat template"):
            from trl.chat_template_utils import get_training_chat_template

        try:
            _FOUND[template] = get_training_chat_template(tokenizer) or ""
        # ValueError: TRL does not know the template. The others: the template fails at TRL's own examples.
        except (ValueError, TypeError, KeyError, AttributeError, TemplateError):
            _FOUND[template] = ""
    return _FOUND[template] or None


def derived_turns(
    render: Render, messages: Sequence[Mapping[str, Any]], text: str, specials: re.Pattern[str]
) -> list[tuple[int, int]]:
    """Finds the assistant's turns by rendering growing parts of a conversation.

    Args:
        render: Renders the first messages with the template.
        messages: All messages.
        text: All messages, rendered.
        specials: Matches the special tokens.

    Returns:
        The range of characters of each of the assistant's messages, with the end mark that follows it.

    Raises:
        Unmarked: If a range does not begin after what the template puts before an answer, or its text is not the message's.
    """
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        where = f"message {index + 1}"
        try:
            before = render(index, add_generation_prompt=True) if index else ""
            after = render(index + 1) if index + 1 < len(messages) else text
        except DataError as error:
            raise Unmarked(f"it cannot print the conversation only up to {where}: {error}") from error
        content = _content(message)
        start = _start(before, content, text)
        end = _end(after, content, text, start)
        end = _after_end_mark(message, content, text, start, end, specials)
        said = specials.sub("", text[start:end])
        if (spans and start < spans[-1][1]) or not _is_said(said, content, message, before):
            raise Unmarked(
                f"what it prints for {where} of the assistant is not only the message, but {said.strip()!r:.80}"
            )
        spans.append((start, end))
    return spans


def _start(before: str, content: str, text: str) -> int:
    """Returns where the answer begins: after the prompt that the model gets before it answers."""
    if text.startswith(before):
        return len(before)
    # The prompt may end with more than the answer in a conversation has before it, such as an opened thought.
    position = text.find(content) if content else -1
    while position >= 0 and not before.startswith(text[:position]):
        if position > len(before):
            position = -1
        else:
            position = text.find(content, position + 1)
    return position if position >= 0 else _common(before, text)


def _end(after: str, content: str, text: str, start: int) -> int:
    """Returns where the answer ends, with its end mark."""
    if text.startswith(after):
        return len(after)
    # A template may print the last message otherwise than the same message within a conversation.
    position = text.find(content, start)
    if not content or position < 0 or content not in after:
        return start
    end = position + len(content)
    tail = after[after.rindex(content) + len(content) :]
    return end + _common(tail, text[end:])


def _common(first: str, second: str) -> int:
    """Number of characters with which both texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def _after_end_mark(
    message: Mapping[str, Any], content: str, text: str, start: int, end: int, specials: re.Pattern[str]
) -> int:
    """Moves the end of an answer to the end of its end mark: what the template puts after it is not the assistant's."""
    marks = list(specials.finditer(text, start))
    # Two texts may part within a special token.
    end = next((mark.start() for mark in marks if mark.start() < end < mark.end()), end)
    marks = [mark for mark in marks if mark.end() <= end]
    if not message.get("tool_calls"):
        position = text.find(content, start, end) + len(content)
        marks = [mark for mark in marks if not text[position : mark.start()].strip()][:1]
    return marks[-1].end() if marks and not specials.sub("", text[marks[-1].end() : end]).strip() else end


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "").strip()


def _is_said(said: str, content: str, message: Mapping[str, Any], before: str) -> bool:
    """True if the text of a turn is that of the message."""
    said = said.strip()
    if message.get("tool_calls"):
        names = [(call.get("function") or call).get("name", "") for call in message["tool_calls"]]
        return content in said and all(name in said for name in names)
    if said == content:
        return True
    # Templates of reasoning models put a thought before an answer; the prompt may open it.
    thought, end, answer = said.partition("</think>")
    if end and answer.strip() == content and (thought.startswith("<think>") or before.rstrip().endswith("<think>")):
        return True
    # The prompt may end with the beginning of the answer.
    return bool(said) and content.endswith(said) and before.rstrip().endswith(content.removesuffix(said).strip())
