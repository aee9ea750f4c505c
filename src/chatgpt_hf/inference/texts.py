"""Everything that can be read in messages, tool calls and requests: moderation checks all of it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Between texts that are checked together: no word of a word list reaches across so much white space.
SEPARATOR = "\n" * 20
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
_NOT_TEXT = {"messages", "tools", "prompt", "model", "logit_bias"}
# With any number of backslashes: JSON may be a string in other JSON.
_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|([\"\\/bfnrt]))")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def unescaped(text: str) -> str:
    r"""Decodes JSON's escapes, such as `\u0061` and `\n`, wherever they are in a text."""
    if "\\" not in text:
        return text

    def character(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else _ESCAPED.get(found[2], found[2])

    # Two escapes make one character beyond U+FFFF.
    return _ESCAPE.sub(character, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def texts_of(value: Any) -> Iterator[str]:
    """Yields all strings and numbers in a JSON value, keys included; strings with escapes also without them."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += [part for pair in reversed(list(item.items())) for part in reversed(pair)]
        elif isinstance(item, list | tuple):
            waiting += reversed(item)
        elif isinstance(item, str):
            yield item
            if (plain := unescaped(item)) != item:
                yield plain
        elif item is not None and not isinstance(item, bool):
            yield str(item)


def together(values: Iterable[Any]) -> list[str]:
    """Joins everything in some values into one text to check; an empty list if there is nothing."""
    text = SEPARATOR.join(text for value in values for text in texts_of(value))
    return [text] if text.strip() else []


def message_texts(message: Mapping[str, Any]) -> list[str]:
    """Returns what a message says, and everything else in it: name, tool calls, fields that only its template knows."""
    content = message.get("content")
    rest: list[Any] = [{key: value for key, value in message.items() if key not in ("role", "content")}]
    if message.get("role") not in _ROLES:
        rest.append(message.get("role"))
    if isinstance(content, list):
        # Templates join the parts of a text.
        said = "".join(
            part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        )
        rest += [part for part in content if not (isinstance(part, Mapping) and set(part) <= {"type", "text"})]
    else:
        said = content if isinstance(content, str) else ""
        rest += [] if said else [content]
    named = [value for value in rest if value]
    return [*([said] if said else []), *together(named)]


def request_texts(request: Mapping[str, Any]) -> Iterator[str]:
    """Yields everything in a request to the server, given as JSON.

    The prompt and what each message says are separate texts; the rest of a message, each tool, and all other fields
    that hold text are one text each. Not included: the model's name, which the server knows, and numbers that control
    sampling.
    """
    for message in request.get("messages") or []:
        yield from message_texts(message)
    prompt = request.get("prompt")
    yield from texts_of(prompt)
    for tool in request.get("tools") or []:
        yield from together([tool])
    others = {name: value for name, value in request.items() if name not in _NOT_TEXT}
    yield from together(value for value in others.values() if isinstance(value, str | list | Mapping))
