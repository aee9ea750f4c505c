"""Prompts that a model answers itself, and the columns that rewards read."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.data.prompts import Prompts, read_prompts
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import DataError


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Prompts:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return read_prompts(parse_sources([str(file)]), **options)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_questions_conversations_and_their_columns(tmp_path: Path) -> None:
    read_rows = read(
        tmp_path,
        {"question": "1+1=", "answer": 2, "test": ["a", 1.5], "prompts": "given by TRL"},
        {"prompt": asked("Hi"), "answer": ["Hello", "Hi"]},
        {"messages": [*asked("你好"), {"role": "assistant", "content": "你好！"}]},
        {"system": "Be short.", "question": "Why?"},
        reserved=("prompts",),
    )
    rows = read_rows.splits["train"]
    assert rows["prompt"][:] == [
        asked("1+1="),
        asked("Hi"),
        asked("你好"),
        [{"role": "system", "content": "Be short."}, *asked("Why?")],
    ]
    # What a conversation ends with is its answer; values keep their types.
    assert rows["answer"][:] == [2, ["Hello", "Hi"], "你好！", None]
    assert rows["test"][:] == [["a", 1.5], None, None, None]
    assert "prompts" not in rows.column_names
    assert read_rows.summaries[0].unused == {"prompts": 1}
    assert rows["place"][1] == f"row 2 of {tmp_path / 'rows.jsonl'}"


def test_named_columns(tmp_path: Path) -> None:
    rows = read(tmp_path, {"q": "1+1=", "gold": "2", "input": "x"}, named={"prompt": "q", "answer": "gold"}).splits[
        "train"
    ]
    assert rows["prompt"][:] == [asked("1+1=")]
    assert rows["answer"][:] == ["2"]
    with pytest.raises(DataError, match="it has no column 'ask'; it has q"):
        read(tmp_path, {"q": "1+1="}, named={"prompt": "ask"})


def test_answers_to_a_prompt_are_held_out_together(tmp_path: Path) -> None:
    rows = [{"question": f"{number}?", "answer": side} for number in range(40) for side in "ab"]
    splits = read(tmp_path, *rows, test_fraction=0.25).splits
    prompts = [{prompt[0]["content"] for prompt in part["prompt"]} for part in splits.values()]
    assert not prompts[0] & prompts[1]
    assert 0 < len(splits["test"]) < 40
    assert sum(map(len, splits.values())) == 80


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": "2"}, "it has no question"),
        ({"question": "1", "image": "a.png"}, "it has image: only text can be learned"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "message 1|no prompt"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "robot"),
        (
            {"question": "1+1=", "answer": 2**64},
            "its answer has a whole number beyond 64 bits, 18446744073709551616: write",
        ),
        ({"question": "1+1=", "test": [{"a": -(10**400)}]}, "its test has a whole number beyond 64 bits, -1000"),
        ({"question": "1+1=", "id\0": 7}, r"the name of its column 'id\\x00' has a zero byte: rename the column"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, row)
    kept = read(tmp_path, row, {"question": "1+1="}, skip_invalid=True)
    assert len(kept.splits["train"]) == 1
    assert len(kept.summaries[0].invalid) == 1


def test_columns_of_a_row_do_not_take_the_place_of_the_prompt(tmp_path: Path) -> None:
    row = {"messages": asked("Hi"), "prompt": "Bye", "place": "here", "large": 2**64 - 1, "small": -(2**63)}
    (kept,) = read(tmp_path, row).splits["train"]
    file = tmp_path / "rows.jsonl"
    assert kept == {"prompt": asked("Hi"), "place": f"row 1 of {file}", "large": 2**64 - 1, "small": -(2**63)}
