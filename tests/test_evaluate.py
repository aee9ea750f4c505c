"""`chatgpt-hf evaluate` measures a model on data; `chatgpt-hf compare` uses the saved figures and intervals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chatgpt_hf import evaluate
from chatgpt_hf.evaluation.compare import compare_folders
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
    options = ["--model_name_or_path", str(base_folder), "--dataset", str(rows), "--eval_dataset", str(rows)]
    options += [
        "--max_steps",
        "2",
        "--baseline",
        "false",
        "--save_strategy",
        "no",
        "--disable_tqdm",
        "true",
        "--max_length",
        "32",
    ]
    options += ["--output_dir", str(tmp_path / "run")]
    finetune(*parse_recipe((TaskModelArguments, TaskArguments, FinetuneArguments), None, options))
    return tmp_path / "run"


def test_text(cli: Callable, base_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    result = cli("evaluate", base_folder, "--corpus", corpus_file, "--out", tmp_path / "out", "--stride", 32)
    assert result.code == 0, result.err
    assert "bits_per_byte" in result.out
    kept = Evaluation.load(tmp_path / "out" / "language-modeling-corpus")
    assert len(kept.examples) == 72
    assert kept.settings == {"window": 128, "stride": 32, "context": 128}
    assert "The model sees 128 tokens at a time; 32 of them are new in each window." in result.out


def test_the_window_of_a_long_context_is_said_and_kept(cli: Callable, base_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 131_072}))
    (tmp_path / "rows.txt").write_text("A cat sits in the garden.")
    result = cli("evaluate", folder, "--corpus", tmp_path / "rows.txt")
    assert result.code == 0, result.err
    assert "sees 2,048 tokens at a time; 1,024 of them" in result.out
    assert "Its context is 131,072: --window chooses another length." in result.out
    result = cli("evaluate", folder, "--corpus", tmp_path / "rows.txt", "--window", 16)
    assert "sees 16 tokens at a time; 8 of them" in result.out
    assert "--window chooses" not in result.out
    result = cli("evaluate", folder, "--corpus", tmp_path / "rows.txt", "--window", 131_073)
    assert result.code == 2
    assert "window is 131073 and the model's context 131072: give 2 to 131072 tokens." in result.err
    kept = [Evaluation.load(path).settings for path in (folder / "evaluation").iterdir()]
    assert sorted((each["window"], each["stride"], each["context"]) for each in kept) == [
        (16, 8, 131_072),
        (2048, 1024, 131_072),
    ]


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
        (["--bias", "--window", "64"], "--window is for --corpus, and this measures with --bias: leave it out"),
        (["--code", "a.jsonl", "--stride", "64"], "--stride is for --corpus"),
        (["--corpus", "a.txt", "--chat"], "--chat is for --code"),
        (["--bias", "--samples", "2"], "--samples is for --code and --prompts, and this measures with --bias"),
        (["--dataset", "a.csv", "--limit", "2"], "--limit is for --benchmarks and --preferences"),
        (["--corpus", "a.txt", "--skip_invalid"], "Unknown argument --skip_invalid"),
        (["--preferences", "a.jsonl", "--judge", "b"], "name it as the MODEL, with --as_judge"),
        (["--preferences", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes(arguments: list[str], message: str, refused: Callable, base_folder: Path) -> None:
    assert message in refused("evaluate", base_folder, *arguments)


def kept_in(folder: Path) -> dict[str, list[str]]:
    """The texts of each evaluation in a folder, by its name."""
    return {path.name: [row["text"] for row in Evaluation.load(path).examples] for path in folder.iterdir()}


def test_evaluations_of_different_files_have_different_names(base_folder: Path, tmp_path: Path) -> None:
    names = [
        *("rows.2023.txt", "rows.2024.txt", "rows.2024.md", "rows.txt", "Rows.txt", "rows 1.txt", "rows-1.txt"),
        *(
            "a/test.txt",
            "b/test.txt",
            "a b/test.txt",
            "数据.txt",
            "数据.2.txt",
            "!!!.txt",
            "???.txt",
            f"{'长' * 80}.txt",
        ),
        *(f"{'l' * 130}1.txt", f"{'l' * 130}2.txt", ".txt/rows.txt"),
    ]
    out = tmp_path / "out"
    for name in names:
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"The text of {name[-20:]}.", encoding="utf-8")
    # Twice, and in another order: the same evaluation again replaces itself.
    for _ in range(2):
        for name in names:
            evaluate.measure_corpus(str(base_folder), str(tmp_path / "data" / name).replace("?", "[?]"), out=out)
        names.reverse()
    found = kept_in(out)
    assert sorted(found.values()) == sorted([f"The text of {name[-20:]}."] for name in names)
    assert found["language-modeling-rows-2023"] == ["The text of rows.2023.txt."]
    assert found["language-modeling-数据"] == ["The text of 数据.txt."]
    assert max(len(name.encode()) for name in found) < 200


def test_the_same_name_in_two_working_directories(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "rows.txt").write_text(place)
        monkeypatch.chdir(tmp_path / place)
        evaluate.measure_corpus(str(base_folder), "rows.txt", out=tmp_path / "out")
    assert sorted(kept_in(tmp_path / "out").values()) == [["one"], ["two"]]
    # By another way to the same file.
    evaluate.measure_corpus(str(base_folder), "../one/rows.txt", out=tmp_path / "out", batch_size=1)
    assert len(kept_in(tmp_path / "out")) == 2
    # With another setting, and with another model.
    evaluate.measure_corpus(str(base_folder), "rows.txt", out=tmp_path / "out", stride=16)
    assert len(kept_in(tmp_path / "out")) == 3
    other = shutil.copytree(base_folder, tmp_path / "other")
    evaluate.measure_corpus(str(other), "rows.txt", out=tmp_path / "out")
    assert len(kept_in(tmp_path / "out")) == 4


def test_an_evaluation_of_release_0_1_is_replaced_only_by_its_own(base_folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "rows.txt", tmp_path / "b" / "rows.txt"
    for file in (first, second):
        file.parent.mkdir()
        file.write_text(f"This is {file.parent.name}.")
    evaluate.measure_corpus(str(base_folder), str(first), out=tmp_path / "out")
    results = tmp_path / "out" / "language-modeling-rows" / "results.json"
    kept = json.loads(results.read_text())
    del kept["identity"]
    results.write_text(json.dumps(kept))
    evaluate.measure_corpus(str(base_folder), str(second), out=tmp_path / "out")
    evaluate.measure_corpus(str(base_folder), str(first), out=tmp_path / "out")
    found = kept_in(tmp_path / "out")
    assert found.pop("language-modeling-rows") == ["This is a."]
    assert list(found.values()) == [["This is b."]]


def test_models_are_compared_on_the_same_files_whatever_the_names(base_folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a" / "rows.txt", tmp_path / "b" / "rows.txt"]
    for file in files:
        file.parent.mkdir()
        file.write_text("".join(f"This is {file.parent.name} {number}.\n\n" for number in range(4)))
    models = [shutil.copytree(base_folder, tmp_path / name) for name in ("first", "second")]
    for model, order in zip(models, (files, files[::-1]), strict=True):
        for file in order:
            evaluate.measure_corpus(str(model), str(file))
    compared = compare_folders(models)
    assert [comparison.data for comparison in compared.values()] == [str(file) for file in files]
