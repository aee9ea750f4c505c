"""Samples and rewards become preference rows or examples, and what gave none is counted."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.data.preferences import read_preferences
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import ConfigError, DataError, OutputError
from chatgpt_hf.inference.samples_file import SAMPLE_FIELDS
from chatgpt_hf.rewards import load_rewards
from chatgpt_hf.rewards import pairs as module
from chatgpt_hf.rewards.pairs import Made, make_rows, write_rows
from chatgpt_hf_cli import pairs as command


def asked(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def samples(question: str, answer: str, *completions: str, cut: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Rows as `generate --samples` writes them; a completion is a token."""
    return [
        {
            "messages": asked(question),
            "answer": answer,
            "line": 1,
            "sample": number,
            "completion": completion,
            "finish_reason": "length" if number in cut else "stop",
            "completion_ids": [9] * number,
            "mean_log_prob": -0.1 * number,
        }
        for number, completion in enumerate(completions, start=1)
    ]


ROWS = [
    *samples("1 + 1", "2", "2", "3", "2 ", "4"),
    *samples("2 + 2", "4", "4", "4.0", "4"),
    *samples("3 + 3", "6", "7", "8", "6", cut=[3]),
    *samples("4 + 4", "8", "", "8"),
    *samples("5 + 5", "10", "10", "", "10", "ten", cut=[4]),
]


def make(tmp_path: Path, rows: Sequence[Any] = ROWS, rewards: Any = "exact", **options: Any) -> Made:
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_rows(parse_sources(str(file)), load_rewards(rewards), **options)


def test_the_best_answer_meets_the_worst(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.rows == [
        {"prompt": asked("1 + 1"), "chosen": "2", "rejected": "4", "margin": 1.0},
        {"prompt": asked("2 + 2"), "chosen": "4", "rejected": "4.0", "margin": 1.0},
        # An answer that was cut loses.
        {"prompt": asked("5 + 5"), "chosen": "10", "rejected": "ten", "margin": 1.0},
    ]
    assert (made.prompts, made.answers) == (5, 16)
    assert made.without == {"whose answers all got the same reward": 1, "with one different answer only": 1}
    assert made.notes == {"answers were the same as another and left out": 3, "answers were empty and left out": 2}
    assert made.mean_reward == pytest.approx(7 / 16)


def test_what_is_made_is_read_by_the_trainings(tmp_path: Path) -> None:
    write_rows(make(tmp_path), tmp_path / "new" / "pairs.jsonl")
    read = read_preferences(parse_sources(str(tmp_path / "new" / "pairs.jsonl")))
    assert read.kind == "pairs"
    assert not any(summary.unused for summary in read.summaries)
    rows = read.splits["train"]
    assert rows["margin"][:] == [1.0, 1.0, 1.0]
    assert rows["prompt"][0] == asked("1 + 1")
    assert rows["chosen"][0][0]["content"] == "2"
    best = make(tmp_path, kind="sft", min_reward=1)
    assert best.rows[0] == {"messages": [*asked("1 + 1"), {"role": "assistant", "content": "2"}]}
    assert [row["messages"][0]["content"] for row in best.rows] == ["1 + 1", "2 + 2", "4 + 4", "5 + 5"]
    assert best.without == {"whose best answer got less than the reward 1": 1}


def test_several_rows_of_a_prompt(tmp_path: Path) -> None:
    rows = samples("Count", "1", *(" ".join("1" * length) for length in range(1, 6)))
    rewards = [{"name": "length", "most": 1}, "exact"]
    pairs = make(tmp_path, rows, rewards, per_prompt=3)
    # Five answers have the rewards 2, 0, 0, 0, 0.
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in pairs.rows] == [("1", "1 1 1 1 1", 2.0)]
    rewards = [{"name": "length", "most": 3}]
    pairs = make(tmp_path, rows, rewards, per_prompt=3)
    assert [(row["chosen"], row["rejected"]) for row in pairs.rows] == [
        ("1", "1 1 1 1 1"),
        ("1 1", "1 1 1 1"),
    ]
    assert len(make(tmp_path, rows, rewards, per_prompt=3, min_margin=0.5).rows) == 1
    assert len(make(tmp_path, rows, rewards, per_prompt=4, kind="sft").rows) == 4


def test_a_function_of_the_user_gets_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that pairs can be chosen by the model's own confidence."""
    (tmp_path / "confidence.py").write_text(
        "def confident(prompts, completions, mean_log_prob, completion_ids, **columns):\n"
        "    assert prompts[0][0]['role'] == 'user' and completions[0][0]['role'] == 'assistant'\n"
        "    assert completion_ids[1] == [9, 9] and columns['answer'][0] == '2'\n"
        "    return [None if value < -0.35 else value for value in mean_log_prob]\n"
    )
    made = make(tmp_path, ROWS[:4], f"{tmp_path / 'confidence.py'}:confident")
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in made.rows] == [("2", "3", 0.1)]
    assert made.notes["answers got no reward and were left out"] == 1


def test_rows_of_the_same_prompt_with_another_answer_are_apart(tmp_path: Path) -> None:
    rows = [*samples("Name one.", "a", "a", "b"), *samples("Name one.", "b", "a", "b")]
    made = make(tmp_path, rows)
    assert {row["chosen"] for row in made.rows} == {"a", "b"}
    assert made.prompts == 2


def test_answers_of_other_programs(tmp_path: Path) -> None:
    """Only a prompt and a completion; the prompt is a user's message, as `dpo` reads it."""
    rows = [{"question": "1 + 1", "answer": "2", "completion": said} for said in ("2", "3")]
    assert make(tmp_path, rows).rows == [{"prompt": asked("1 + 1"), "chosen": "2", "rejected": "3", "margin": 1.0}]
    named = [{"question": "1 + 1", "solution": "2", "completion": said} for said in ("2", "3")]
    assert make(tmp_path, named, named={"answer": "solution"}).rows[0]["chosen"] == "2"
    with pytest.raises(ConfigError, match="there are only texts"):
        make(tmp_path, rows, [{"name": "length", "most": 3}])


def test_what_makes_no_rows_is_refused(tmp_path: Path) -> None:
    right = samples("1 + 1", "2", "2", "2.")
    always = [{"name": "regex", "pattern": ""}]
    for options in ({}, {"kind": "sft"}):
        with pytest.raises(DataError, match=r"All 2 answers got the reward 1, so none is better .* at regex"):
            make(tmp_path, right, always, **options)
    assert len(make(tmp_path, right, always, kind="sft", min_reward=1).rows) == 1
    with pytest.raises(DataError, match=r"None of the 2 prompts gave a row: 2 with one different answer only"):
        make(tmp_path, [*samples("1 + 1", "2", "2"), *samples("1 + 2", "3", "4")])
    with pytest.raises(DataError, match=r"1 whose rewards differ by less than 2"):
        make(tmp_path, samples("1 + 1", "2", "2", "3"), min_margin=2)
    cut = samples("1 + 1", "2", "2", "3", cut=[1, 2])
    with pytest.raises(DataError, match=r"1 whose answers were all cut; 1 with one"):
        make(tmp_path, [*cut, *samples("1 + 2", "3", "3")])
    with pytest.raises(DataError, match=r"All 2 answers were cut .* larger --max_new_tokens"):
        make(tmp_path, cut)
    with pytest.raises(
        DataError, match=r"^Row 1 of .*samples.jsonl has no completion: .*generate --prompts FILE --samples N"
    ):
        make(tmp_path, [{"prompt": "Hi", "answer": "2"}])
    with pytest.raises(DataError, match="reads the column 'answer'"):
        make(tmp_path, [{"prompt": "Hi", "completion": "2"}])
    for ids in (3, ["a"], {"a": 1}, [True]):
        with pytest.raises(
            DataError, match=r"^Row 1 of .*samples.jsonl: completion_ids is .*: give a list of token ids"
        ):
            make(tmp_path, [{**row, "completion_ids": ids} for row in right])


def test_the_command(cli: Callable[..., Any], refused: Callable[..., str], tmp_path: Path) -> None:
    sampled, output = tmp_path / "samples.jsonl", tmp_path / "pairs.jsonl"
    make(tmp_path)
    result = cli("pairs", sampled, "--rewards", "exact", "--output", output)
    assert result.code == 0, result
    assert result.out.startswith(f"3 rows in {output}\n16 answers to 5 prompts, mean reward 0.438\n")
    assert "\n1 prompts whose answers all got the same reward: no row\n" in result.out
    assert "\n3 answers were the same as another and left out\n" in result.out
    assert json.loads(output.read_text().splitlines()[0])["chosen"] == "2"
    assert f"{output} exists" in refused("pairs", sampled, "--rewards", "exact", "--output", output)
    assert "--rewards is missing" in refused("pairs", sampled, "--output", output)
    assert "--output is missing" in refused("pairs", sampled, "--rewards", "exact")
    assert "'exakt' is unknown" in refused("pairs", sampled, "--rewards", "exakt", "--output", tmp_path / "x")
    with pytest.raises(OutputError, match="exists"):
        write_rows(Made([], 0, 0, 0, module.Counter(), module.Counter()), output)


def test_names_that_stand_twice_are_the_same() -> None:
    assert set(module._OF_AN_ANSWER) == set(SAMPLE_FIELDS)
    assert command.KINDS == module.KINDS
