"""`evaluate --prompts` and `--answers`: what a chat model's answers are worth to rewards and to a judge, and before against after."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatgpt_hf import evaluate
from chatgpt_hf.answering import answer_prompts, read_questions
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.evaluation import judge
from chatgpt_hf.evaluation.code import pass_at_k
from chatgpt_hf.evaluation.compare import compare_folders
from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf.rewards import load_rewards
from chatgpt_hf.rewards.figures import answer_measures, best_of

# The model of `chat_folder` knows the first two answers.
ASKED = [("Hello!", "Hi! How are you?"), ("Count to five.", "1, 2, 3, 4, 5."), ("Smile", "No.")]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    return write(tmp_path / "asked.jsonl", [{"question": asked, "answer": right} for asked, right in ASKED])


def answered(file: Path, *texts: list[str], cut: str = "") -> Path:
    """A file as `generate --samples` writes it, in the order in which the answers were finished."""
    rows = [
        {
            "messages": [{"role": "user", "content": asked}],
            "answer": right,
            "line": line,
            "sample": number,
            "completion": text,
            "finish_reason": "length" if text == cut else "stop",
        }
        for line, ((asked, right), group) in enumerate(zip(ASKED, texts, strict=True), start=1)
        for number, text in enumerate(group, start=1)
    ]
    return write(file, rows[::-1])


def values(evaluation: Evaluation) -> dict[str, float]:
    return {name: measure.value for name, measure in evaluation.measures.items()}


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_best_of_k_is_pass_at_k_for_right_and_wrong(k: int) -> None:
    rows = np.array([[0.0] * (5 - right) + [1.0] * right for right in range(6)])
    assert best_of(rows, k) == pytest.approx([pass_at_k(5, right, k) for right in range(6)])


def test_the_best_of_k_is_a_mean_over_all_choices() -> None:
    # Of two of 1, 2 and 4: 2, 4 and 4.
    assert best_of(np.array([[4.0, 1.0, 2.0], [3.0, np.nan, np.nan]]), 2) == pytest.approx([10 / 3, 3])
    assert np.isnan(best_of(np.array([[np.nan]]), 1)).all()


def test_the_figures_of_answers() -> None:
    rewards = np.array([[1.0, 0.0, 1.0], [0.0, np.nan, 0.0]])
    texts = [["a b", "c d e", "a b"], ["f g", "", "f g h"]]
    clipped = [[False] * 3, [False, True, True]]
    found = answer_measures(rewards, clipped, texts, ks=[1, 2], greedy=np.array([1.0, 0.0]))
    assert {name: measure.value for name, measure in found.items()} == pytest.approx(
        {
            "reward": 1 / 3,
            "greedy_reward": 0.5,
            "pass_at_1": 1 / 3,
            "pass_at_2": 0.5,
            "clipped": 1 / 3,
            "distinct_answers": (2 / 3 + 1) / 2,
            # Of seven pairs of words, a b and f g stand there twice.
            "distinct_2": 5 / 7,
            "rep_4": np.nan,
            "length": 12 / 6,
        },
        nan_ok=True,
    )
    assert all(len(measure.statistics) == 2 for measure in found.values())
    assert "best_of_3" in answer_measures(rewards * 0.5, clipped, texts)
    with pytest.raises(ConfigError, match="--k has 4: give 1 to 3"):
        answer_measures(rewards, clipped, texts, ks=[1, 4])
    with pytest.raises(DataError, match="None of the answers to 2 prompts got a reward"):
        answer_measures(rewards * np.nan, clipped, texts)


def test_a_model_answers_prompts(
    chat_folder: Path, prompts_file: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    options = ["--prompts", prompts_file, "--rewards", "exact", "--samples", 4, "--k", "1,4", "--max_new_tokens", 40]
    result = cli("evaluate", chat_folder, *options, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "pass_at_4" in result.out
    kept = Evaluation.load(tmp_path / "out" / "answers-asked")
    assert values(kept)["greedy_reward"] == pytest.approx(2 / 3)
    assert kept.settings["samples"] == 4
    assert kept.settings["rewards"] == ["exact"]
    assert [row["greedy"] for row in kept.examples[:2]] == [right for _, right in ASKED[:2]]
    assert [row["reference"] for row in kept.examples] == [right for _, right in ASKED]
    assert np.mean([row["rewards"] for row in kept.examples]) == pytest.approx(values(kept)["reward"])
    # Answers depend on the seed, and not on the batches.
    rows = read_questions(str(prompts_file), rewards := load_rewards("exact"))
    again = answer_prompts(str(chat_folder), rows, rewards, samples=4, max_new_tokens=40, batch_size=4)
    assert again.rewarded is not None
    assert [row["answers"] for row in again.rewarded.examples] == [row["answers"] for row in kept.examples]


def test_all_splits_are_asked(tmp_path: Path) -> None:
    rows = [{"question": asked, "answer": right} for asked, right in ASKED]
    write(tmp_path / "train.jsonl", rows[:2])
    write(tmp_path / "test.jsonl", rows[2:])
    read = read_questions(str(tmp_path), load_rewards("exact"))
    assert sorted(read["answer"][:]) == sorted(right for _, right in ASKED)
    assert len(read_questions(str(tmp_path), limit=2)) == 2


def test_before_and_after(chat_folder: Path, tmp_path: Path) -> None:
    """Answers that were given before, in two files with the same prompts."""
    wrong, cut = "Nothing.", "Hi! How are"
    before = answered(tmp_path / "before.jsonl", [wrong, cut], [wrong, wrong], [wrong, "No."], cut=cut)
    after = answered(
        tmp_path / "after.jsonl", ["Hi! How are you?", wrong], ["1, 2, 3, 4, 5."] * 2, ["No.", "No."], cut=cut
    )
    for name, file in (("one", before), ("two", after)):
        evaluate.measure_answers(str(chat_folder), answers=str(file), rewards=["exact"], out=tmp_path / name)
    ((title, compared),) = compare_folders([tmp_path / "one", tmp_path / "two"]).items()
    assert title.startswith("answers-prompts-")
    (one,) = [Evaluation.load(path) for path in (tmp_path / "one").iterdir()]
    assert [row["prompt"][0]["content"] for row in one.examples] == [asked for asked, _ in ASKED]
    assert one.examples[0]["answers"] == [wrong, cut]
    figures = {
        name: (found[str(tmp_path / "one")].figure.value, found[str(tmp_path / "two")].figure.value)
        for name, found in compared.figures.items()
    }
    assert figures["reward"] == pytest.approx((1 / 6, 5 / 6))
    assert figures["pass_at_2"] == pytest.approx((1 / 3, 1))
    assert figures["clipped"] == pytest.approx((1 / 6, 0))
    assert not compared.higher_is_better["clipped"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests' models have a context of 128 tokens.
    monkeypatch.setattr(judge, "REQUEST", "{conversation}\nA {first} B {second}")


@pytest.mark.usefixtures("short")
def test_a_judge_compares_with_the_right_answers_or_another_model(
    chat_folder: Path, base_folder: Path, prompts_file: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    options = ["--prompts", prompts_file, "--judge", chat_folder, "--max_new_tokens", 20]
    result = cli("evaluate", chat_folder, *options, "--out", tmp_path / "one")
    assert result.code == 0, result.err
    kept = Evaluation.load(tmp_path / "one" / "judge-asked")
    # Both answers are the same, and a verdict for one is a verdict for its place.
    assert [row["verdict"] for row in kept.examples[:2]] == [0, 0]
    assert [row["other"] for row in kept.examples] == [right for _, right in ASKED]
    assert kept.settings["judge"] == str(chat_folder)
    given = [*options, "--rewards", "exact", "--samples", 1, "--against", base_folder]
    result = cli("evaluate", chat_folder, *given, "--out", tmp_path / "two")
    assert result.code == 0, result.err
    kept, rewarded = (Evaluation.load(tmp_path / "two" / name) for name in ("judge-asked", "answers-asked"))
    assert [row["answer"] for row in kept.examples] == [row["greedy"] for row in rewarded.examples]
    assert kept.settings["against"] == str(base_folder)
    assert "pass_at_1" not in rewarded.measures


def test_a_reward_model_judges_by_its_scores(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatgpt_hf.answering.is_reward_model", lambda name: True)

    def score(prompts: Any, completions: Any) -> list[float | None]:
        return [len(text) or None for text in completions]

    monkeypatch.setattr("chatgpt_hf.answering.model_reward", lambda name: score)
    one = answered(tmp_path / "one.jsonl", ["Hi!"], [""], ["Yes"])
    other = answered(tmp_path / "other.jsonl", ["Hi"], ["1"], ["Yes"])
    evaluate.measure_answers(
        str(chat_folder), answers=str(one), judge="scores", against=str(other), out=tmp_path / "out"
    )
    (kept,) = [Evaluation.load(path) for path in (tmp_path / "out").iterdir()]
    assert [row["verdict"] for row in kept.examples] == [1, -1, 0]
    assert "first_place" not in kept.measures


def test_what_cannot_be_measured(
    chat_folder: Path, prompts_file: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def mistake(*arguments: object) -> str:
        return refused("evaluate", chat_folder, *arguments)

    plain = write(tmp_path / "plain.jsonl", [{"question": "Hello!"}])
    long = write(tmp_path / "long.jsonl", [{"question": "Hello! " * 100, "answer": "Hi"}])
    one = answered(tmp_path / "one.jsonl", ["Hi!"], ["1"], ["Yes"])
    assert "--prompts needs --rewards or --judge" in mistake("--prompts", prompts_file)
    assert "--against is for --judge" in mistake(
        "--prompts", prompts_file, "--rewards", "exact", "--against", chat_folder
    )
    assert "--rewards is for --prompts and --answers" in mistake("--bias", "--rewards", "exact")
    assert "--k 1;8 is not a list of whole numbers" in mistake("--answers", one, "--rewards", "exact", "--k", "1;8")
    assert "--k has 8: give 1 to 2" in mistake(
        "--prompts", prompts_file, "--rewards", "exact", "--samples", 2, "--k", 8
    )
    assert "'exakt' is unknown" in mistake("--prompts", prompts_file, "--rewards", "exakt")
    assert "reads the column 'answer'" in mistake("--prompts", plain, "--rewards", "exact")
    assert "Row 1 of" in (message := mistake("--prompts", long, "--rewards", "exact"))
    assert "and the model's context is 128" in message
    assert "None of the 1 prompts" in mistake("--prompts", long, "--rewards", "exact", "--skip_invalid")
    assert "--task needs --dataset" in mistake(
        "--prompts", long, "--rewards", "exact", "--skip_invalid", "--task", "token-classification"
    )
    assert "has no completion" in mistake("--answers", prompts_file, "--rewards", "exact")
    assert "has no answer to compare with: give --against" in mistake(
        "--prompts", plain, "--judge", chat_folder, "--max_new_tokens", 2
    )
    some = write(tmp_path / "some.jsonl", [{"question": "Hello!", "completion": "Hi"}])
    assert "--against has no answer to the prompt 'Count to five.'" in mistake(
        "--answers", one, "--judge", chat_folder, "--against", some
    )
    assert "There is no folder" in mistake("--answers", one, "--judge", tmp_path / "nowhere")
