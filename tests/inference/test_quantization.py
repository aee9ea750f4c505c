"""Quantized folders are ordinary, smaller and nearly as good; clear errors say why one cannot be made or read."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from chatgpt_hf import (
    ChatGPTConfig,
    ChatGPTForCausalLM,
    load_for_generation,
    load_tokenizer,
    quantize_model,
    use_cpu_kernels,
)
from chatgpt_hf.errors import ChatGPTError, ConfigError, MissingDependency, OutputError
from chatgpt_hf.inference import quantization as module
from chatgpt_hf.inference.cpu.layers import Int8Embedding
from chatgpt_hf.inference.quantization import QUANTIZATIONS, QuantizationCost, quantize_folder
from chatgpt_hf.tokenization_chatgpt import encode_documents

# Largest change of the perplexity, relative to float32.
BOUNDS = {"int8": 0.01, "int8-weight-only": 0.01, "int4": 0.05}


@pytest.fixture(scope="module")
def folders(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model in each quantization."""
    made = {name: tmp_path_factory.mktemp("quantized") / name for name in QUANTIZATIONS}
    for name, folder in made.items():
        quantize_folder(base_folder, folder, name)
    return made


@torch.no_grad()
def perplexity(model: PreTrainedModel, rows: list[list[int]]) -> float:
    losses = [
        torch.nn.functional.cross_entropy(model(torch.tensor([row])).logits[0, :-1].float(), torch.tensor(row[1:]))
        for row in rows
    ]
    return math.exp(torch.stack(losses).mean().item())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_folder_is_an_ordinary_one(quantization: str, folders: dict[str, Path], base_folder: Path) -> None:
    folder = folders[quantization]
    tokenizer = load_tokenizer(folder)
    rows = encode_documents(tokenizer, [f"The dog number {number} runs around the garden." for number in range(10)])
    exact = perplexity(AutoModelForCausalLM.from_pretrained(base_folder), rows)
    # With only transformers and torchao, and with this CPU's kernels.
    for model in (AutoModelForCausalLM.from_pretrained(folder), load_for_generation(folder)):
        assert abs(perplexity(model, rows) / exact - 1) < BOUNDS[quantization]
        ids = torch.tensor([rows[0][:6]])
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
        assert model.generate(ids, attention_mask=torch.ones_like(ids), **options).shape == (1, 11)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert not config.tie_word_embeddings
    assert type(config.quantization_config.quant_type).__name__.startswith(("Int", "Fqn"))


def test_quantized_while_loaded_is_what_the_folder_holds(folders: dict[str, Path], base_folder: Path) -> None:
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        stored, loaded = load_for_generation(folders["int8"]), load_for_generation(base_folder, "int8")
        torch.testing.assert_close(stored(ids).logits, loaded(ids).logits, rtol=0, atol=0)


def test_size(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = ChatGPTForCausalLM(ChatGPTConfig(**sizes))
    before = sum(parameter.numel() * 4 for parameter in model.parameters())
    quantize_model(model, "int8").save_pretrained(tmp_path)
    # The embedding is a third of the weights; in float32, it would stay.
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 0.35 * before


@torch.no_grad()
def test_the_embedding_is_read_row_by_row(base_folder: Path) -> None:
    plain = quantize_model(AutoModelForCausalLM.from_pretrained(base_folder), "int8")
    embedding = plain.get_input_embeddings()
    ids = torch.tensor([[5, 7, 5]])
    expected, weight = embedding(ids), embedding.weight.dequantize()
    fast = use_cpu_kernels(plain).get_input_embeddings()
    assert isinstance(fast, Int8Embedding)
    torch.testing.assert_close(fast(ids), expected)
    torch.testing.assert_close(fast.weight, weight)


def test_the_commands(cli: Callable[..., Any], chat_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "int8"
    result = cli("quantize", chat_folder, folder)
    assert result.code == 0
    assert f"Written to {folder}" in result.out
    ask = ("--prompt", "Hello!", "--temperature", "0")
    stored, loaded = cli("chat", folder, *ask), cli("chat", chat_folder, *ask, "--quantize", "int8")
    assert stored.code == loaded.code == 0
    assert stored.out == loaded.out == "Hi! How are you?\n"
    assert "What this costs is not measured: --corpus FILE" in result.out
    text = cli("generate", chat_folder, "--prompt", "A cat", "--quantize", "int4", "--max_new_tokens", "3")
    assert text.code == 0
    assert text.out.startswith("A cat")


def test_what_it_costs_on_own_text(cli: Callable[..., Any], base_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "own.txt"
    corpus.write_text("\n".join(f"The dog number {number} runs around the garden." for number in range(400)))
    result = cli("quantize", base_folder, tmp_path / "int4", "--to", "int4", "--corpus", corpus)
    assert result.code == 0
    # The model has learned a few other sentences by heart.
    found = re.search(r"perplexity (\S+) became (\S+) \((\S+)%\) on \d+ tokens: says nothing\.", result.out)
    assert found, result.out
    assert abs(float(found[2]) / float(found[1]) - 1 - float(found[3]) / 100) < 1e-3
    corpus.write_text("Too short.")
    short = cli("quantize", base_folder, tmp_path / "short", "--corpus", corpus)
    assert short.code == 2
    assert "give at least" in short.err
    assert not (tmp_path / "short").exists()


def test_what_is_not_good_is_not_called_good() -> None:
    assert str(QuantizationCost("int8", 10.0, 10.2, 99)).endswith("(+2.00%) on 99 tokens: good.")
    costly = QuantizationCost("int4", 10.0, 10.6, 99)
    assert not costly.good
    assert "NOT good, since more than +5% is lost" in str(costly)
    assert str(QuantizationCost("int8", 300.0, 300.0, 99, vocab_size=300)).endswith(": good.")
    broken = QuantizationCost("int8", 103633804.0, 99091458.0, 99, vocab_size=300)
    assert not broken.good
    assert "A perplexity above 300, the size of the vocabulary, is worse than guessing" in str(broken)


def test_quantized_from_float32(base_folder: Path, tmp_path: Path) -> None:
    """Layers of a bfloat16 folder do not cast, and have the scales of the float32 weights."""
    AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    load_tokenizer(base_folder).save_pretrained(tmp_path / "half")
    assert load_for_generation(tmp_path / "half", "int8").dtype == torch.float32
    quantize_folder(tmp_path / "half", tmp_path / "int8", "int8")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "int8").dtype == torch.float32


def test_what_cannot_be_quantized(refused: Callable[..., str], folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    small = tmp_path / "small"
    ChatGPTForCausalLM(ChatGPTConfig(**sizes)).save_pretrained(small)
    load_tokenizer(folders["int8"]).save_pretrained(small)
    with pytest.raises(ConfigError, match=r"q_proj has rows of 48.*multiples of 32"):
        quantize_model(AutoModelForCausalLM.from_pretrained(small), "int4")
    assert "already quantized" in refused("quantize", folders["int8"], tmp_path / "again")
    with pytest.raises(ConfigError, match="no quantization int3; choose from int8, int8-weight-only, int4"):
        quantize_folder(small, tmp_path / "three", "int3")
    assert "--to int3 is unknown; choose from int8" in refused("quantize", small, tmp_path / "three", "--to", "int3")
    with pytest.raises(OutputError, match="not an empty folder"):
        quantize_folder(folders["int8"], small, "int8")
    assert not (tmp_path / "again").exists()


def test_layers_with_their_own_forward_are_refused_by_name() -> None:
    """torchao's weights have no transposition, which Falcon's layers ask for; GPT-2's are not linear layers at all."""
    falcon = FalconForCausalLM(FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    for quantization in QUANTIZATIONS:
        with pytest.raises(
            ConfigError, match=r"falcon model cannot be quantized: it computes with custom layers \(FalconLinear\)"
        ):
            quantize_model(falcon, quantization)
        with pytest.raises(ConfigError, match="gpt2 model cannot be quantized: it computes with no linear layers"):
            quantize_model(gpt2, quantization)


def test_what_cannot_be_measured_is_not_written(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: PreTrainedModel) -> PreTrainedModel:
        raise ChatGPTError("no kernel")

    corpus = tmp_path / "own.txt"
    corpus.write_text("\n".join(f"The dog number {number} runs around the garden." for number in range(400)))
    monkeypatch.setattr(module, "use_cpu_kernels", fails)
    with pytest.raises(ChatGPTError, match="no kernel"):
        quantize_folder(base_folder, tmp_path / "int8", "int8", str(corpus))
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


def test_without_torchao(folders: dict[str, Path], base_folder: Path) -> None:
    """Runs in a process that cannot import torchao, because transformers checks only once whether it is installed."""
    script = """
import sys
from importlib.machinery import PathFinder

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchao":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hidden())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torchao" else found(name, package)
from chatgpt_hf.errors import ChatGPTError
from chatgpt_hf import load_for_generation
for arguments in ((sys.argv[1],), (sys.argv[2], "int8")):
    try:
        load_for_generation(*arguments)
    except ChatGPTError as error:
        print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", script, str(folders["int8"]), str(base_folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    stored, loaded = result.stdout.splitlines()
    for line in (stored, loaded):
        assert line.startswith(MissingDependency.__name__)
        assert "needs torchao, which is not installed" in line
        assert "pip install 'chatgpt-hf[quantize]'" in line
