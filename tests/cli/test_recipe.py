"""`chatgpt-hf pretrain` and `sft`: a recipe, fields by their own names, and a table of figures at the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

Cli = Callable[..., Any]


def test_from_a_corpus_to_an_answer(cli: Cli, pretrain_options: list[str], chats_file: Path, tmp_path: Path) -> None:
    base, chat = tmp_path / "base", tmp_path / "chat"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("max_steps: 1000\nblock_size: 64\nqk_norm: false\n")
    result = cli("pretrain", recipe, *pretrain_options, "--block_size", "48", "--output_dir", base)
    assert result.code == 0, result.err
    figures = json.loads((base / "results.json").read_text())
    (source,) = figures.pop("sources")
    assert str(source["documents"]) in result.out, "the table of the sources"
    for name, value in figures.items():
        assert name in result.out
        assert (f"{value:.4g}" if isinstance(value, float) else str(value)) in result.out
    assert f"Model folder: {base}   Report: {base}/report/report.md" in result.out
    config = json.loads((base / "config.json").read_text())
    assert (config["qk_norm"], config["max_position_embeddings"], config["hidden_size"]) == (False, 48, 16)

    options = ["--model_name_or_path", base, "--dataset", chats_file, "--max_steps", "1", "--block_size", "48"]
    result = cli("sft", *options, "--save_strategy", "no", "--output_dir", chat)
    assert result.code == 0, result.err
    assert "trained_exact_match" in result.out
    assert "held_out_exact_match" not in result.out, "a file has no part that is held out"
    assert cli("chat", chat, "--prompt", "Hi", "--max_new_tokens", "3").code == 0
    assert cli("generate", base, "--prompt", "The", "--max_new_tokens", "3").out.startswith("The")


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("pretrain", ["--model_name_or_path", "--hidden_size", "--corpus", "--vocab_size", "TrainingArguments"]),
        ("sft", ["--model_name_or_path", "--dataset", "--block_size", "SFTConfig"]),
        ("dpo", ["--model_name_or_path", "--dataset", "--loss_type", "DPOConfig"]),
        ("grpo", ["--model_name_or_path", "--rewards", "--loss_type", "GRPOConfig"]),
        ("distill", ["--teacher_model_name_or_path", "--dataset", "--lmbda", "DistillationConfig"]),
    ],
)
def test_help_lists_the_fields(command: str, fields: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = cli(command, "--help")
    assert result.code == 0
    assert all(field in result.out for field in fields)
    assert f"Examples: chatgpt-hf {command}" in " ".join(result.out.split())


def test_help(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = cli("--help")
    assert result.code == 0
    for command in ("quickstart", "tokenizer", "pretrain", "sft", "dpo", "distill", "chat", "generate", "convert"):
        assert result.out.count(f" {command} ") >= 1
        assert cli(command, "--help").code == 0


def test_tokenizer(cli: Cli, corpus_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    result = cli("tokenizer", "train", "--corpus", corpus_file, "--vocab_size", "270", "--output_dir", folder)
    assert (result.code, result.out) == (0, f"270 tokens, written to {folder}\n")
    shown = cli("tokenizer", "show", folder, "the 你")
    ids, pieces = zip(*(line.split("\t") for line in shown.out.splitlines()), strict=True)
    assert shown.code == 0
    assert list(map(int, ids)) == AutoTokenizer.from_pretrained(folder)("the 你")["input_ids"]
    assert pieces[0].startswith("'t")
