"""Reads known multiple-choice benchmarks unchanged, and names the row of an invalid answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.tasks.multiple_choice.rows import load_choices

GOOD: dict[str, Any] = {"query": "Cats", "choices": ["bark", "purr"], "gold": 1}


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refused(source: str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        load_choices(source, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "count", "choices"),
    [
        ("arc_challenge_a.jsonl", 600, 4),
        ("arc_easy_a.jsonl", 1200, 4),
        ("boolq_a.jsonl", 1500, 2),
        ("copa_a.jsonl", 50, 2),
        ("hellaswag_val_0_2999.jsonl", 3000, 4),
        ("openbook_qa_a.jsonl", 250, 4),
        ("piqa_a.jsonl", 900, 2),
        ("winogrande_a.jsonl", 700, 2),
        ("mmlu/anatomy_test.csv", 135, 4),
        ("mmlu/abstract_algebra_test.csv", 100, 4),
    ],
)
def test_benchmarks_as_they_lie(shared_data: Path, name: str, count: int, choices: int) -> None:
    splits = load_choices(str(shared_data / "eval" / name))
    assert len(splits.train) == count
    for row in splits.train:
        assert len(row["contexts"]) == len(row["continuations"]) == choices
        assert 0 <= row["label"] < choices
    assert len(set(splits.train["label"])) == choices


def test_what_is_right(shared_data: Path) -> None:
    first = load_choices(str(shared_data / "eval/hellaswag_val_0_2999.jsonl")).train[0]
    assert first["contexts"] == ["Roof shingle removal: A man is sitting on a roof. he"] * 4
    assert first["continuations"][first["label"]] == " starts pulling up roofing on a roof."
    first = load_choices(str(shared_data / "eval/winogrande_a.jsonl")).train[0]
    assert first["contexts"][first["label"]] == "Sarah was a much better surgeon than Maria so Maria"
    assert first["continuations"] == [" always got the easier cases."] * 2
    third = load_choices(str(shared_data / "eval/mmlu/anatomy_dev.csv"), template="{question}\nAnswer:").train[2]
    assert third["contexts"][0] == "The pleura\nAnswer:"
    assert third["continuations"][third["label"]] == " extend into the neck."
    # A context that ends with white space needs no delimiter.
    piqa = load_choices(str(shared_data / "eval/piqa_a.jsonl")).train[1]
    assert piqa["contexts"][0] == "Question: dresser\n"
    assert piqa["continuations"][1] == "finish, woodgrain with  bobby pin"


def test_how_the_right_one_is_written(tmp_path: Path) -> None:
    rows = [{**GOOD, "gold": gold} for gold in ("1", "B", "purr", " B ")]
    assert load_choices(jsonl(tmp_path / "a.jsonl", *rows)).train["label"][:] == [1] * 4
    arc = {"question": "Cats", "choices": {"text": ["bark", "purr"], "label": ["1", "2"]}, "answerKey": "2"}
    assert load_choices(jsonl(tmp_path / "b.jsonl", arc)).train[0]["label"] == 1
    bare = tmp_path / "c.csv"
    bare.write_text('"Cats, of course",bark,purr,B\nDogs,bark,purr,A\n', encoding="utf-8")
    splits = load_choices(str(bare), delimiter="")
    assert splits.train["label"][:] == [1, 0]
    assert splits.train[0]["contexts"][0] == "Cats, of course"
    assert splits.train[0]["continuations"] == ["bark", "purr"]
    named = tmp_path / "d.csv"
    named.write_text("question,A,B,C,answer\nCats,bark,purr,,B\n", encoding="utf-8")
    assert load_choices(str(named)).train[0]["continuations"] == [" bark", " purr"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"gold": 3}, "its gold is 3, but must be one of 0 to 1"),
        ({"gold": -1}, "its gold is -1"),
        ({"gold": None}, "its gold is None"),
        ({"choices": ["purr"], "gold": 0}, "must be two or more non-empty texts"),
        ({"choices": ["purr", " "]}, "must be two or more non-empty texts"),
        ({"choices": None}, "must be two or more non-empty texts"),
        ({"query": ""}, "its query is empty"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", GOOD, {**GOOD, **row})
    message = refused(source)
    assert f"Row 2 of {source}" in message
    assert said in message
    assert load_choices(source, skip_invalid=True).train["label"][:] == [1]


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ([1, 2, 2], [0, 1, 1]),
        (["1", "2", "1"], [0, 1, 0]),
        ([0, 1, 1], [0, 1, 1]),
        ([1, 1, 1], [1, 1, 1]),
        (["1", "B", "2"], [0, 1, 1]),
        (["a", "(B)", "b."], [0, 1, 1]),
    ],
)
def test_numbers_from_0_or_from_1(tmp_path: Path, gold: list[Any], expected: list[int]) -> None:
    source = jsonl(tmp_path / "a.jsonl", *({**GOOD, "gold": str(one)} for one in gold))
    assert load_choices(source).train["label"][:] == expected
    if all(isinstance(one, int) for one in gold):
        source = jsonl(tmp_path / "b.jsonl", *({**GOOD, "gold": one} for one in gold))
        assert load_choices(source).train["label"][:] == expected


def test_the_training_rows_say_how_choices_are_counted(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {**GOOD, "gold": 1}, {**GOOD, "gold": 2})
    few = jsonl(tmp_path / "b.jsonl", {**GOOD, "gold": 1})
    splits = load_choices(source, eval_source=few)
    assert (splits.first, splits.test["label"][:]) == (1, [0])
    assert load_choices(few, first=1).train["label"][:] == [0]
    assert "must be one of 0 to 1" in refused(source, first=0)


def test_choices_that_are_numbers(tmp_path: Path) -> None:
    sums = {"query": "1+1", "choices": ["4", "2", "0"], "gold": "2"}
    source = jsonl(tmp_path / "a.jsonl", sums, {**sums, "choices": ["12", "40"], "gold": "40"})
    assert load_choices(source).train["label"][:] == [1, 1]
    assert "Row 1 of" in refused(jsonl(tmp_path / "b.jsonl", sums))
    # The second row has an index, so the first has one too.
    source = jsonl(tmp_path / "c.jsonl", sums, {**sums, "choices": ["7", "8"], "gold": "0"})
    assert load_choices(source).train["label"][:] == [2, 0]


def test_letters_that_are_no_choice(tmp_path: Path) -> None:
    assert "'C'" in refused(jsonl(tmp_path / "a.jsonl", {**GOOD, "gold": "C"}))
    assert "'meow'" in refused(jsonl(tmp_path / "a.jsonl", {**GOOD, "gold": "meow"}))


def test_letters_and_numbers_mean_columns_even_if_some_are_empty(tmp_path: Path) -> None:
    def rights(header: str, *lines: str) -> list[str]:
        path = tmp_path / "a.csv"
        path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
        rows = load_choices(str(path), skip_invalid=True).train
        return [row["continuations"][row["label"]].strip() for row in rows]

    assert rights("question,A,B,C,D,answer", "q,a,,c,d,C", "r,,b,c,d,D", "s,a,b,c,d,c") == ["c", "d", "c"]
    assert rights("question,choice0,choice1,choice2,choice3,label", "q,a,,c,d,2", "r,a,b,c,d,0") == ["c", "a"]
    assert rights("question,A,B,C,D,answer", "q,a,,c,d,3", "r,a,b,c,d,4", "s,a,b,c,,3") == ["c", "d", "c"]
    # An empty cell is not the right one.
    assert rights("question,A,B,C,D,answer", "q,a,,c,d,B", "r,a,b,c,d,D") == ["d"]
    # In a file without a header, letters count the columns too.
    assert rights("q,a,b,c,d,A", "r,a,,c,d,D") == ["a", "d"]


def test_numbers_that_may_count_from_0_or_from_1(tmp_path: Path) -> None:
    row = {"question": "Cats", "choices": ["w", "x", "y", "z"]}
    some = [{**row, "answer": number} for number in (1, 2, 3)]
    message = refused(jsonl(tmp_path / "a.jsonl", *some))
    assert "right choices 1, 2, 3, and it is unclear whether the first choice is 0 or 1: write letters" in message
    assert load_choices(jsonl(tmp_path / "a.jsonl", *some), first=1).train["label"][:] == [0, 1, 2]
    for last, expected in ((0, [1, 2, 3, 0]), (4, [0, 1, 2, 3])):
        source = jsonl(tmp_path / "b.jsonl", *some, {**row, "answer": last})
        assert load_choices(source).train["label"][:] == expected


def test_the_text_that_a_question_is_about_stands_before_it(tmp_path: Path) -> None:
    row = {"question": "Why?", "choices": ["bark", "purr"], "answer": "B"}
    for name in ("premise", "article", "passage", "support", "context"):
        splits = load_choices(jsonl(tmp_path / "a.jsonl", {name: "Cats do.", **row}, {name: None, **row}))
        assert splits.train["contexts"][:] == [["Cats do.\nWhy?"] * 2, ["Why?"] * 2]
        assert splits.summaries[0].unused == {}
    given = load_choices(str(tmp_path / "a.jsonl"), template="Q: {question}", skip_invalid=True)
    assert given.train[0]["contexts"][0] == "Q: Why?"
    assert list(given.summaries[0].unused) == ["context"]


def test_columns_and_templates_that_are_not_there(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"query": "Cats", "answers": ["bark", "purr"], "gold": 1})
    assert "columns query, answers, gold" in refused(source)
    source = jsonl(tmp_path / "b.jsonl", GOOD)
    assert "no column 'title'; the template may name query, choices, gold" in refused(source, template="{title}")
    with pytest.raises(ConfigError):
        load_choices(source, template="no column")


def test_held_out_by_hash(shared_data: Path) -> None:
    source = str(shared_data / "eval/openbook_qa_a.jsonl")
    splits = load_choices(source, test_fraction=0.2)
    assert len(splits.train) + len(splits.test) == 250
    assert 25 < len(splits.test) < 75
    other = load_choices(source, eval_source=str(shared_data / "eval/copa_a.jsonl"))
    assert (len(other.train), len(other.test)) == (250, 50)
