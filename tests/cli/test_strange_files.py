"""Files that nobody writes on purpose, given to commands: each is one line, and exit code 2."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chatgpt_hf.errors import CardError, ChatGPTError
from chatgpt_hf.evaluation.harness_data import write_tasks
from chatgpt_hf.inference.prompt_file import read_prompts
from chatgpt_hf.moderation.words import WordList
from chatgpt_hf.reporting.card import make_card
from chatgpt_hf.training.arguments import CorpusArguments
from chatgpt_hf.training.recipe import parse_recipe

Refused = Callable[..., str]

LAUGHS = "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
RECIPES = {
    LAUGHS: "its aliases repeat values more than 100,000 times",
    "corpus: &a [*a]": "it nests more than 200 deep",
    "[" * 5000: "it nests more than 200 deep",
    "corpus: 2001-99-99": "month must be in 1..12",
    "corpus: !!bool x": "is not YAML",
    "env: {'': a}": "env must hold `NAME: value` lines",
    "env: {A=B: a}": "env must hold `NAME: value` lines",
    'env: {A: "\\0"}': "env must hold `NAME: value` lines",
    'env: {A: "\\ud800"}': "env must hold `NAME: value` lines",
    "env: {1: a}": "env must hold `NAME: value` lines",
}


@pytest.mark.parametrize("recipe", RECIPES, ids=range(len(RECIPES)))
def test_recipes(refused: Refused, tmp_path: Path, recipe: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(recipe)
    message = refused("pretrain", file)
    assert message.startswith(str(file))
    assert RECIPES[recipe] in message
    assert message.count("\n") == 1
    # The library's own parser says the same.
    with pytest.raises(ChatGPTError) as error:
        parse_recipe([CorpusArguments], file)
    assert f"{error.value}\n" == message


def test_pipes_and_folders(refused: Refused, tmp_path: Path, chat_folder: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    assert "it is a pipe, not a file" in refused(
        "generate", chat_folder, "--prompts", tmp_path / "pipe", "--output", tmp_path / "a"
    )
    assert "is a pipe, not a file" in refused(
        "generate", chat_folder, "--prompts", prompts, "--output", tmp_path / "pipe"
    )


def test_prompts_that_are_no_prompts(base_folder: Path, tmp_path: Path) -> None:
    from chatgpt_hf import load_tokenizer

    file = tmp_path / "a.jsonl"
    lines = [
        '{"prompt": "a"}',
        '{"prompt": ' + "9" * 5000 + "}",
        '{"messages": "ab"}',
        '{"messages": 3}',
        '{"messages": ["a"]}',
        "[" * 9999,
    ]
    file.write_text("\n".join(lines))
    rows, faults = read_prompts(file, load_tokenizer(base_folder), 64, 8)
    assert [row.line for row in rows] == [1]
    assert [fault.partition(":")[0] for fault in faults] == [f"line {number}" for number in range(2, 7)]


def test_a_word_list_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a" * 500_000)
    with pytest.raises(
        ChatGPTError, match=r"words\.txt has 500,000 characters in line 1: write one word or phrase per line"
    ):
        WordList.from_file(tmp_path / "words.txt")


@pytest.mark.parametrize(
    "content", ['{"query": "a"}'.encode("utf-16"), b"\xef\xbb\xbf{}", b'{"query": ' + b"9" * 5000 + b"}", b"[" * 9999]
)
def test_benchmarks(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "piqa.jsonl").write_bytes(content)
    with pytest.raises(ChatGPTError, match=r"piqa\.jsonl"):
        write_tasks(tmp_path, tmp_path / "out")


REPORT = {
    "description": "a model",
    "results": {"eval_loss": 1.5, "parameters": 3},
    "training": {"assumed watts": 9.0},
    "data": "a",
}
FIGURE = {"value": 0.5, "low": 0.1, "high": 0.9}
RESULTS = {"task": "code", "data": "a", "examples": 2, "command": "x", "figures": {"accuracy": FIGURE}}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("report/report.json", {**REPORT, "results": [1]}),
        ("report/report.json", {**REPORT, "results": {"parameters": "3", "train_runtime": 1}}),
        ("report/report.json", {**REPORT, "results": {"train_runtime": [1]}}),
        ("report/report.json", {**REPORT, "statistics": {"a": 1}}),
        ("report/report.json", {**REPORT, "columns": ["a"]}),
        ("report/report.json", {**REPORT, "task": {"a": 1}}),
        ("report/report.json", {**REPORT, "origin": {"name": {}}}),
        ("evaluation/a/results.json", {**RESULTS, "task": ["code"]}),
        ("evaluation/a/results.json", {**RESULTS, "command": ["x"]}),
        ("evaluation/a/results.json", {**RESULTS, "figures": None}),
        ("evaluation/a/results.json", {**RESULTS, "figures": {"accuracy": 3}}),
        ("evaluation/a/results.json", {**RESULTS, "figures": {"accuracy": {"value": 0.5}}}),
        ("evaluation/a/results.json", {**RESULTS, "figures": {"accuracy": {**FIGURE, "value": "0.5"}}}),
    ],
)  # fmt: skip
def test_cards_of_changed_reports(tmp_path: Path, file: str, content: dict[str, object]) -> None:
    for name, right in (("report/report.json", REPORT), ("evaluation/a/results.json", RESULTS), (file, content)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(right))
        (tmp_path / "config.json").write_text('{"model_type": "chatgpt"}')
        if right is RESULTS:
            assert "a model" in make_card(tmp_path, "me/x")
    with pytest.raises(CardError, match=f"{file} has .*(Make it again|damaged)"):
        make_card(tmp_path, "me/x")
