"""Only what the assistant says, with its end mark, is learned from conversations."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatgpt_hf.data.conversations import load_conversations, share_supervised, show_masks, tokenize_conversations
from chatgpt_hf.data.packing import IGNORE_INDEX, pack_documents
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import DataError

# Number of conversations in each file; together the files have every shape.
SHARED_FILES = {
    "belle_zh_seed_tasks.jsonl": 175,
    "dolly_hhrlhf_small_1000.jsonl": 1000,
    "fastchat_dummy_conversation.json": 500,
    "gpteacher_roleplay.json": 1923,
    "kdconv_film_dev.json": 150,
    "lf_alpaca_en_demo.json": 999,
    "lf_glaive_toolcall_en_demo.json": 300,
    "lf_identity.json": 91,
    "rasbt_instruction_1100.json": 1100,
    "self_instruct_seed_tasks.jsonl": 175,
}


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_folder)


def conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def learned(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX])


def test_labels_are_the_assistants_words(tokenizer: PreTrainedTokenizerBase) -> None:
    said = ["Hi! 你好 👍🏽", " leading space\n", "x = 1  # <|im_end|> is no end"]
    turns = [("system", "Be brief.")]
    for answer in said:
        turns += [("user", f"About {answer}?"), ("assistant", answer)]
    rows = tokenize_conversations(Dataset.from_list([{"messages": conversation(*turns)}]), tokenizer)
    assert learned(rows[0], tokenizer) == "".join(f"{answer}<|im_end|>" for answer in said)
    # A quoted <|im_end|> becomes ordinary tokens; only the four ends are the special token.
    assert rows[0]["labels"].count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == len(said)
    for token, label in zip(rows[0]["input_ids"], rows[0]["labels"], strict=True):
        assert label in (token, IGNORE_INDEX)
    assert share_supervised(rows) == pytest.approx(
        sum(label != IGNORE_INDEX for label in rows[0]["labels"]) / len(rows[0]["labels"])
    )


def test_packing_keeps_the_targets(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [conversation(("user", f"Number {i}?"), ("assistant", f"It is {i}.")) for i in range(12)]
    packed = pack_documents(
        tokenize_conversations(Dataset.from_list([{"messages": row} for row in rows]), tokenizer),
        128,
        pad_token_id=tokenizer.pad_token_id,
        split_long=False,
    )
    text = "".join(learned(row, tokenizer) for row in packed)
    assert sorted(text.split("<|im_end|>")[:-1]) == sorted(f"It is {i}." for i in range(12))


def test_rows_without_a_target_are_dropped_and_counted(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        [],
        conversation(("user", "Anyone?")),
        conversation(("user", "Hello"), ("assistant", "Hi")),
        None,
        conversation(("user", "Hello"), ("assistant", "Yes"), ("user", "and?")),
    ]
    with caplog.at_level(logging.WARNING):
        kept = tokenize_conversations(Dataset.from_list([{"messages": row} for row in rows]), tokenizer)
    assert [learned(row, tokenizer) for row in kept] == ["Hi<|im_end|>", "Yes<|im_end|>"]
    assert "3 of 5 rows" in caplog.text


def test_nothing_to_learn_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    only_questions = Dataset.from_list([{"messages": conversation(("user", "Hello?"))}] * 2)
    with pytest.raises(DataError, match="None of the 2 conversations has an assistant turn"):
        tokenize_conversations(only_questions, tokenizer)
    # Without marks, and without what stands before an answer, a template does not say which words are the assistant's.
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    answered = Dataset.from_list([{"messages": conversation(("user", "Hello?"), ("assistant", "Hi"))}])
    with pytest.raises(DataError, match="generation %} marks"):
        tokenize_conversations(answered, tokenizer)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", r"Row 2: it has no list of messages.*'Hello'"),
        (["Hello", "Hi"], r"Row 2: it has no list of messages"),
        (conversation(("user", "Hello"), ("robot", "Hi")), r"Row 2: .*'robot'.*system, user, assistant, tool"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}], r"Row 2: .*role 'assistant'"),
        ([{"role": "user", "text": "Hi"}], r"Row 2: .*role 'user'"),
    ],
)
def test_rows_that_are_no_conversation_are_named(
    messages: Any, message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match=message):
        tokenize_conversations(Dataset.from_list([{"messages": None}, {"messages": messages}]), tokenizer)


def load(*sources: Any, **options: Any) -> Any:
    return load_conversations(parse_sources([str(s) if isinstance(s, Path) else s for s in sources]), **options)


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def pair(question: str, answer: str) -> list[dict[str, str]]:
    return conversation(("user", question), ("assistant", answer))


def test_broken_line_is_named(tmp_path: Path, chats_file: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = chats_file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:-3], *lines[3:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl is broken JSON in line 3"):
        load(file)


@pytest.mark.parametrize("source", ["no/such/file.jsonl", "builtin:nothing"])
def test_missing_source(source: str) -> None:
    with pytest.raises(DataError, match=source):
        load(source)


def test_text_files_hold_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hello")
    with pytest.raises(DataError, match=r"a.txt is a text file without columns: give jsonl"):
        load(tmp_path)


def test_file_of_conversations(chats_file: Path) -> None:
    splits = load(chats_file)
    expected = [json.loads(line)["messages"] for line in chats_file.read_text(encoding="utf-8").splitlines()]
    assert list(splits) == ["train"]
    assert list(splits["train"]["messages"]) == expected


def test_a_folder_of_files_of_several_shapes(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"messages": pair("1", "one")}])
    write(tmp_path / "b.jsonl", [{"instruction": "2", "output": "two"}])
    (tmp_path / "c.csv").write_text('question,answer\n3,"three, or so"\n', encoding="utf-8")
    (tmp_path / "d.tsv").write_text("prompt\tresponse\n4\tfour\n", encoding="utf-8")
    rows = load(tmp_path)["train"]
    assert list(rows["messages"]) == [pair("1", "one"), pair("2", "two"), pair("3", "three, or so"), pair("4", "four")]


def test_weights_mix_sources(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"messages": pair("a", str(i))} for i in range(300)])
    b = write(tmp_path / "b.jsonl", [{"messages": pair("b", str(i))} for i in range(30)])
    rows = load({"source": str(a), "weight": 1}, {"source": str(b), "weight": 3})["train"]
    questions = [messages[0]["content"] for messages in rows["messages"]]
    assert questions.count("b") / len(questions) == pytest.approx(0.75, abs=0.04)
    # Sources are drawn from until each has been used up: nothing is lost.
    assert len({messages[1]["content"] for messages in rows["messages"] if messages[0]["content"] == "a"}) == 300
    assert set(rows["source"]) == {str(a), str(b)}


def test_held_out_by_hash(tmp_path: Path) -> None:
    rows = [{"messages": pair(str(i), f"number {i}")} for i in range(200)]
    splits = load(write(tmp_path / "a.jsonl", rows), test_fraction=0.2)
    again = load(write(tmp_path / "b.jsonl", rows[50:]), test_fraction=0.2)
    said = {name: {m[0]["content"] for m in splits[name]["messages"]} for name in splits}
    assert not said["train"] & said["test"]
    assert len(said["train"] | said["test"]) == 200
    assert 15 < len(said["test"]) < 65
    # A conversation stays on its side, whatever the other rows are.
    assert {m[0]["content"] for m in again["test"]["messages"]} <= said["test"]


def test_invalid_rows_are_refused_by_number_or_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [pair("a", "b"), [*pair("a", "b"), {"role": "assistant", "content": "c"}], pair("a", " "), pair("c", "d")]
    file = write(tmp_path / "a.jsonl", [{"messages": row} for row in rows])
    with pytest.raises(
        DataError, match=r"Row 2 of .*a.jsonl cannot be used: message 3 is the assistant's.*skip_invalid"
    ):
        load(file)
    with caplog.at_level(logging.WARNING):
        kept = load(file, skip_invalid=True)["train"]
    assert list(kept["messages"]) == [rows[0], rows[3]]
    assert "2 rows of" in caplog.text


@pytest.mark.parametrize("what", ["cut", "drop", "keep"])
def test_long_conversations(what: str, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture) -> None:
    rows = [pair("short", "x"), pair("long " * 4, "abcdefghij" * 6)]
    dataset = Dataset.from_list([{"messages": row} for row in rows])
    whole = tokenize_conversations(dataset, tokenizer)[1]
    with caplog.at_level(logging.WARNING):
        kept = tokenize_conversations(dataset, tokenizer, max_length=48, long_conversations=what)
    assert "1 of 2 conversations are longer than 48 tokens" in caplog.text
    assert max(map(len, kept["input_ids"])) <= 48
    if what == "drop":
        assert [learned(row, tokenizer) for row in kept] == ["x<|im_end|>"]
    elif what == "cut":
        assert kept[1]["input_ids"] == whole["input_ids"][:48]
        assert kept[1]["labels"] == whole["labels"][:48]
    else:
        pieces = [kept[index] for index in range(1, len(kept))]
        # Every token is predicted once: nothing predicts a row's first token, a repeat of the last row's end.
        assert [label for piece in pieces for label in piece["labels"][1:] if label != IGNORE_INDEX] == [
            label for label in whole["labels"] if label != IGNORE_INDEX
        ]


def test_masks_are_shown(tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tokenize_conversations(
        Dataset.from_list([{"messages": pair("Why?", "Because [red]of[/red] it.")}]), tokenizer
    )
    show_masks(rows, tokenizer)
    shown = capsys.readouterr().out
    assert "⟦Because [red]of[/red] it.<|im_end|>⟧" in shown
    assert "Why?" in shown
    assert f"of {len(rows[0]['labels'])} tokens are learned" in shown


@pytest.mark.parametrize(("name", "conversations"), SHARED_FILES.items())
def test_real_files_are_recognised_and_the_answers_learned(
    name: str, conversations: int, shared_data: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert {file.name for file in (shared_data / "sft").iterdir()} == set(SHARED_FILES)
    dataset = load(shared_data / "sft" / name)["train"]
    rows = tokenize_conversations(dataset, tokenizer)
    assert len(rows) == len(dataset) == conversations
    for messages, row in zip(dataset["messages"], rows, strict=True):
        expected = "".join(said(message) + "<|im_end|>" for message in messages if message["role"] == "assistant")
        assert learned(row, tokenizer) == expected


def said(message: dict[str, Any]) -> str:
    """Returns an assistant's text, with tool calls written out."""
    functions = [call["function"] for call in message.get("tool_calls") or []]
    # Arguments that are text already are shown as they are.
    arguments = [
        given if isinstance(given := function["arguments"], str) else json.dumps(given, ensure_ascii=False)
        for function in functions
    ]
    calls = [
        f'{{"name": "{function["name"]}", "arguments": {given}}}'
        for function, given in zip(functions, arguments, strict=True)
    ]
    return message["content"] + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
