"""`chatgpt-hf data preview` shows what each command would read, and writes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf import chat_templates, load_tokenizer


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def pair(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}],
        "id": 7,
    }


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    rows = [pair("Hi", "Hello [there]"), pair("你好", "嗨"), pair("Hi", "Hello [there]"), pair("Hi", " "), {"x": 1}]
    return write(tmp_path / "chats.jsonl", rows)


def test_conversations(cli: Callable[..., Any], chats: Path) -> None:
    found = json.loads(cli("data", "preview", chats, "--json", "--rows", 1).out)
    (table,) = found["tables"]
    assert table["rows"] == 5
    assert (table["read"], table["not used"]) == ("messages", "id")
    assert found["splits"] == {"train": 3}
    assert found["duplicates"] == 1
    assert found["unit"] == "bytes"
    assert found["longer"] is None
    assert "message 2, the assistant's, is empty" in found["dropped"]
    assert sum(found["dropped"].values()) == 2
    assert set(found["scripts"]) == {"Latin", "Han"}
    ((before, is_learned), (answer, answer_is_learned), *_) = found["examples"][0]
    assert before.endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    assert (is_learned, answer, answer_is_learned) == (False, "Hello [there]<|im_end|>", True)


def test_conversations_for_people(cli: Callable[..., Any], chats: Path, base_folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    text = cli("data", "preview", chats, "--tokenizer", base_folder, "--block_size", 16).out
    assert "not used: id" in text
    assert "2 rows would stop a training; --skip_invalid leaves them out" in text
    assert "1 x message 2, the assistant's, is empty" in text
    assert "longer than a row of 16 tokens: " in text
    assert "⟦Hello [there]<|im_end|>⟧" in text
    assert max(map(len, text.splitlines())) <= 80
    assert sorted(tmp_path.iterdir()) == before


def test_masks_of_unlearned_turns(cli: Callable[..., Any], tmp_path: Path) -> None:
    row = pair("Capital of Norway?", "Bergen", weight=0)
    row["messages"] += pair("Sure?", "Oslo")["messages"]
    found = json.loads(cli("data", "preview", write(tmp_path / "a.jsonl", [row]), "--json").out)
    assert [text for text, is_learned in found["examples"][0] if is_learned] == ["Oslo<|im_end|>"]


def test_named_columns(cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "poems.csv"
    file.write_text("title,poem,year\nA,B,1820\n", encoding="utf-8")
    options = ("--prompt_column", "title", "--completion_column", "poem", "--json")
    found = json.loads(cli("data", "preview", file, *options).out)
    assert found["tables"][0]["not used"] == "year"


def test_a_corpus(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.md").write_text(f"# Page {index}\n\nText.\n", encoding="utf-8")
    found = json.loads(cli("data", "preview", folder, "--for", "pretrain", "--json").out)
    assert sum(found["splits"].values()) == 3
    assert found["splits"]["test"] == 1
    assert found["tables"][0]["rows"] == 3
    file = write(tmp_path / "a.jsonl", [{"body": f"Text {index}", "url": "u"} for index in range(4)])
    options = ("--for", "pretrain", "--text_column", "body", "--test_fraction", "0.5", "--json")
    found = json.loads(cli("data", "preview", file, *options).out)
    assert (found["tables"][0]["read"], found["tables"][0]["not used"]) == ("body", "url")


def test_a_task(cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\n" + "".join(f"Review {i},{'good' if i % 2 else 'bad'}\n" for i in range(20)))
    found = json.loads(cli("data", "preview", file, "--for", "finetune", "--json").out)
    assert sum(found["splits"].values()) == 20
    assert sum(found["labels"].values()) == found["splits"]["train"]
    text = cli("data", "preview", file, "--for", "finetune").out
    assert "labels: " in text


def test_preferences_are_recognised(cli: Callable[..., Any], refused: Callable[..., str], tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "chosen": f"Because [{index}]", "rejected": "No \x1b[2J", "id": 7} for index in range(3)
    ]
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    file = write(tmp_path / "a.jsonl", [*rows, {**rows[0], "rejected": ""}])
    found = json.loads(cli("data", "preview", file, "--json", "--rows", 1).out)
    assert found["purpose"] == "dpo"
    assert (found["splits"], found["unusable"]) == ({"train": 3}, 1)
    assert found["tables"][0]["not used"] == "id"
    assert found["dropped"] == {"pairs with equal sides were left out": 1, "its rejected is empty": 1}
    sides = [(text, side) for text, side in found["examples"][0] if side]
    assert sides == [("Because [0]<|im_end|>", "chosen"), ("No \x1b[2J<|im_end|>", "rejected")]
    text = cli("data", "preview", file).out
    assert "chosen: ⟦Because [0]<|im_end|>⟧" in text
    assert "rejected: ⟦No ␛[2J<|im_end|>⟧" in text
    assert "chatgpt-hf dpo trains on them" in refused("data", "preview", file, "--for", "sft")
    columns = ("--prompt_column", "prompt", "--completion_column", "chosen", "--json")
    assert json.loads(cli("data", "preview", file, *columns).out)["purpose"] == "sft"


def test_judged_answers_are_recognised(cli: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"question": "Why?", "says": f"Because {index}", "good": index % 2} for index in range(3)]
    columns = ("--prompt_column", "question", "--completion_column", "says", "--label_column", "good")
    found = json.loads(
        cli("data", "preview", write(tmp_path / "a.jsonl", rows), "--for", "dpo", *columns, "--json").out
    )
    assert found["labels"] == {"bad": 2, "good": 1}
    assert found["examples"][1][-1] == ["Because 1<|im_end|>", "good"]


def test_sft_refuses_preferences(refused: Callable[..., str], tmp_path: Path, sft_options: list[str]) -> None:
    rows = [
        {"instruction": "Why?", "output": "No", "chosen": f"Because {index}", "rejected": "No"} for index in range(3)
    ]
    file = write(tmp_path / "a.jsonl", rows)
    message = refused(
        "sft", *sft_options, "--dataset", file, "--skip_invalid", "true", "--output_dir", tmp_path / "run"
    )
    assert f"Row 1 of {file} has preferences (chosen and rejected): chatgpt-hf dpo trains on them." in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--for", "sftt"], "--for sftt is unknown; choose from sft, dpo, pretrain, finetune."),
        (["--label_column", "a"], "--label_column is for --for finetune and dpo: leave it out."),
        (["--for", "pretrain", "--prompt_column", "a"], "--prompt_column is for --for sft and dpo: leave it out."),
        (["--for", "sft", "--chosen_column", "a"], "--chosen_column is for --for dpo: leave it out."),
        (["--block_size", "1"], "--rows 3 and --block_size 1: give at least 0 rows and 2 tokens."),
    ],
)
def test_mistakes(options: list[str], message: str, refused: Callable[..., str], chats: Path) -> None:
    assert message in refused("data", "preview", chats, *options)


def test_nothing_can_be_read(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no conversations to train on" in refused("data", "preview", write(tmp_path / "a.jsonl", [{"x": 1}]))


def test_a_template_that_does_not_end_is_tried_once(
    refused: Callable[..., str], chats: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(base_folder)
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "loops")
    timed, waited = chat_templates._within_time, []
    monkeypatch.setattr(chat_templates, "_within_time", lambda function: (waited.append(1), timed(function))[1])
    message = refused("data", "preview", chats, "--tokenizer", tmp_path / "loops")
    assert "the chat template was not done after 5,000,000 steps: does it loop for ever?" in message
    assert len(waited) == 1
