"""Conversations: learned is what the assistant says with its end mark, and nothing else."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatgpt_hf.data.conversations import load_conversations, share_supervised, tokenize_conversations
from chatgpt_hf.data.packing import IGNORE_INDEX, pack_documents
from chatgpt_hf.errors import DataError


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_folder)


def conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def learned(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX])


def test_labels_are_the_assistants_words(tokenizer: PreTrainedTokenizerBase) -> None:
    said = ["Hi! 你好 👍🏽", " leading space\n", "x = 1  # <|im_end|> is no end", ""]
    turns = [("system", "Be brief.")]
    for answer in said:
        turns += [("user", f"About {answer}?"), ("assistant", answer)]
    rows = tokenize_conversations(Dataset.from_list([{"messages": conversation(*turns)}]), tokenizer)
    assert learned(rows[0], tokenizer) == "".join(f"{answer}<|im_end|>" for answer in said)
    # What is said about <|im_end|> are ordinary tokens, the four ends are the special one.
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
    assert "3 of 5 conversations" in caplog.text


def test_nothing_to_learn_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    only_questions = Dataset.from_list([{"messages": conversation(("user", "Hello?"))}] * 2)
    with pytest.raises(DataError, match="None of the 2 conversations has an assistant turn"):
        tokenize_conversations(only_questions, tokenizer)
    # A template without the mark says nowhere what the assistant's words are.
    tokenizer.chat_template = tokenizer.chat_template.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    answered = Dataset.from_list([{"messages": conversation(("user", "Hello?"), ("assistant", "Hi"))}])
    with pytest.raises(DataError, match="generation %}"):
        tokenize_conversations(answered, tokenizer)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", r"Row 2 holds no list of messages.*'Hello'"),
        (["Hello", "Hi"], r"Row 2 holds no list of messages"),
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


def test_missing_column_lists_the_others(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Hello", "completion": "Hi"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl has no column `messages`.*it has prompt, completion"):
        load_conversations(str(file))


def test_broken_line_is_named(tmp_path: Path, chats_file: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = chats_file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:-3], *lines[3:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl is broken JSON in line 3"):
        load_conversations(str(file))


@pytest.mark.parametrize("source", ["no/such/file.jsonl", "builtin:nothing"])
def test_missing_source(source: str) -> None:
    with pytest.raises(DataError, match=source):
        load_conversations(source)


def test_file_of_conversations(chats_file: Path) -> None:
    splits = load_conversations(str(chats_file))
    expected = [json.loads(line)["messages"] for line in chats_file.read_text(encoding="utf-8").splitlines()]
    assert list(splits) == ["train"]
    assert list(splits["train"]["messages"]) == expected
