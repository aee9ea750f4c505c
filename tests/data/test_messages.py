"""Messages as other tools write them become role, content, calls and weight; nothing is dropped without a word."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgpt_hf.data.conversation_rows import ConversationReader
from chatgpt_hf.data.messages import check_conversation, is_empty, normalize_messages
from chatgpt_hf.data.tables import read_rows
from chatgpt_hf.errors import DataError

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}
FUNCTION = {"name": "f", "arguments": {"x": 1}}
CALL = {"type": "function", "function": FUNCTION}


def normalized(*messages: Any) -> list[dict[str, Any]]:
    result = normalize_messages(messages, Counter(), Counter())
    check_conversation(result)
    return result


@pytest.mark.parametrize(
    ("flags", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": 1}, True),
        ({"train": False}, False),
        ({"train": "false"}, False),
        ({"training": True}, True),
        ({"loss": False}, False),
        ({"loss": None}, True),
        ({"loss_weight": 0}, False),
        ({"masked": True}, False),
        ({"masked": False}, True),
        ({"mask": 1}, False),
        ({"trainable": 0}, False),
        ({"weight": 0, "train": False}, False),
        ({"train_on_turn": False}, False),
        ({"learn": False}, False),
        ({"loss_mask": 0}, False),
        ({"loss_mask": 1}, True),
        ({"no_loss": True}, False),
        ({"train": "no"}, False),
    ],
)
def test_flags(flags: dict[str, Any], learned: bool) -> None:
    (_, message) = normalized(USER, {**ASSISTANT, **flags})
    assert message == (ASSISTANT if learned else {**ASSISTANT, "weight": 0})


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([USER, {**ASSISTANT, "weight": 0.5}], r"message 2 has weight 0.5: a message is learned \(1, true\) or not"),
        ([USER, {**ASSISTANT, "train": "sometimes"}], "message 2 has train 'sometimes'"),
        ([USER, {**ASSISTANT, "weight": 1, "masked": True}], "message 2 has weight and masked, which contradict"),
        ([{**USER, "train": True}, ASSISTANT], "message 1 is the user's and is marked to be learned"),
        ([USER, {**ASSISTANT, "train_detail": [{"begin_offset": 0}]}], "message 2 has 'train_detail'"),
        ([{**USER, "images": ["a.png"]}, ASSISTANT], "message 1 has 'images', which cannot be learned"),
        ([{"role": "robot", "content": "Q"}], "message 1 has the unknown role 'robot': use one of system.*gpt"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "message 1 has a part of the type 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1 has a part without text"),
        ([{"role": "user", "content": [["Q"]]}], "message 1 has content that is neither a text nor a list"),
        (
            [USER, {"role": "assistant", "content": [{"type": "text", "text": ""}]}],
            "message 2, the assistant's, is empty",
        ),
        ([USER, {"role": "assistant", "content": []}], "message 2, the assistant's, is empty"),
        ([USER, {"role": "assistant", "content": "\u200b\u00a0"}], "message 2, the assistant's, is empty"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": []}], "message 2, the assistant's, is empty"),
        ([{**USER, "tool_calls": [CALL]}], "message 1 is the user's and calls tools"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
            "message 2's function call is not JSON",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x=1"}]}],
            "message 2's function call is not JSON",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}],
            "arguments that are not a JSON object",
        ),
        (
            [USER, {**ASSISTANT, "weight": 0}, {"role": "assistant", "tool_calls": [CALL]}],
            "messages 2 and 3 are one turn",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "g", "arguments": {}}}],
            "message 2 has tool_calls and function_call with different calls",
        ),
        ([USER, ASSISTANT, ASSISTANT], "message 3 is the assistant's and comes after an assistant's"),
    ],
)
def test_messages_that_are_refused(messages: list[Any], error: str) -> None:
    with pytest.raises(DataError, match=error):
        normalized(*messages)


@pytest.mark.parametrize(
    "content",
    [
        "A 2",
        ["A", " 2"],
        [{"type": "text", "text": "A"}, {"type": "text", "text": " 2"}],
        [{"text": "A"}, " 2"],
        [{"type": "text", "value": "A"}, {"type": "text", "content": " 2"}],
        [{"type": "output_text", "text": "A "}, 2],
        [{"type": "text", "text": {"value": "A 2", "annotations": []}}],
        {"content_type": "text", "parts": ["A 2"]},
        {"type": "text", "text": "A 2"},
    ],
)
def test_content(content: Any) -> None:
    assert normalized(USER, {"role": "assistant", "content": content})[1] == {"role": "assistant", "content": "A 2"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"from": "gpt", "value": "A"}, ASSISTANT),
        ({"role": "ASSISTANT ", "content": "A"}, ASSISTANT),
        ({"role": "model", "parts": [{"text": "A"}]}, ASSISTANT),
        ({"speaker": "bot", "text": "A"}, ASSISTANT),
        ({"author": {"role": "assistant"}, "content": "A"}, ASSISTANT),
        ({"role": "assistant", "content": 7}, {**ASSISTANT, "content": "7"}),
        ({"role": "assistant", "content": "A", "thinking": "T"}, {**ASSISTANT, "reasoning_content": "T"}),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "T"}, {"type": "text", "text": "A"}]},
            {**ASSISTANT, "reasoning_content": "T"},
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{**CALL, "function": {**FUNCTION, "arguments": '{"x": 1}'}}],
            },
        ),
        (
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "tool_call", "content": '[{"name": "f", "parameters": {"x": 1}}]'},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "7", **CALL}]},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "7", **CALL}]},
        ),
        (
            {"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        ({"role": "assistant", "content": "A", "id": 2**64}, {**ASSISTANT, "id": str(2**64)}),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 2**64}}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": f'{{"x": {2**64}}}'}}],
            },
        ),
        (
            {"role": "assistant", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": ""}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
        ),
    ],
)
def test_messages_as_they_occur(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert normalized(USER, message)[1] == expected


def test_turns_that_belong_together_are_merged() -> None:
    notes: Counter[str] = Counter()
    result = normalize_messages(
        [
            {"role": "system", "content": "S"},
            {"role": "developer", "content": "D"},
            {"role": "system", "content": " "},
            {**USER, "content": "a"},
            {**USER, "content": "b"},
            {**ASSISTANT, "content": "Let me look."},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "function_call", "content": '{"name": "f", "arguments": {"x": 1}}'},
            {"role": "observation", "content": ""},
            {"role": "tool", "content": 20},
            ASSISTANT,
        ],
        Counter(),
        notes,
    )
    check_conversation(result)
    assert result == [
        {"role": "system", "content": "S\n\nD"},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": ""},
        {"role": "tool", "content": "20"},
        ASSISTANT,
    ]
    assert sum(notes.values()) == 4


def test_what_nothing_reads_is_counted() -> None:
    unused: Counter[str] = Counter()
    part = {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}
    call = {"id": "7", "index": 0, "type": "function", "function": {**FUNCTION, "strict": True}}
    normalize_messages([USER, {"role": "assistant", "content": [part], "tool_calls": [call]}], unused, Counter())
    normalize_messages([USER, {**ASSISTANT, "correct": False, "score": 0, "note": ""}], unused, Counter())
    assert set(unused) == {
        "messages[].correct",
        "messages[].score",
        "content[].cache_control",
        "tool_calls[].id",
        "tool_calls[].index",
        "tool_calls[].function.strict",
    }


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda text: not is_empty(text)
)
CONVERSATIONS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
NAMES = {"user": "human", "assistant": "gpt"}


def in_formats(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Writes a conversation as the formats of several tools do."""
    *before, question, answer = messages
    pairs = [[before[index]["content"], before[index + 1]["content"]] for index in range(0, len(before), 2)]
    return [
        {"messages": messages},
        {"conversations": [{"from": NAMES[each["role"]], "value": each["content"]} for each in messages]},
        {"messages": [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]},
        {"messages": json.dumps(messages)},
        {"messages": repr(messages)},
        {"instruction": question["content"], "input": "", "output": answer["content"], "history": pairs},
        {"prompt": messages[:-1], "completion": [answer]},
        {"prompt": messages[:-1], "chosen": messages},
        {"dialog": [each["content"] for each in messages]},
    ]


@settings(max_examples=40)
@given(CONVERSATIONS)
def test_what_tools_write_comes_back(tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str]]) -> None:
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    file = tmp_path_factory.mktemp("written", numbered=True) / "rows.jsonl"
    write(file, in_formats(messages))
    read = [conversation for _, conversation in ConversationReader("rows").read(read_rows(file))]
    assert [getattr(conversation, "messages", conversation) for conversation in read] == [messages] * len(read)
    assert len(read) == len(in_formats(messages))


def write(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


HALF = r"half of a surrogate pair, \\ud83d: an emoji or rare character was cut in two"


@pytest.mark.parametrize(
    "cell",
    [
        r'[{"role": "user", "content": "\ud83d hi"}, {"role": "assistant", "content": "A"}]',
        r"[{'role': 'user', 'content': '\ud83d hi'}, {'role': 'assistant', 'content': 'A'}]",
        [USER, {"from": "function_call", "value": r'{"name": "f", "arguments": {"x": "\ud83d"}}'}],
        [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": r'{"x": "\ud83d"}'}}]}],
        [USER, {**ASSISTANT, "function_call": {"name": "f", "arguments": r'{"\ud83d": 1}'}}],
    ],
)
def test_half_a_character_inside_a_cell(cell: Any) -> None:
    ((_, error),) = ConversationReader("rows").read([{"messages": cell}])
    assert isinstance(error, DataError)
    assert re.search(HALF, str(error))


def test_half_a_character_in_tools() -> None:
    row = {"messages": [USER, ASSISTANT], "tools": r'[{"name": "\ud83d"}]'}
    ((_, error),) = ConversationReader("rows").read([row])
    assert isinstance(error, DataError)
    assert re.search(HALF, str(error))
