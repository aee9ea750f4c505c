"""`chatgpt-hf prepare`: a training on prepared rows is the one without them, and does no part of the work again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatgpt_hf import pretrain
from chatgpt_hf.data import prepare, shards
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.training import recipe_corpus
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.preparing import prepare_corpus

TYPES = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATGPT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parse(options: list[str], *more: object) -> tuple[Any, ...]:
    return parse_recipe(TYPES, None, [*options, *map(str, more)])


def curve(folder: Path) -> list[Any]:
    """Loss and figures of a run, without times."""
    results = json.loads((folder / "results.json").read_text())
    kept = ("held_out", "share", "train_tokens", "train_loss", "sources", "parameters")
    return [{name: value for name, value in results.items() if name.startswith(kept) and "second" not in name}]


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize("weighted", [False, True])
def test_a_training_on_prepared_rows_is_the_same(
    weighted: bool,
    pretrain_options: list[str],
    corpus_file: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more: list[object] = ["--test_fraction", 0.2, "--logging_steps", 1]
    if weighted:
        other = tmp_path / "other.jsonl"
        other.write_text("".join(json.dumps({"text": f"The line number {number}."}) + "\n" for number in range(30)))
        items = [{"source": str(corpus_file), "weight": 2}, {"source": str(other), "weight": 1}]
        more += ["--corpus", *map(json.dumps, items)]
    pretrain(*parse(pretrain_options, *more, "--output_dir", tmp_path / "without"))
    figures = prepare_corpus(*parse(pretrain_options, *more))
    assert figures["train_rows"] > 0
    for module, name in (
        (shards, "encode_batch"),
        (prepare, "CorpusFingerprint"),
        (recipe_corpus, "load_mixture"),
        (recipe_corpus, "prepare_rows"),
        (recipe_corpus, "train_tokenizer"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    # The rows do not depend on it.
    more += ["--save_steps", 1]
    pretrain(*parse(pretrain_options, *more, "--output_dir", tmp_path / "with"))
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("with", "without")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    records = [json.loads((tmp_path / name / "data.json").read_text()) for name in ("with", "without")]
    assert records[0] == records[1]
    assert prepare_corpus(*parse(pretrain_options, *more))["seconds"] == 0


def test_other_rows_are_not_taken(
    pretrain_options: list[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"The line number {number}."}) + "\n" for number in range(30)))
    options = [*pretrain_options, "--corpus", str(corpus), "--test_fraction", "0.2"]

    def is_prepared(*more: object) -> bool:
        model, _, data, arguments = parse(options, *more)
        return recipe_corpus.RecipeCorpus(data, model, arguments).shards().find() is not None

    prepare_corpus(*parse(options))
    assert is_prepared()
    assert is_prepared("--learning_rate", 0.1)
    for field, value in (("seed", 5), ("test_fraction", 0.3), ("vocab_size", 281), ("block_size", 31)):
        assert not is_prepared(f"--{field}", value), field
    corpus.write_text(corpus.read_text() + json.dumps({"text": "one more"}) + "\n")
    assert not is_prepared()


def test_several_processes_of_one_command(pretrain_options: list[str], cache: Path) -> None:
    one = prepare_corpus(*parse(pretrain_options))
    (folder,) = (cache / "prepared").glob("?" * 32)
    rows = {path.name: path.read_bytes() for path in folder.glob("rows*.arrow")}
    for path in folder.iterdir():
        path.unlink() if path.is_file() else None
    two = prepare_corpus(*parse(pretrain_options, "--preprocessing_num_workers", 2))
    assert {path.name: path.read_bytes() for path in folder.glob("rows*.arrow")} == rows
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_what_is_refused(pretrain_options: list[str], cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--streaming reads .* nothing to prepare: leave it out"):
        prepare_corpus(*parse(pretrain_options, "--streaming"))
    with pytest.raises(ConfigError, match=r"--preprocessing_num_workers is 0: give 1 or more"):
        prepare_corpus(*parse(pretrain_options, "--preprocessing_num_workers", 0))
    with pytest.raises(DataError, match=r"missing\.jsonl is not a file"):
        prepare_corpus(*parse(pretrain_options, "--corpus", tmp_path / "missing.jsonl"))
    assert not cache.exists()


def test_the_command(cli: Callable[..., Any], pretrain_options: list[str], cache: Path, tmp_path: Path) -> None:
    done = cli("prepare", *pretrain_options)
    assert done.code == 0, done.err
    assert "train rows" in done.out
    assert f"Prepared rows: {cache}" in done.out.replace("\n", "")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "whole"}\n{"text": ')
    wrong = cli("prepare", *pretrain_options, "--corpus", broken)
    assert wrong.code == 2
    assert "broken.jsonl is broken JSON in line 2" in wrong.err
    assert "Traceback" not in wrong.err
