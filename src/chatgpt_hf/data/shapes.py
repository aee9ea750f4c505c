"""Recognizes the shapes of conversation data by their columns and converts them to the ecosystem's `messages`."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import DataError

Row = Mapping[str, Any]

# Speaker names in data sets of recent years.
_SPEAKERS = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
}
_QUESTIONS = ("prompt", "instruction", "question", "query", "input", "user", "human")
_ANSWERS = ("completion", "response", "output", "answer", "reply", "assistant", "gpt")


class Conversation(NamedTuple):
    """One conversation.

    Attributes:
        messages: Dicts with `role`, `content`, and any other keys of the source, such as `tool_calls`.
        tools: The tools that the assistant may call, as JSON schemas.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


class Shape(NamedTuple):
    """One way to write conversations down.

    Attributes:
        name: Description for messages to the user.
        fits: True if a row has this shape.
        read: Returns the conversations of a row.
    """

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], list[Conversation]]


def find_shape(rows: Iterable[Row], where: str) -> Shape:
    """Returns the first of `SHAPES` that fits the first non-empty row.

    Args:
        rows: Rows of a data set; the function reads only as many as it needs.
        where: Name of the data set, for messages.

    Raises:
        DataError: If no shape fits; the message lists the columns that were found.
    """
    columns: list[str] = []
    for row in rows:
        columns = list(row)
        if any(value for value in row.values()):
            for shape in SHAPES:
                if shape.fits(row):
                    return shape
            break
    raise DataError(
        f"{where} has the columns {', '.join(columns) or 'none'}, which fit no known shape of conversations. Known: "
        f"{'; '.join(shape.name for shape in SHAPES)}."
    )


def _items(row: Row, column: str, *keys: str) -> list[dict[str, Any]] | None:
    """Returns a column's value if it is a list of dicts and the first dict has all the keys."""
    value = row.get(column)
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return [dict(item) for item in value] if all(value[0].get(key) is not None for key in keys) else None
    return None


def _first(row: Row, names: Sequence[str]) -> str | None:
    """Returns the first of the names that is a text column."""
    return next((name for name in names if isinstance(row.get(name), str)), None)


def _tools(row: Row) -> list[dict[str, Any]] | None:
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise DataError(f"its `tools` are not JSON: {error}") from error
    return list(tools) if tools else None


def _without_empty(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drops the keys that a message has only because another message has them."""
    return {key: value for key, value in message.items() if value is not None}


def _messages(row: Row) -> list[Conversation]:
    for column in ("messages", "conversations", "conversation"):
        if (messages := _items(row, column, "role")) is not None:
            return [Conversation([_without_empty(message) for message in messages], _tools(row))]
    return [Conversation([])]


def _prompt_completion_messages(row: Row) -> list[Conversation]:
    both = [*(row.get("prompt") or []), *(row.get("completion") or [])]
    return [Conversation([_without_empty(message) for message in both], _tools(row))]


def _sharegpt(row: Row) -> list[Conversation]:
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in row.get("conversations") or []:
        speaker, value = turn.get("from"), turn.get("value")
        role = _SPEAKERS.get(str(speaker))
        if role is None:
            raise DataError(f"it has a turn from {speaker!r}; known speakers are {', '.join(_SPEAKERS)}")
        if speaker == "function_call":
            messages.append({"role": role, "content": "", "tool_calls": _tool_calls(value)})
        else:
            messages.append({"role": role, "content": value})
    return [Conversation(messages, _tools(row))]


def _tool_calls(text: Any) -> list[dict[str, Any]]:
    """Parses one or several calls, written as JSON in a separate turn."""
    try:
        calls = json.loads(text)
        calls = calls if isinstance(calls, list) else [calls]
        return [
            {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}} for call in calls
        ]
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise DataError(f"its function call is not JSON with name and arguments, but {text!r:.80}") from error


def _dialogue(row: Row) -> list[Conversation]:
    turns = _items(row, "messages", "message") or []
    roles = ("user", "assistant")
    return [Conversation([{"role": roles[index % 2], "content": turn["message"]} for index, turn in enumerate(turns)])]


def _with_input(instruction: str, text: str | None) -> str:
    return f"{instruction}\n\n{text}" if text and text.strip() else instruction


def _alpaca(row: Row) -> list[Conversation]:
    answer = _first(row, _ANSWERS)
    context = _first(row, ("input", "context"))
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for question, reply in row.get("history") or []:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    question = _with_input(row.get("instruction") or "", row[context] if context else None)
    messages += [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row[answer] if answer else ""},
    ]
    return [Conversation(messages)]


def _self_instruct(row: Row) -> list[Conversation]:
    return [
        Conversation(
            [
                {"role": "user", "content": _with_input(row["instruction"], instance.get("input"))},
                {"role": "assistant", "content": instance.get("output")},
            ]
        )
        for instance in row.get("instances") or []
    ]


def _pair_columns(row: Row) -> tuple[str, str] | None:
    question, answer = _first(row, _QUESTIONS), _first(row, _ANSWERS)
    return (question, answer) if question and answer else None


def _pair(row: Row) -> list[Conversation]:
    columns = _pair_columns(row)
    if columns is None:
        raise DataError("it has no question or no answer")
    question, answer = (row[column] for column in columns)
    return [Conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])]


SHAPES = (
    Shape(
        "`messages` (or `conversations`), a list of role and content",
        lambda row: any(_items(row, column, "role") for column in ("messages", "conversations", "conversation")),
        _messages,
    ),
    Shape(
        "`prompt` and `completion`, two lists of role and content",
        lambda row: bool(_items(row, "prompt", "role") and _items(row, "completion", "role")),
        _prompt_completion_messages,
    ),
    Shape(
        "ShareGPT: `conversations`, a list of from and value",
        lambda row: _items(row, "conversations", "from") is not None,
        _sharegpt,
    ),
    Shape(
        "`messages`, a list of message, by two speakers in turn",
        lambda row: _items(row, "messages", "message") is not None,
        _dialogue,
    ),
    Shape(
        "self-instruct: `instruction` and `instances`, a list of input and output",
        lambda row: isinstance(row.get("instruction"), str) and _items(row, "instances", "output") is not None,
        _self_instruct,
    ),
    Shape(
        f"Alpaca: `instruction`, optionally `input`, `system` and `history`, and one of {', '.join(_ANSWERS)}",
        lambda row: isinstance(row.get("instruction"), str) and _first(row, _ANSWERS) is not None,
        _alpaca,
    ),
    Shape(
        f"two text columns, one of {', '.join(_QUESTIONS)} and one of {', '.join(_ANSWERS)}",
        lambda row: _pair_columns(row) is not None,
        _pair,
    ),
)


def check_conversation(messages: Sequence[Mapping[str, Any]], *, allow_empty: bool = False) -> None:
    """Raises if a chat model cannot learn from a conversation.

    A system message may come first; then user and assistant take turns. After an assistant message that calls tools
    come the tools' messages, and then the assistant again.

    Args:
        allow_empty: Allow messages without text; a model's answer can be empty.

    Raises:
        DataError: If a message is invalid or out of turn; it names the message, counted from 1, and what would be
            right.
    """
    before = None
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise DataError(f"message {number} is not a mapping with role and content, but {message!r:.80}")
        role, content = message.get("role"), message.get("content")
        if role not in _FOLLOWS:
            raise DataError(f"message {number} has the unknown role {role!r}: use one of {', '.join(_FOLLOWS)}")
        calls = bool(message.get("tool_calls"))
        empty = not content or (isinstance(content, str) and not content.strip())
        if empty and not calls and not allow_empty:
            raise DataError(f"message {number}, the {role}'s, is empty")
        if before not in _FOLLOWS[role]:
            raise DataError(
                f"message {number} is the {role}'s and comes {'first' if before is None else f'after {_article(before)}'}: "
                "after a system message, user and assistant take turns; a tool's message follows an assistant's call"
            )
        before = "assistant calling" if role == "assistant" and calls else role


# The roles that may come directly before each role; None is the beginning.
_FOLLOWS: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": (None, "system", "user", "tool"),
    "tool": ("assistant calling", "tool"),
}


def _article(before: str) -> str:
    return {"assistant calling": "an assistant's call", "assistant": "an assistant's", "user": "a user's"}.get(
        before, f"a {before}'s"
    )


def read_rows(shape: Shape, rows: Iterable[Row]) -> Iterator[tuple[int, Conversation | DataError]]:
    """Yields row numbers, from 1, with each conversation in the row, or with an error if it cannot be used."""
    for number, row in enumerate(rows, start=1):
        try:
            conversations = shape.read(row)
            for conversation in conversations:
                check_conversation(conversation.messages)
        except DataError as error:
            yield number, error
            continue
        yield from ((number, conversation) for conversation in conversations)
