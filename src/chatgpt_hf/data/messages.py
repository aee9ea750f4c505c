"""Converts the messages of other tools' data sets to one form: a known role, content as text, tool calls, a weight."""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import DataError
from .json_rows import parse_text, written_json

Message = dict[str, Any]

# Speaker names in data sets of recent years, in lower case. ipython is Llama 3's name for a tool.
SPEAKERS = {
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(("human", "user", "prompter", "customer", "用户", "客户"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot", "chatbot", "ai", "助手", "客服"), "assistant"
    ),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
}
_CALLING = ("function_call", "tool_call", "tool_calls")
ROLES = ("system", "user", "assistant", "tool")

SPEAKER_KEYS = ("role", "from", "speaker", "sender", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "parts", "utterance")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

# Flags on one message that say whether to learn it: OpenAI (weight), axolotl (train, training), LLaMA-Factory and
# ms-swift (loss, loss_weight), verl (loss_mask, 1 where tokens are learned), others. True means that a set flag
# excludes the message.
FLAGS = {
    **dict.fromkeys(("weight", "loss_weight", "train", "training", "trainable", "loss", "loss_mask"), False),
    **dict.fromkeys(("train_on_turn", "learn", "learnable"), False),
    **dict.fromkeys(("masked", "mask", "no_loss"), True),
}
FLAG_VALUES = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}
# Keys that chat templates read; `tokenize_conversations` says if the one at hand does not.
_TEMPLATE_KEYS = ("name", "tool_call_id")
# Finer than a message, which labels of whole turns cannot express.
_REFUSED_KEYS = ("train_detail", "token_weights", "images", "image", "videos", "audios", "audio")

# `content` in the APIs of OpenAI (old and new) and Anthropic.
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "reasoning")

_SEPARATOR = "\n\n"


def text_of(value: Any) -> str | None:
    """Returns the text of a cell: a string as it is, a number or truth value as JSON writes it; None for all else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else None


def is_blank(value: Any) -> bool:
    """True if a cell has no value: None, white space, or an empty list or dict."""
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def is_empty(text: str) -> bool:
    """True if a text shows nothing: it has only white space and characters without a glyph."""
    return not text.strip() or all(unicodedata.category(character) in _INVISIBLE for character in text)


_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")


def normalize_messages(messages: Sequence[Any], unused: Counter[str], notes: Counter[str]) -> list[Message]:
    """Converts messages to `role`, `content` (a string), `tool_calls` and `weight`, and merges turns that belong together.

    `weight` is 0 for an assistant's message that is context only, and otherwise missing. Other keys are kept for the
    chat template. Arguments with numbers that a data set would round are JSON text.

    Args:
        messages: Mappings with a role and content under any of the known names.
        unused: Counts keys of messages, parts and calls that nothing reads.
        notes: Counts what was changed.

    Raises:
        DataError: If a message cannot be converted; it names the message, counted from 1.
    """
    result: list[Message] = []
    for number, raw in enumerate(messages, start=1):
        message = _normalize(raw, number, unused)
        if message["role"] == "system" and is_empty(message["content"]):
            continue
        if not (result and _merge(result[-1], message, number, notes)):
            result.append(message)
    return result


def spoken(raw: Any) -> tuple[str | None, str]:
    """Returns the role and the text of a message, however they are written, to compare messages."""
    given = raw if isinstance(raw, Mapping) else {"content": raw}
    try:
        message = _normalize(given, 1, Counter())
    except DataError:
        return None, repr(raw)
    return message["role"], repr((message["content"].strip(), message.get("tool_calls")))


def _normalize(raw: Any, number: int, unused: Counter[str]) -> Message:
    if not isinstance(raw, Mapping):
        raise DataError(f"message {number} is not a mapping with role and content, but {raw!r:.80}")
    given = {key: value for key, value in raw.items() if value is not None}
    if refused := next((key for key in _REFUSED_KEYS if given.get(key)), None):
        raise DataError(f"message {number} has {refused!r}, which cannot be learned: remove it")
    speaker_key = next((key for key in SPEAKER_KEYS if key in given), "role")
    speaker = given.pop(speaker_key, None)
    if isinstance(speaker, Mapping):
        # ChatGPT's export: {"author": {"role": "user"}}.
        speaker = speaker.get("role")
    role = SPEAKERS.get(str(speaker).strip().lower())
    if speaker is None:
        raise DataError(f"message {number} has no role: add one of {', '.join(ROLES)}")
    if role is None:
        raise DataError(
            f"message {number} has the unknown role {speaker!r}: use one of {', '.join(ROLES)}; known names for them "
            f"are {', '.join(name for name in SPEAKERS if name not in ROLES)}"
        )
    content_key = next((key for key in CONTENT_KEYS if key in given), "content")
    content = given.pop(content_key, None)
    is_calling = str(speaker).strip().lower() in _CALLING
    calls = _calls(given, content if is_calling else None, number, unused)
    content = "" if is_calling else content
    learned = _is_learned(given, role, number)
    text, reasoning = _content(content, number, unused)
    message: Message = {"role": role, "content": text}
    if calls:
        if role != "assistant":
            raise DataError(f"message {number} is the {role}'s and calls tools: only the assistant can")
        message["tool_calls"] = calls
    reasoning = [*reasoning, *(str(given.pop(key)) for key in _REASONING_KEYS if given.get(key))]
    if reasoning:
        message["reasoning_content"] = _SEPARATOR.join(reasoning)
    if not learned:
        message["weight"] = 0
    for key, value in given.items():
        if key not in _TEMPLATE_KEYS and not is_blank(value):
            unused[f"messages[].{key}"] += 1
        if has_unstorable_number(value):
            given[key] = written_json(value)
    return message | given


def _calls(given: dict[str, Any], said: Any, number: int, unused: Counter[str]) -> list[dict[str, Any]]:
    """Returns the calls of a message, which are what it says or under either of OpenAI's names; removes the names."""
    written = {"content": said, **{key: given.pop(key, None) for key in ("tool_calls", "function_call")}}
    found = {key: normalize_calls(calls, f"message {number}", unused) for key, calls in written.items() if calls}
    if len({repr(list(map(_called, calls))) for calls in found.values()}) > 1:
        raise DataError(f"message {number} has {' and '.join(found)} with different calls: give only one of them")
    return next(iter(found.values()), [])


def _called(call: Mapping[str, Any]) -> tuple[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    return function["name"], parse_text(arguments) if isinstance(arguments, str) else arguments


def has_unstorable_number(value: Any) -> bool:
    """True if a number that a data set cannot store, infinite or of more than 64 bits, is anywhere in a value."""
    return _any_number(value, lambda number: not _is_storable(number))


def _is_storable(number: int | float) -> bool:
    return math.isfinite(number) if isinstance(number, float) else -(2**63) <= number < 2**64


def _any_number(value: Any, holds: Callable[[int | float], bool]) -> bool:
    if isinstance(value, Mapping):
        return any(_any_number(item, holds) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_any_number(item, holds) for item in value)
    return isinstance(value, (int, float)) and holds(value)


def _is_learned(given: dict[str, Any], role: str, number: int) -> bool:
    """Removes the flags of a message; returns whether they let it be learned."""
    values = {}
    for name, excludes in FLAGS.items():
        if name not in given:
            continue
        value = given.pop(name)
        flag = FLAG_VALUES.get(str(text_of(value)).strip().lower())
        if flag is None:
            raise DataError(f"message {number} has {name} {value!r}: a message is learned (1, true) or not (0, false)")
        values[name] = flag is not excludes
    if len(set(values.values())) > 1:
        raise DataError(f"message {number} has {' and '.join(values)}, which contradict each other: give only one")
    learned = next(iter(values.values()), True)
    if role != "assistant" and values and learned and not set(values) & {"masked", "mask"}:
        raise DataError(
            f"message {number} is the {role}'s and is marked to be learned ({next(iter(values))}): only the assistant's "
            "messages are learned; remove the mark"
        )
    return learned


def _content(value: Any, number: int, unused: Counter[str]) -> tuple[str, list[str]]:
    """Returns the text of a message's content, and the reasoning among its parts."""
    if value is None:
        return "", []
    if (text := text_of(value)) is not None:
        return text, []
    if isinstance(value, Mapping) and "parts" in value:
        value = value["parts"]
    parts = value if isinstance(value, Sequence) else [value]
    texts: list[str] = []
    reasoning: list[str] = []
    for part in parts:
        if (text := text_of(part)) is not None:
            texts.append(text)
            continue
        kind, text = _part(part, number, unused)
        (reasoning if kind in _REASONING_PARTS else texts).append(text)
    return "".join(texts), reasoning


def _part(part: Any, number: int, unused: Counter[str]) -> tuple[str | None, str]:
    if not isinstance(part, Mapping):
        raise DataError(
            f"message {number} has content that is neither a text nor a list of text parts, but {part!r:.80}"
        )
    kind = part.get("type")
    if kind not in (*_TEXT_PARTS, *_REASONING_PARTS):
        raise DataError(f"message {number} has a part of the type {kind!r}: only text can be learned")
    keys = ("thinking", "reasoning", "text", "value", "content")
    found = next(((key, part[key]) for key in keys if part.get(key) is not None), None)
    if found is None:
        raise DataError(f"message {number} has a part without text: {dict(part)!r:.80}")
    key, value = found
    if isinstance(value, Mapping):  # {"type": "text", "text": {"value": "Hi", "annotations": []}}
        value = value.get("value")
    if (text := text_of(value)) is None:
        raise DataError(f"message {number} has a part without text: {dict(part)!r:.80}")
    unused.update(f"content[].{name}" for name, extra in part.items() if name not in ("type", key) and extra)
    return kind, text


def normalize_calls(calls: Any, where: str, unused: Counter[str]) -> list[dict[str, Any]]:
    """Converts tool calls to OpenAI's form, `{"type": "function", "function": {"name": ..., "arguments": ...}}`.

    Args:
        calls: A list, a single call, or either of them as JSON; the calls with or without `function` around them.
        where: Name of the message, for the error.
        unused: Counts keys that nothing reads.

    Raises:
        DataError: If a call has no name, or arguments that are not a JSON object.
    """
    items = _from_json(calls, where) if isinstance(calls, str) else calls
    items = [items] if isinstance(items, Mapping) else items
    if not isinstance(items, Sequence):
        raise DataError(f"{where}'s function call is not JSON with name and arguments, but {calls!r:.80}")
    result = []
    for item in items:
        call = _from_json(item, where) if isinstance(item, str) else item
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, str):  # {"function": "f", "arguments": {}}
            function = {"name": function, **{key: value for key, value in call.items() if key != "function"}}
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise DataError(f"{where}'s function call is not JSON with name and arguments, but {item!r:.80}")
        key = next((key for key in ("arguments", "parameters", "input") if function.get(key) is not None), None)
        arguments = {} if key is None else function[key]
        if isinstance(arguments, str):
            arguments = arguments if arguments.strip() else "{}"
            if not isinstance(_from_json(arguments, where), Mapping):
                raise DataError(
                    f"{where}'s call of {name} has arguments that are not a JSON object: {arguments!r:.80}"
                )
        elif not isinstance(arguments, Mapping):
            raise DataError(f"{where}'s call of {name} has arguments that are not a JSON object: {arguments!r:.80}")
        elif has_unstorable_number(arguments) or _any_number(arguments, lambda number: isinstance(number, float)):
            # As text, because a data set rounds numbers.
            arguments = written_json(arguments)
        unused.update(f"tool_calls[].function.{name}" for name in function if name not in ("name", key, "id", "type"))
        around = {} if function is call else {name: value for name, value in call.items() if value is not None}
        unused.update(f"tool_calls[].{name}" for name in around if name not in ("type", "function"))
        result.append({**around, "type": "function", "function": {"name": name, "arguments": arguments}})
    return result


def _from_json(text: str, where: str) -> Any:
    try:
        return parse_text(text)
    except DataError as error:
        raise DataError(f"{where}'s function call cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{where}'s function call is not JSON with name and arguments, but {text!r:.80}") from error


def _merge(before: Message, message: Message, number: int, notes: Counter[str]) -> bool:
    """Merges a message into the one before it if both are one turn; False if they are not."""
    role = message["role"]
    if role != before["role"] or role == "tool":
        return False
    if role == "assistant":
        if not message.get("tool_calls"):
            return False
        if before.get("weight") != message.get("weight"):
            raise DataError(
                f"messages {number - 1} and {number} are one turn of the assistant, but only one of them is to be learned"
            )
        before["tool_calls"] = [*before.get("tool_calls", []), *message["tool_calls"]]
        notes["consecutive messages of one turn of the assistant were merged"] += 1
    else:
        notes[f"consecutive messages of the {role} were merged"] += 1
    before["content"] = _SEPARATOR.join(text for text in (before["content"], message["content"]) if text)
    for key, value in message.items():
        if key not in ("role", "content", "tool_calls", "weight"):
            before[key] = (
                f"{before[key]}{_SEPARATOR}{value}" if key == "reasoning_content" and key in before else value
            )
    return True


def check_conversation(messages: Sequence[Mapping[str, Any]], *, allow_empty: bool = False) -> None:
    """Raises if a chat model cannot learn from a conversation.

    User and assistant take turns. After an assistant's message may come the tools' messages, and then the assistant
    again.

    Args:
        allow_empty: Allow messages without text; a model's answer can be empty. A tool's may always be.

    Raises:
        DataError: If a message is invalid or out of turn; it names the message, counted from 1, and what would be
            right.
    """
    before = None
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise DataError(f"message {number} is not a mapping with role and content, but {message!r:.80}")
        role, content = message.get("role"), message.get("content")
        if role is None:
            raise DataError(f"message {number} has no role: add one of {', '.join(_FOLLOWS)}")
        if role not in _FOLLOWS:
            raise DataError(f"message {number} has the unknown role {role!r}: use one of {', '.join(_FOLLOWS)}")
        calls = bool(message.get("tool_calls"))
        empty = not content or (isinstance(content, str) and is_empty(content))
        if empty and not calls and not allow_empty and role != "tool":
            raise DataError(f"message {number}, the {role}'s, is empty")
        if before not in _FOLLOWS[role]:
            raise DataError(
                f"message {number} is the {role}'s and comes {'first' if before is None else f'after {_article(before)}'}: "
                "after a system message, user and assistant take turns; a tool's message follows an assistant's"
            )
        before = role


# The roles that may come directly before each role; None is the beginning.
_FOLLOWS: dict[str, tuple[str | None, ...]] = {
    "system": (None, "user", "assistant", "tool"),
    "user": (None, "system", "assistant", "tool"),
    "assistant": (None, "system", "user", "tool"),
    "tool": ("assistant", "tool"),
}


def _article(before: str) -> str:
    return f"an {before}'s" if before == "assistant" else f"a {before}'s"
