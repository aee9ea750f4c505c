"""Questions in SQuAD's format become rows in Hugging Face's form, without answers at a wrong place."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.errors import DataError
from chatgpt_hf.tasks.question_answering.rows import load_squad

CONTEXT = "Rome is old. Rome is in Italy."


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def nested(*questions: dict[str, Any], context: Any = CONTEXT) -> dict[str, Any]:
    return {
        "version": "1.1",
        "data": [{"title": "Rome", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }


def asked(text: str = "Italy", start: int = 24, identity: str = "a") -> dict[str, Any]:
    return {"id": identity, "question": "Where is Rome?", "answers": [{"text": text, "answer_start": start}]}


def refused(source: str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        load_squad(source, **options)
    return str(error.value)


@pytest.mark.parametrize("name", ["xquad_en_a", "xquad_zh_a"])
def test_xquad_as_it_lies(shared_data: Path, name: str) -> None:
    splits = load_squad(str(shared_data / f"qa/{name}.json"), test_fraction=0.2)
    assert splits.mismatches == []
    assert len(splits.train) + len(splits.test) == 632
    # All questions about one context are on one side.
    assert not set(splits.train["context"]) & set(splits.test["context"])
    assert splits.train.column_names == ["id", "question", "context", "answers"]
    for row in splits.train:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text


def test_answers_that_are_elsewhere_are_dropped_and_listed(
    shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = str(shared_data / "qa/cmrc2018_trial.json")
    assert "Question 748" in refused(source)  # two questions are empty
    with caplog.at_level(logging.WARNING):
        splits = load_squad(source, skip_invalid=True)
    assert len(splits.train) == 1002 - 5 - 2
    assert [item.id for item in splits.mismatches] == [f"TRIAL_210_QUERY_{number}" for number in range(5)]
    assert splits.mismatches[0].text == "俗名龙尖"
    assert splits.mismatches[0].answer_start == 14
    assert splits.mismatches[0].found == "名龙尖，"
    assert "Dropped 5 answers whose answer_start does not match their text" in caplog.text
    assert "TRIAL_210_QUERY_4: '以甲壳类、头足类和小鱼为食' at 353" in caplog.text


def test_the_listing_ends_and_good_answers_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = [asked(start=3, identity=f"wrong{number}") for number in range(11)]
    both = {**asked(), "answers": [{"text": "Italy", "answer_start": 99}, {"text": "Italy", "answer_start": 24}]}
    with caplog.at_level(logging.WARNING):
        splits = load_squad(write(tmp_path / "a.json", nested(*wrong, both)))
    assert len(splits.mismatches) == 12
    assert splits.train["id"][:] == ["a"]
    assert splits.train[0]["answers"] == {"text": ["Italy"], "answer_start": [24]}
    assert "wrong9:" in caplog.text
    assert "wrong10" not in caplog.text


def test_a_question_that_says_whether_it_has_an_answer(tmp_path: Path) -> None:
    flat = {**asked(), "context": CONTEXT}
    both = {**asked(), "is_impossible": True}
    for rows in ({**flat, "is_impossible": True}, {**flat, "is_impossible": "True"}, nested(both)):
        assert "a has answers although its is_impossible is true" in refused(write(tmp_path / "a.json", rows))
    assert "a has is_impossible 'maybe'" in refused(
        write(tmp_path / "a.json", nested({**asked(), "is_impossible": "maybe"}))
    )
    for value in ("false", "0", 0, False, None, ""):
        splits = load_squad(write(tmp_path / "b.json", nested({**asked(), "is_impossible": value})))
        assert splits.train[0]["answers"]["text"] == ["Italy"]
        empty = {"id": "b", "question": "How?", "answers": [], "is_impossible": value}
        assert "b has no answers" in refused(write(tmp_path / "c.json", nested(empty)))
    for value in ("true", 1, True):
        empty = {"id": "b", "question": "How?", "answers": [], "is_impossible": value}
        assert load_squad(write(tmp_path / "d.json", nested(empty))).train[0]["answers"]["text"] == []


def test_flat_rows_and_questions_without_an_answer(tmp_path: Path) -> None:
    lines = [
        {"question": "Where?", "context": CONTEXT, "answers": {"text": ["Italy"], "answer_start": [24]}},
        {"question": "How?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
        {"id": 7, "question": "What?", "context": CONTEXT, "answers": {"text": "Rome", "answer_start": 0}},
        {"question": "Old?", "context": CONTEXT, "answers": [{"text": "old", "answer_start": 8}]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    splits = load_squad(str(path))
    assert splits.train["id"][:] == ["1", "2", "7", "4"]
    assert [row["answers"]["text"] for row in splits.train] == [["Italy"], [], ["Rome"], ["old"]]
    splits.train.to_parquet(tmp_path / "b.parquet")
    assert load_squad(str(tmp_path / "b.parquet")).train.to_list() == splits.train.to_list()
    impossible = {
        "id": "b",
        "question": "How?",
        "answers": [],
        "plausible_answers": [{"text": "old", "answer_start": 8}],
        "is_impossible": True,
    }
    splits = load_squad(write(tmp_path / "c.json", nested(asked(), impossible)))
    assert [row["answers"]["text"] for row in splits.train] == [["Italy"], []]


def test_ids_of_translations(shared_data: Path, tmp_path: Path) -> None:
    splits = load_squad(str(shared_data / "qa/xquad_*_a.json"))
    assert len(set(splits.train["id"])) == len(splits.train) == 1264
    assert splits.train[632]["id"] == f"xquad_zh_a/{splits.train[0]['id']}"
    assert "'a'" not in refused(write(tmp_path / "a.json", nested(asked(), asked(), asked())))


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"id": "b", "question": " ", "answers": []}, "the question of b is missing or empty"),
        ({"id": "b", "question": "How?"}, "b has no answers"),
        ({"id": "b", "question": "How?", "answers": []}, "b has no answers"),
        (asked(text="", identity="b"), "b has an answer without text"),
        ({"id": "b", "question": "How?", "answers": ["Italy"]}, "'Italy'"),
    ],
)
def test_questions_that_cannot_be_used(tmp_path: Path, question: dict[str, Any], said: str) -> None:
    source = write(tmp_path / "a.json", nested(asked(), question))
    message = refused(source)
    assert f"Question 2 of {source}" in message
    assert said in message
    assert load_squad(source, skip_invalid=True).train["id"][:] == ["a"]


def test_files_that_are_no_squad(tmp_path: Path) -> None:
    assert "the context of a is missing" in refused(write(tmp_path / "a.json", nested(asked(), context="")))
    assert "SQuAD's format" in refused(write(tmp_path / "b.json", {"data": [{"paragraphs": [{"context": "x"}]}]}))
    assert "the question of 1 is missing" in refused(write(tmp_path / "c.json", [{"text": "x"}]))
    assert "nothing to learn" in refused(write(tmp_path / "d.json", nested()))
    broken = tmp_path / "e.json"
    broken.write_text('{"data": [\n{"paragraphs": ', encoding="utf-8")
    assert "line 2" in refused(str(broken))
    broken.write_bytes('{"data": "Köln"}'.encode("latin-1"))
    assert "not UTF-8" in refused(str(broken))
    broken.write_text("", encoding="utf-8")
    assert "empty" in refused(str(broken))
    assert "is not a file" in refused(str(tmp_path / "none.json"))
