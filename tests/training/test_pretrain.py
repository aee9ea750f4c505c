"""Pretraining from unusual starting points: an existing model, another tokenizer, a limited number of positions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from chatgpt_hf import pretrain
from chatgpt_hf.errors import CheckpointError
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.tokenizer import train_tokenizer_on_corpus

TYPES = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)


def run(options: list[str], folder: Path, *more: object) -> dict[str, Any]:
    return pretrain(*parse_recipe(TYPES, None, [*options, "--output_dir", str(folder), *map(str, more)]))


@pytest.fixture
def short(corpus_file: Path) -> list[str]:
    """Options without a shape, for existing models."""
    text = "--block_size 32 --max_steps 2 --save_strategy no --disable_tqdm true"
    return ["--corpus", str(corpus_file), *text.split()]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_that_end_with_the_block(positions: str, pretrain_options: list[str], tmp_path: Path) -> None:
    """The report's samples would be longer than the context if nothing limited them."""
    run(pretrain_options, tmp_path / "run", "--position_embedding_type", positions)
    assert (tmp_path / "run" / "report" / "samples.md").read_text(encoding="utf-8").count("```text") == 3


def test_one_dial(pretrain_options: list[str], short: list[str], tmp_path: Path) -> None:
    run(short, tmp_path / "run", "--depth", "1", "--vocab_size", "260", "--qk_norm", "false")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run").config
    assert (config.num_hidden_layers, config.hidden_size, config.qk_norm, config.vocab_size) == (1, 64, False, 260)


def test_another_tokenizer(pretrain_options: list[str], corpus_file: Path, tmp_path: Path) -> None:
    train_tokenizer_on_corpus(str(corpus_file), tmp_path / "tokenizer", vocab_size=290)
    run(pretrain_options, tmp_path / "run", "--tokenizer", tmp_path / "tokenizer")
    used, given = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("run", "tokenizer"))
    assert used.get_vocab() == given.get_vocab()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.vocab_size == 290


def test_going_on_from_a_model(short: list[str], base_folder: Path, tmp_path: Path) -> None:
    run(short, tmp_path / "run", "--model_name_or_path", base_folder, "--learning_rate", "0")
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (base_folder, tmp_path / "run"))
    assert all(torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())
    used, given = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "run", base_folder))
    assert used.get_vocab() == given.get_vocab()


def test_going_on_from_gpt2(short: list[str], shared_data: Path, tmp_path: Path) -> None:
    """GPT-2's tokenizer has no padding token, and consists of two files in the old format."""
    config = GPT2Config(n_positions=48, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "gpt2" / name).write_bytes((shared_data / "gpt2_tokenizer" / name).read_bytes())
    run(short, tmp_path / "run", "--model_name_or_path", tmp_path / "gpt2")
    model, tokenizer = (auto.from_pretrained(tmp_path / "run") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.model_type == "chatgpt"
    assert tokenizer("Hello there")["input_ids"] == [15496, 612]
    assert len(tokenizer) == model.config.vocab_size == 50257


def test_several_sources(pretrain_options: list[str], corpus_file: Path, tmp_path: Path) -> None:
    """Each source is counted separately, even if its name looks like markup."""
    other = tmp_path / "[bold] letters.jsonl"
    other.write_text(corpus_file.read_text().replace("cat", "lion"))
    sources = [json.dumps({"source": str(path), "weight": weight}) for path, weight in ((corpus_file, 1), (other, 3))]
    figures = run(pretrain_options, tmp_path / "run", "--corpus", *sources)
    assert {source["source"] for source in figures["sources"]} == {str(corpus_file), str(other)}
    assert all(source["documents"] > 0 for source in figures["sources"])
    assert sum(source["tokens"] for source in figures["sources"]) == figures["train_tokens"]


def test_a_stream(pretrain_options: list[str], base_folder: Path, tmp_path: Path) -> None:
    """The run is longer than one pass; the results claim nothing that is unknown before the stream is read."""
    options = ["--streaming", "true", "--eval_documents", "3", "--tokenizer", base_folder, "--eval_strategy", "steps"]
    figures = run(pretrain_options, tmp_path / "run", *options, "--max_steps", "60", "--eval_steps", "30")
    assert figures["epoch"] == 1
    assert figures["sources"] == []
    assert "train_tokens" not in figures
    assert figures["held_out_bits_per_byte"] < 4
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert record["stream"] == {"shards": 1, "workers": 0}


def test_a_stream_goes_on_with_as_many_workers(pretrain_options: list[str], base_folder: Path, tmp_path: Path) -> None:
    options = ["--streaming", "true", "--tokenizer", base_folder, "--save_strategy", "steps", "--save_steps", "2"]
    run(pretrain_options, tmp_path / "run", *options)
    more = ["--max_steps", "6", "--resume_from_checkpoint", "true", "--dataloader_num_workers", "2"]
    with pytest.raises(CheckpointError, match=r"how the stream is read was .*'workers': 0.* and is .*'workers': 2"):
        run(pretrain_options, tmp_path / "run", *options, *more)
