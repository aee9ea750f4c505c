"""`chatgpt-hf prepare`: a training on prepared rows is the one without them, and does no part of the work again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatgpt_hf import pretrain, sft
from chatgpt_hf.cache import entries, prune
from chatgpt_hf.data import prepare, shards
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.training import conversation_run, recipe_corpus
from chatgpt_hf.training.arguments import PretrainArguments, parse_recipe
from chatgpt_hf.training.preparing import prepare_conversations, prepare_corpus

from .trainings import PRETRAIN, SFT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATGPT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parse(options: list[str], *more: object) -> tuple[Any, ...]:
    return parse_recipe(PRETRAIN, None, [*options, *map(str, more)])


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


def test_fine_tuning_on_prepared_rows_is_the_same(
    sft_options: list[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    def fine_tune(folder: str) -> None:
        sft(*parse_recipe(SFT, None, [*options, "--output_dir", str(tmp_path / folder)]))

    options = [*sft_options, "--test_fraction", "0.3", "--evaluate_answers", "2"]
    fine_tune("without")
    # The fields say which command it is for.
    done = cli("prepare", *options)
    assert done.code == 0, done.err
    assert f"Prepared for sft: {cache}" in done.out
    monkeypatch.setattr(conversation_run, "read_conversations", forbidden)
    monkeypatch.setattr(conversation_run, "tokenize_conversations", forbidden)
    fine_tune("with")
    kept = ("data.json", "model.safetensors")
    assert all((tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes() for name in kept)
    names = ("held_out_loss", "train_loss", "share_of_tokens_learned", "trained_rouge_l", "held_out_rouge_l")
    figures = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("with", "without")]
    assert [figures[0][name] for name in names] == [figures[1][name] for name in names]
    samples = [(tmp_path / name / "report" / "samples.md").read_text() for name in ("with", "without")]
    assert samples[0] == samples[1]
    # Of other rows, all is made.
    options += ["--seed", "3"]
    with pytest.raises(AssertionError):
        fine_tune("other")


@pytest.mark.parametrize("damage", ["rows", "record"])
def test_damaged_rows_of_conversations_are_made_again(damage: str, sft_options: list[str], cache: Path) -> None:
    parsed = parse_recipe(SFT, None, [*sft_options, "--test_fraction", "0.3"])
    first = prepare_conversations(*parsed)
    assert prepare_conversations(*parsed)["seconds"] == 0
    folder = Path(first["folder"])
    file = next((folder / "conversations" / "rows").glob("*.arrow")) if damage == "rows" else folder / "prepared.json"
    content = file.read_bytes()
    file.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    again = prepare_conversations(*parsed)
    assert again["seconds"] > 0
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert file.read_bytes() == content
    (entry,) = entries(cache)
    assert entry.path == folder
    assert [each.path for each in prune(cache).removed] == [folder]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stream_shards", "2"], "--stream_shards is for --streaming"),
        (["--streaming", "true", "--stream_shards", "0"], "--stream_shards is 0: give 1 or more"),
        (
            ["--streaming", "true", "--stream_shards", "2", "--dataloader_num_workers", "2"],
            "--dataloader_num_workers is 2: a stream that is cut into shards is read by 0 or 1",
        ),
    ],
)
def test_shards_of_a_stream_that_are_refused(
    options: list[str], said: str, pretrain_options: list[str], base_folder: Path
) -> None:
    model, _, data, arguments = parse(pretrain_options, "--tokenizer", base_folder, *options)
    with pytest.raises(ConfigError, match=said):
        recipe_corpus.RecipeCorpus(data, model, arguments)


@pytest.mark.parametrize(
    ("processes", "given", "before", "expected"),
    [
        (1, None, None, None),  # as in earlier releases
        (1, 3, None, 3),
        (2, None, None, 4),  # of five files
        (5, None, None, 5),
        (6, None, None, None),  # more than there are files
        (2, None, {"processes": 2, "workers": 0}, None),  # a run of an earlier release is resumed
        (1, None, {"shards": 4}, 4),  # on another number of processes
        (3, None, {"shards": 4}, "3 processes cannot share a stream of 4 shards evenly: start 1, 2, 4"),
    ],
)
def test_the_number_of_shards(
    processes: int,
    given: int | None,
    before: dict[str, int] | None,
    expected: int | str | None,
    pretrain_options: list[str],
    base_folder: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(5):
        lines = [json.dumps({"text": f"File {number}, line {line}."}) + "\n" for line in range(20)]
        (tmp_path / f"{number}.jsonl").write_text("".join(lines))
    options = ["--corpus", str(tmp_path / "*.jsonl"), "--tokenizer", str(base_folder), "--streaming", "true"]
    options += [] if given is None else ["--stream_shards", str(given)]
    model, _, data, arguments = parse(pretrain_options, *options)
    monkeypatch.setattr(PretrainArguments, "world_size", processes)
    corpus = recipe_corpus.RecipeCorpus(data, model, arguments, before)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            corpus.read()
        return
    corpus.read()
    assert corpus.stream == ({"processes": processes, "workers": 0} if expected is None else {"shards": expected})


def test_the_command(cli: Callable[..., Any], pretrain_options: list[str], cache: Path, tmp_path: Path) -> None:
    # A single process, without the hardware of the training, will do.
    done = cli("prepare", *pretrain_options, "--fp16", "true", "--fsdp", "full_shard", "--fsdp_replicas", "2")
    assert done.code == 0, done.err
    assert "train rows" in done.out
    assert f"Prepared for pretrain: {cache}" in done.out
    for options, said in (
        (["--for", "dpo"], "--for dpo is unknown; choose from pretrain, sft."),
        (["--for"], "--for needs a value"),
        (["--for=sft", "--corpus", "x"], "corpus"),
        (["--dataset", "x", "--curpus", "y"], "curpus"),
    ):
        refused = cli("prepare", *options)
        assert refused.code == 2
        assert said in refused.err
        assert refused.err.count("\n") == 1
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "whole"}\n{"text": ')
    wrong = cli("prepare", *pretrain_options, "--corpus", broken)
    assert wrong.code == 2
    assert "broken.jsonl is broken JSON in line 2" in wrong.err
    assert "Traceback" not in wrong.err
