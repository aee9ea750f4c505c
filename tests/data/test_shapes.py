"""Reads every shape of conversations and refuses invalid ones."""

from typing import Any

import pytest

from chatgpt_hf.data.conversation_rows import Conversation, ConversationReader
from chatgpt_hf.data.messages import check_conversation
from chatgpt_hf.data.shapes import PairColumns, find_shape
from chatgpt_hf.errors import ConfigError, DataError

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
    result = [conversation for _, conversation in ConversationReader("rows").read(rows)]
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
    reader = ConversationReader("rows")
    rows = [{"messages": None}, {"messages": [USER, ASSISTANT]}]
    assert list(reader.read(rows)) == [(2, Conversation([USER, ASSISTANT]))]
    assert reader.notes == {"blank rows were left out": 1}


@pytest.mark.parametrize("row", [{"text": "a", "label": 3}, {"prompt": "a"}, {"prompt": {}, "text": 2}])
def test_what_is_no_known_shape_lists_the_columns(row: dict[str, Any]) -> None:
    with pytest.raises(
        DataError,
        match=f"it has the columns {', '.join(row)}, which fit no known shape of conversations: name the columns with --prompt_column .*ShareGPT.*Alpaca",
    ):
        find_shape(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [{"id": 1}]},
            r"its messages are not a list of messages with role and content, but \[{'id': 1}\]",
        ),
        (
            {"conversations": [None]},
            r"its conversations are not a list of messages with role and content, but \[None\]",
        ),
        (
            {"messages": {"content": "a"}},
            "its messages are not a list of messages with role and content, but {'content'",
        ),
        ({"instruction": {"en": "a"}, "output": {"en": "c"}}, "its instruction is no text, but {'en': 'a'}"),
    ],
)
def test_known_columns_with_other_values(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_shape(row)


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ASSISTANT],
        [ASSISTANT],
        [SYSTEM, USER, ASSISTANT, USER],
        [USER, CALL, TOOL, TOOL, ASSISTANT, USER, ASSISTANT],
        [USER, ASSISTANT, TOOL, ASSISTANT],
        [USER, CALL, {**TOOL, "content": ""}, USER, ASSISTANT],
        [USER, ASSISTANT, SYSTEM, USER, ASSISTANT],
        [USER, CALL],
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
        ([USER, TOOL], r"message 2 is the tool's and comes after a user's"),
        ([TOOL], r"message 1 is the tool's and comes first"),
        (
            [USER, {"role": "robot", "content": "A"}],
            r"message 2 has the unknown role 'robot': use one of system, user",
        ),
        ([USER, {"role": "assistant", "content": " \n"}], r"message 2, the assistant's, is empty"),
        ([USER, {"role": "assistant", "content": None}], r"message 2, the assistant's, is empty"),
        ([{"content": "Q"}], r"message 1 has no role: add one of system, user"),
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
            r"message 1 has the unknown role 'alien': use one of system.*human",
        ),
        ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, r"function call is not JSON.*f\(1\)"),
        ({"conversations": [{"from": "human", "value": "Q"}], "tools": "f, g"}, r"`tools` are not JSON"),
        ({"instruction": "Q", "output": ""}, r"message 2, the assistant's, is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_numbered(row: dict[str, Any], message: str) -> None:
    good = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    rows = [good if "conversations" in row else {"instruction": "Q", "output": "A"}, row]
    (_, first), (number, error) = ConversationReader("rows").read(rows)
    assert isinstance(first, Conversation)
    assert number == 2
    with pytest.raises(DataError, match=message):
        raise error


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        # Headers as people write them.
        ({"问题": "Q", "回答": "A"}, [USER, ASSISTANT]),
        ({"指令": "Q", "输入": "more", "输出": "A"}, turns("Q\n\nmore", "A")),
        ({"\ufeffQuestion ": "Q", "ANSWER": "A"}, [USER, ASSISTANT]),
        # Numbers and truth values are text.
        ({"question": 1, "answer": 2}, turns("1", "2")),
        ({"question": "Q", "answer": True}, turns("Q", "true")),
        # A system prompt and a context in columns.
        ({"system_message": "S", "query": "Q", "reply": "A"}, [SYSTEM, USER, ASSISTANT]),
        ({"system": "S", "messages": [SYSTEM, USER, ASSISTANT]}, [{**SYSTEM, "content": "S\n\nS"}, USER, ASSISTANT]),
        ({"question": "Q", "passage": "P", "context": "C", "answer": "A"}, turns("Q\n\nC\n\nP", "A")),
        ({"prompt": "Q", "history": [["q", "a"]], "response": "A"}, turns("q", "a", "Q", "A")),
        ({"prompt": "Q", "history": [USER, ASSISTANT], "response": "A"}, [USER, ASSISTANT, USER, ASSISTANT]),
        # A question as messages, an answer as text, a message or messages.
        ({"prompt": [USER], "completion": "A"}, [USER, ASSISTANT]),
        ({"prompt": "Q", "completion": ASSISTANT}, [USER, ASSISTANT]),
        ({"prompt": "Q", "completion": [ASSISTANT], "train": True}, [USER, ASSISTANT]),
        # The answer alone, without a rejected one.
        ({"chosen": [USER, ASSISTANT]}, [USER, ASSISTANT]),
        (
            {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}},
            [USER, ASSISTANT],
        ),
        # A list that a spreadsheet or pandas wrote into a cell.
        ({"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'}, [USER, ASSISTANT]),
        ({"messages": "[{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}]"}, [USER, ASSISTANT]),
        # Texts by two speakers in turn.
        ({"dialog": ["Q", "A", "Q"]}, [USER, ASSISTANT, USER]),
        # Gemini's tuning format.
        (
            {
                "systemInstruction": {"parts": [{"text": "S"}]},
                "contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}],
            },
            [SYSTEM, USER, ASSISTANT],
        ),
    ],
)
def test_shapes_that_people_bring(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert [conversation.messages for conversation in read(row)] == [messages]


def test_every_row_has_its_own_shape() -> None:
    rows = (
        {"messages": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"instruction": "Q", "output": "A"},
    )
    assert read(*rows) == [Conversation([USER, ASSISTANT])] * 3


@pytest.mark.parametrize(("name", "mark"), [("label", "False"), ("label", "Undesirable"), ("kto_tag", 0)])
def test_an_answer_that_is_marked_wrong_is_not_learned(name: str, mark: Any) -> None:
    rows = [{"question": "Q", "reply": "A", name: mark}]
    with pytest.raises(DataError, match=r"Row 1 of kto.jsonl has preferences .*: chatgpt-hf dpo trains on them"):
        list(ConversationReader("kto.jsonl").read(rows))
    reader = ConversationReader("kto.jsonl", PairColumns("question", "reply"))
    assert list(reader.read(rows)) == []
    assert reader.notes == {f"rows with {name} {mark} were left out": 1}


@pytest.mark.parametrize("label", [0, 1, 0.0, "1", "0.0"])
def test_a_number_may_be_a_mark_or_a_class(label: Any) -> None:
    assert "may say whether the answer is good, or be a class: chatgpt-hf dpo trains on" in refusal(
        {"prompt": "Q", "completion": "A", "label": label}
    )


def test_a_class_is_no_mark() -> None:
    reader = ConversationReader("classes.jsonl")
    rows = [{"prompt": "Q", "completion": "A", "label": label} for label in (2, "joy", "no")]
    rows += [{"question": "Q", "answer": "A", "label": label} for label in (0, 1, "0")]
    assert len(list(reader.read(rows))) == 6
    assert reader.unused == {"label": 6}


@pytest.mark.parametrize(
    "flag",
    [
        {"train": False},
        {"train": "no"},
        {"trainable": False},
        {"training": "false"},
        {"loss": False},
        {"loss_weight": 0},
        {"weight": "0"},
        {"mask": True},
        {"masked": 1},
    ],
)
def test_a_row_can_be_excluded(flag: dict[str, Any]) -> None:
    reader = ConversationReader("rows")
    rows = [{"messages": [USER, ASSISTANT], **added} for added in (flag, {"weight": 0.7}, {})]
    assert [number for number, _ in reader.read(rows)] == [2, 3]
    assert reader.unused == {"weight": 1}
    assert sum(reader.notes.values()) == 1


def test_a_row_per_message() -> None:
    reader = ConversationReader("log.csv")
    rows = [
        {"session_id": "1", "role": "user", "content": "Q", "time": "9:00"},
        {"session_id": "2", "role": "user", "content": "Q2", "time": "9:01"},
        {"session_id": "1", "role": "assistant", "content": "A", "time": "9:02"},
        {"session_id": "2", "role": "assistant", "content": "A2", "time": "9:03"},
    ]
    assert list(reader.read(rows)) == [(1, Conversation(turns("Q", "A"))), (2, Conversation(turns("Q2", "A2")))]
    assert set(reader.used) == {"session_id", "role", "content"}
    assert reader.unused == {"time": 4}


def test_a_row_per_message_out_of_order() -> None:
    rows = [
        {"会话ID": 7, "turn": "2", "角色": "助手", "内容": "A"},
        {"会话ID": 7, "turn": "10", "角色": "用户", "内容": "Q2"},
        {"会话ID": 7, "turn": "1", "角色": "用户", "内容": "Q"},
    ]
    assert read(*rows) == [Conversation(turns("Q", "A", "Q2"))]


@pytest.mark.parametrize(
    ("column", "places"),
    [
        ("timestamp", ["2024-01-01T10:02", "2024-01-01T10:01:30Z", "2024-01-01T10:00"]),
        ("created_at", ["1700000002.5", "1700000001", "1700000000"]),
        ("message_id", ["10", "9", "8"]),
        ("message_id", [2**64 + 2, 2**64 + 1, 2**64]),
        ("position", [2, 1, 0]),
        ("index", ["2", "1", "0"]),
    ],
)
def test_a_row_per_message_newest_first(column: str, places: list[Any]) -> None:
    reader = ConversationReader("log.csv")
    said = zip(("user", "assistant", "user"), ("Q2", "A", "Q"), places, strict=True)
    rows = [{"session_id": "1", "role": role, "content": text, column: place} for role, text, place in said]
    assert list(reader.read(rows)) == [(1, Conversation(turns("Q", "A", "Q2")))]
    assert reader.notes == {f"conversations whose messages were sorted by {column}": 1}
    assert column in reader.used


def test_messages_of_one_turn_are_ordered_by_their_time() -> None:
    said = [("assistant", "A", 1, "2024-01-02"), ("user", "Q", 1, "2024-01-01"), ("user", "Q2", 2, "2024-01-03")]
    rows = [
        {"session_id": "1", "role": role, "content": text, "turn": turn, "timestamp": time}
        for role, text, turn, time in said
    ]
    assert read(*rows) == [Conversation(turns("Q", "A", "Q2"))]


def test_places_that_are_no_numbers_leave_the_order() -> None:
    reader = ConversationReader("log.csv")
    rows = [
        {"session_id": "1", "role": "user", "content": "Q", "message_id": "b7"},
        {"session_id": "1", "role": "assistant", "content": "A", "message_id": "7"},
    ]
    assert list(reader.read(rows)) == [(1, Conversation(turns("Q", "A")))]
    assert reader.unused == {"message_id": 2}
    assert reader.notes == {}


def test_what_else_a_message_of_a_table_has() -> None:
    rows = [
        {"session_id": "1", "role": "user", "content": "Q", "system": "S", "tools": '[{"name": "f"}]'},
        {"session_id": "1", "role": "assistant", "content": None, "tool_calls": CALL["tool_calls"]},
        {"session_id": "1", "role": "tool", "content": "2"},
        {"session_id": "1", "role": "assistant", "content": "A", "reasoning_content": "R", "system": "S"},
    ]
    said = [SYSTEM, USER, CALL, TOOL, {**ASSISTANT, "reasoning_content": "R"}]
    assert read(*rows) == [Conversation(said, [{"name": "f"}])]
    rows[3]["system"] = "T"
    assert "different system prompts" in refusal(*rows)


def test_an_empty_message_of_a_table_does_not_join_its_neighbours() -> None:
    rows = [{"session_id": "1", "role": role, "content": text} for role, text in (("user", "Q"), ("assistant", None))]
    assert "message 2, the assistant's, is empty" in refusal(*rows, {**rows[0], "content": "Q2"})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        # `chosen` repeats the question, in whole or in part.
        ({"system": "S", "prompt": "Q", "chosen": [USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ({"prompt": "Q", "chosen": [SYSTEM, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ({"system": "S", "prompt": "Q", "chosen": [SYSTEM, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        (
            {"prompt": "Q", "chosen": [{"from": "human", "value": " Q\n"}, {"from": "gpt", "value": "A"}]},
            turns("Q", "A"),
        ),
        ({"prompt": "Q", "history": [["q", "a"]], "chosen": [USER, ASSISTANT]}, turns("q", "a", "Q", "A")),
        ({"prompt": "Q", "chosen": [{"role": "user", "content": [{"text": "Q"}]}, ASSISTANT]}, turns("Q", "A")),
        # What a question is about, and what was said before it.
        ({"question": "Q", "context": ["p", 1], "answer": "A"}, turns("Q\n\np\n\n1", "A")),
        ({"question": "Q", "history": "[]", "answer": "A"}, turns("Q", "A")),
        ({"messages": [USER, ASSISTANT], "history": [["q", "a"]]}, turns("q", "a", "Q", "A")),
        ({"dialog": ["Q", "A"], "history": [["q", "a"]]}, turns("q", "a", "Q", "A")),
    ],
)
def test_columns_that_belong_together(row: dict[str, Any], said: list[dict[str, Any]]) -> None:
    reader = ConversationReader("rows")
    assert [getattr(found, "messages", found) for _, found in reader.read([row])] == [said]


def refusal(*rows: dict[str, Any]) -> str:
    ((_, error),) = ConversationReader("rows").read(rows)
    assert isinstance(error, DataError)
    return str(error)


@pytest.mark.parametrize(
    "named",
    [
        PairColumns(prompt_column="title", completion_column="poem"),
        PairColumns(prompt_template="{title}", completion_template="{poem}"),
        PairColumns(prompt_column="title", completion_template="{poem}"),
    ],
)
def test_named_columns(named: PairColumns) -> None:
    rows = [{"title": "Q", "poem": "A", "year": 1820, "system": "S"}]
    reader = ConversationReader("poems.csv", named)
    assert list(reader.read(rows)) == [(1, Conversation([SYSTEM, USER, ASSISTANT]))]
    assert set(reader.used) == {"title", "poem", "system"}
    assert reader.unused == {"year": 1}


def test_named_columns_that_do_not_exist() -> None:
    reader = ConversationReader("poems.csv", PairColumns(prompt_column="titel", completion_column="poem"))
    ((number, error),) = reader.read([{"title": "Q", "poem": "A"}])
    assert number == 1
    assert "it has no column 'titel'; it has title, poem" in str(error)
    with pytest.raises(ConfigError, match="--prompt_column and --prompt_template both name the prompt"):
        PairColumns(prompt_column="a", prompt_template="{a}").check()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "its messages are empty"),
        ({"messages": [USER, ASSISTANT], "images": ["a.png"]}, "it has images: only text can be learned"),
        ({"messages": [USER, ASSISTANT], "tools": "[1]"}, "its `tools` are not a list of JSON schemas"),
        (
            {"prompt": "Q", "history": "none", "response": "A"},
            "its history is neither a list of messages nor of pairs",
        ),
        ({"role": "user", "content": "Q"}, "a row per message with session_id"),
        ({"prompt": "Q", "chosen": 0}, "its chosen is 0, which points to an answer instead of being one"),
        ({"prompt": "Q", "response_1": "A", "response_2": "B", "chosen": 0}, "no answer of that number"),
        ({"prompt": "Q", "model_a": "x", "chosen": "model_a"}, "no answer of that name"),
        ({"question": "Q", "context": {"title": "t"}, "answer": "A"}, "its context is neither a text nor a list"),
        ({"instruction": "Q", "input": [["a"]], "output": "A"}, "its input is neither a text nor a list"),
        ({"messages": [USER, ASSISTANT], "history": "yes"}, "its history is neither a list of messages"),
        ({"question": "Q", "answer": None}, "its answer is empty"),
        ({"instruction": None, "output": "A"}, "its instruction is empty"),
        ({"prompt": "Q", "completion": ["A", "B"]}, "its completion is no text, but ['A', 'B']"),
        ({"dialog": "['Say ,'\n ' what ?' \"It's\"]"}, "its dialog are a list as numpy prints it"),
        ({"messages": "[{'role': 'user'}\n {'role': 'assistant'}]"}, "its messages are a list as numpy prints it"),
        ({"messages": [USER, ASSISTANT], "tools": [{"name": "f", "n": 2**64}]}, "an integer of more than 64 bits"),
    ],
)
def test_rows_that_are_refused(row: dict[str, Any], message: str) -> None:
    ((_, error),) = ConversationReader("rows").read([{**row, "id": 1}])
    assert message in str(error)


def test_columns_that_nothing_reads_are_counted() -> None:
    reader = ConversationReader("rows")
    message = {"message": "Q", "attrs": [1]}
    list(reader.read([{"question": "Q", "answer": "A", "score": 3, "note": ""}, {"messages": [message, message]}]))
    assert reader.unused == {"score": 1, "messages[].attrs": 2}
