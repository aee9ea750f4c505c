"""Reads every shape of conversations and refuses invalid ones."""

from typing import Any

import pytest

from chatgpt_hf.data.shapes import Conversation, check_conversation, find_shape, read_rows
from chatgpt_hf.errors import DataError

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
}
TOOL = {"role": "tool", "content": "2"}
SYSTEM = {"role": "system", "content": "S"}


def read(*rows: dict[str, Any]) -> list[Conversation]:
    result = [conversation for _, conversation in read_rows(find_shape(rows, "rows"), rows)]
    assert all(isinstance(conversation, Conversation) for conversation in result), result
    return result


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, ASSISTANT]}, [USER, ASSISTANT]),
        ({"conversations": [SYSTEM, USER, ASSISTANT], "id": "7"}, [SYSTEM, USER, ASSISTANT]),
        ({"messages": [{**USER, "name": None}, {**ASSISTANT, "tool_calls": None}]}, [USER, ASSISTANT]),
        ({"prompt": [USER], "completion": [ASSISTANT]}, [USER, ASSISTANT]),
        ({"prompt": "Q", "completion": "A"}, [USER, ASSISTANT]),
        ({"prompt": "Q", "response": "A"}, [USER, ASSISTANT]),
        ({"question": "Q", "answer": "A", "score": "3"}, [USER, ASSISTANT]),
        ({"input": "Q", "output": "A"}, [USER, ASSISTANT]),
        ({"instruction": "Q", "output": "A"}, [USER, ASSISTANT]),
        ({"instruction": "Q", "input": " ", "output": "A"}, [USER, ASSISTANT]),
        ({"instruction": "Q", "input": "more", "response": "A"}, [{**USER, "content": "Q\n\nmore"}, ASSISTANT]),
        ({"instruction": "Q", "context": "more", "response": "A"}, [{**USER, "content": "Q\n\nmore"}, ASSISTANT]),
        (
            {"instruction": "Q", "output": "A", "system": "S", "history": [["Q", "A"]]},
            [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
        ),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
            [SYSTEM, USER, ASSISTANT],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Q"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": "2"},
                    {"from": "gpt", "value": "A"},
                ]
            },
            [USER, CALL, TOOL, ASSISTANT],
        ),
        ({"messages": [{"message": "Q"}, {"message": "A", "attrs": []}, {"message": "Q"}]}, [USER, ASSISTANT, USER]),
    ],
)
def test_shapes(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert read(row) == [Conversation(messages)]


def test_one_row_may_hold_several_conversations() -> None:
    row = {"instruction": "Q", "instances": [{"input": "", "output": "A"}, {"input": "1", "output": "2"}]}
    assert [conversation.messages[-1]["content"] for conversation in read(row)] == ["A", "2"]


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]'])
def test_tools_come_with_the_conversation(tools: Any) -> None:
    row = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "tools": tools}
    assert read(row, {**row, "tools": ""}) == [
        Conversation([USER, ASSISTANT], [{"name": "f"}]),
        Conversation([USER, ASSISTANT]),
    ]


def test_empty_rows_at_the_start_do_not_decide() -> None:
    rows = [{"messages": None}, {"messages": [USER, ASSISTANT]}]
    assert find_shape(rows, "rows").name.startswith("`messages`")


@pytest.mark.parametrize(
    "row", [{"text": "a", "label": 3}, {"prompt": "a"}, {"messages": ["a"]}, {"prompt": 1, "answer": 2}]
)
def test_what_is_no_known_shape_lists_the_columns(row: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=f"a.csv has the columns {', '.join(row)}, which fit no known shape.*ShareGPT.*Alpaca"
    ):
        find_shape([row], "a.csv")


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ASSISTANT],
        [ASSISTANT],
        [SYSTEM, USER, ASSISTANT, USER],
        [USER, CALL, TOOL, TOOL, ASSISTANT, USER, ASSISTANT],
        [USER, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}],
    ],
)
def test_conversations_that_can_be_learned(messages: list[dict[str, Any]]) -> None:
    check_conversation(messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, USER], r"message 2 is the user's and comes after a user's"),
        ([USER, ASSISTANT, ASSISTANT], r"message 3 is the assistant's and comes after an assistant's"),
        ([USER, SYSTEM], r"message 2 is the system's and comes after a user's"),
        ([USER, ASSISTANT, TOOL], r"message 3 is the tool's and comes after an assistant's"),
        ([TOOL], r"message 1 is the tool's and comes first"),
        ([USER, CALL, USER], r"message 3 is the user's and comes after an assistant's call"),
        (
            [USER, {"role": "robot", "content": "A"}],
            r"message 2 has the unknown role 'robot': use one of system, user",
        ),
        ([USER, {"role": "assistant", "content": " \n"}], r"message 2, the assistant's, is empty"),
        ([USER, {"role": "assistant", "content": None}], r"message 2, the assistant's, is empty"),
        ([{"content": "Q"}], r"message 1 has the unknown role None"),
        (["Q"], r"message 1 is not a mapping"),
    ],
)
def test_conversations_that_cannot(messages: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_conversation(messages)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"conversations": [{"from": "alien", "value": "Q"}]},
            r"a turn from 'alien'; known speakers are system, human",
        ),
        ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, r"function call is not JSON.*f\(1\)"),
        ({"conversations": [{"from": "human", "value": "Q"}], "tools": "f, g"}, r"`tools` are not JSON"),
        ({"instruction": "Q", "output": ""}, r"message 2, the assistant's, is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_numbered(row: dict[str, Any], message: str) -> None:
    good = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    rows = [good if "conversations" in row else {"instruction": "Q", "output": "A"}, row]
    (_, first), (number, error) = read_rows(find_shape(rows, "rows"), rows)
    assert isinstance(first, Conversation)
    assert number == 2
    with pytest.raises(DataError, match=message):
        raise error
