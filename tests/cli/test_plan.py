"""`chatgpt-hf plan`: a table for people, JSON for machines, one message for mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.training import plan as plan_module
from chatgpt_hf_cli.plan import count, duration

Cli = Callable[..., Any]
SMALL = [
    "--depth",
    "2",
    "--vocab_size",
    "300",
    "--block_size",
    "64",
    "--per_device_train_batch_size",
    "2",
    "--gradient_accumulation_steps",
    "1",
    "--max_steps",
    "30",
]


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "REPETITIONS", 2)
    monkeypatch.setenv("COLUMNS", "200")


def test_the_table_tells_what_a_run_takes(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("max_steps: 1000\noptim: adamw_torch\n")
    result = cli("plan", recipe, *SMALL, "--gpu", "t4")
    assert result.code == 0, result.err
    for part in ("2 layers, width 128, 2 heads, vocabulary 300", "30 of 128 tokens: 1 x 2 rows", "adamw_torch"):
        assert part in result.out
    assert "NVIDIA T4" in result.out
    assert "tokens/s" in result.out


def test_json_is_json_alone(cli: Cli) -> None:
    result = cli("plan", *SMALL, "--json")
    figures = json.loads(result.out)
    assert figures["steps"] == 30
    assert figures["here"]["step_seconds"] > 0


def test_help_lists_the_fields(cli: Cli) -> None:
    result = cli("plan", "--help")
    assert result.code == 0
    assert all(field in result.out for field in ("--depth", "--gpu", "--mfu", "--block_size", "TrainingArguments"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", "0"], "--depth must be at least 1, got 0"),
        (["--depth", "-2"], "--depth must be at least 1, got -2"),
        (["--depth", "two"], "--depth"),
        (["--depth", "2", "--gpu", "abacus"], "--gpu abacus is unknown"),
        (["--depht", "2"], "Did you mean --depth?"),
        (["--depth", "2", "--hidden_size", "100"], "give --num_attention_heads too"),
        (["--depth", "2", "--tokenizer", "nowhere/at/all"], "nowhere/at/all"),
        (["no-such-recipe"], "There is no recipe no-such-recipe"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_one_message(options: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused("plan", *options)


def test_figures_are_written_for_people() -> None:
    assert [count(number) for number in (999, 1234, 5e6, 1.5e9, 3e13)] == ["999 ", "1.23 k", "5 M", "1.5 G", "30 T"]
    assert [duration(seconds) for seconds in (0.0123, 9.5, 61, 3600, 90_061, 0.0)] == [
        "0.012 s",
        "9.5 s",
        "1 min 1 s",
        "1 h",
        "1 d 1 h",
        "0 s",
    ]
