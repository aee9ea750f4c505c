"""`chatgpt-hf evaluate` measures a model on data; `chatgpt-hf compare` uses the saved figures and intervals."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf.tasks.arguments import TaskArguments
from chatgpt_hf.training.arguments import FinetuneArguments, TaskModelArguments, parse_recipe
from chatgpt_hf.training.finetune import finetune


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    texts = [("A cat sits here.", "cat"), ("The dog runs.", "dog"), ("One cat.", "cat"), ("A dog!", "dog")] * 4
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts))
    return file


@pytest.fixture
def classifier(base_folder: Path, rows: Path, tmp_path: Path) -> Path:
    options = f"""--model_name_or_path {base_folder} --dataset {rows} --eval_dataset {rows} --max_steps 2 --baseline false
        --output_dir {tmp_path / "run"} --save_strategy no --disable_tqdm true --max_length 32""".split()
    finetune(*parse_recipe((TaskModelArguments, TaskArguments, FinetuneArguments), None, options))
    return tmp_path / "run"


def test_text(cli: Callable, base_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    result = cli("evaluate", base_folder, "--corpus", corpus_file, "--out", tmp_path / "out", "--stride", 32)
    assert result.code == 0, result.err
    assert "bits_per_byte" in result.out
    kept = Evaluation.load(tmp_path / "out" / "language-modeling-corpus")
    assert len(kept.examples) == 72
    assert kept.settings == {"stride": 32, "context": 128}


def test_rows_of_the_models_task(cli: Callable, classifier: Path, rows: Path) -> None:
    at_the_end_of_the_run = Evaluation.load(classifier / "evaluation" / "text-classification")
    result = cli("evaluate", classifier, "--dataset", rows)
    assert result.code == 0, result.err
    again = Evaluation.load(classifier / "evaluation" / "text-classification-rows")
    predictions = [row["prediction"] for row in at_the_end_of_the_run.examples]
    assert [row["prediction"] for row in again.examples] == predictions


def test_programs(cli: Callable, base_folder: Path, tmp_path: Path) -> None:
    problem = {
        "task_id": "T/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps(problem) + "\n")
    result = cli("evaluate", base_folder, "--code", file, "--max_new_tokens", 8, "--out", tmp_path / "out")
    if "cannot be confined" in result.err or "unsafe" in result.err:
        pytest.skip(result.err)
    assert result.code == 0, result.err
    assert Evaluation.load(tmp_path / "out" / "code-problems").measures["pass@1"].value == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one of --corpus, --dataset, --code, --benchmarks"),
        (["--corpus", "a", "--code", "b"], "not --corpus and --code"),
        (["--corpus", "a", "--tsak", "b"], "Unknown argument --tsak"),
        (["--dataset", "a.csv", "--tsak", "b"], "Unknown argument --tsak"),
        (["--dataset", "nowhere.csv", "--task", "text-classification"], "has no head for text-classification"),
        (["--benchmarks", "nothing"], "hellaswag"),
    ],
)
def test_mistakes(arguments: list[str], message: str, refused: Callable, base_folder: Path) -> None:
    assert message in refused("evaluate", base_folder, *arguments)
