"""Guessed tokens change only the number of steps."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_model, load_tokenizer, train_tokenizer
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference.generate import stream_text
from chatgpt_hf.inference.speculation import make_speculation

PROMPT = "1, 2, 3, 4, 5. Count: 1, 2, 3, 4, 5. Count: 1, 2,"


@pytest.fixture(scope="module")
def assistant(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller model with random weights and the same tokenizer, which guesses badly."""
    folder = tmp_path_factory.mktemp("assistant")
    tokenizer = load_tokenizer(chat_folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
    ChatGPTForCausalLM(ChatGPTConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text(folder: Path, said: list[str] | None = None, **options: Any) -> str:
    report = (said if said is not None else []).append
    return "".join(stream_text(folder, PROMPT, max_new_tokens=40, temperature=0, report=report, **options))


def steps(sentence: str) -> tuple[int, int]:
    found = re.match(r"(\d+) tokens in (\d+) steps: .* per step, (\d+) of (\d+) guesses were right", sentence)
    tokens, count, right, guesses = map(int, found.groups())
    assert 0 <= right == tokens - count <= guesses
    return tokens, count


def test_the_text_is_the_same(chat_folder: Path, assistant: Path) -> None:
    plain: list[str] = []
    expected = text(chat_folder, plain)
    assert not plain
    counted: dict[str, tuple[int, int]] = {}
    for name, speculate in (("lookup", "auto"), ("itself", str(chat_folder)), ("small", str(assistant))):
        said: list[str] = []
        assert text(chat_folder, said, speculate=speculate) == expected
        counted[name] = steps(said[0])
    lengths = {tokens for tokens, _ in counted.values()}
    assert len(lengths) == 1
    # A model that guesses for itself is always right; one with random weights hardly ever.
    assert counted["itself"][1] < counted["lookup"][1] < counted["small"][1] <= lengths.pop()


def test_an_assistant_with_another_tokenizer(chat_folder: Path, assistant: Path, tmp_path: Path) -> None:
    ChatGPTForCausalLM.from_pretrained(assistant).save_pretrained(tmp_path)
    train_tokenizer(["other words entirely"] * 5, 270, show_progress=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its tokenizer differs from the model's"):
        make_speculation(str(tmp_path), load_tokenizer(chat_folder), load_model(chat_folder), 20)


def test_the_models_own_first_layers(assistant: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ChatGPTForCausalLM.from_pretrained(assistant).config
    config.num_hidden_layers, config.layer_types = 3, ["full_attention"] * 3
    model = ChatGPTForCausalLM(config).eval()
    # The layers after the first add little, so its guesses are mostly right.
    for layer in model.model.layers[1:]:
        for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            torch.nn.init.normal_(matrix, std=0.005)
    model.save_pretrained(tmp_path)
    load_tokenizer(assistant).save_pretrained(tmp_path)
    said: list[str] = []
    assert text(tmp_path, said, speculate="1") == text(tmp_path)
    tokens, count = steps(said[0])
    assert count < tokens

    seen: list[torch.Tensor] = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model.config.num_hidden_layers = 1
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]])).logits
        assert torch.equal(logits, model.lm_head(model.model.norm(seen[0])))
    for number in ("0", "3"):
        with pytest.raises(ConfigError, match="give at least 1 layer, and fewer than the model's 3"):
            text(tmp_path, speculate=number)


def test_layers_that_run_whatever_the_config_says(chat_folder: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=32)).eval()
    with pytest.raises(ConfigError, match="GPT2LMHeadModel always runs all its layers"):
        make_speculation("1", load_tokenizer(chat_folder), model, 20)
    assert model.config.num_hidden_layers == 3


def test_an_assistant_with_a_shorter_context(chat_folder: Path, assistant: Path) -> None:
    model = load_model(chat_folder, ChatGPTForCausalLM)
    with pytest.raises(ConfigError, match="its context is 128 tokens, but the text may become 129 long"):
        make_speculation(str(assistant), load_tokenizer(chat_folder), model, 129)


def test_the_command_says_what_it_was_worth(
    cli: Callable[..., Any], chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("generate", chat_folder, "--prompt", PROMPT, "--temperature", "0", "--max_new_tokens", "20")
    plain, fast = cli(*command), cli(*command, "--speculate", "auto")
    assert (fast.code, fast.out) == (0, plain.out)
    assert "per step" in fast.err
    # On a terminal both streams are one: the report begins a line.
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    report = next(line for line in fast.err.splitlines() if "per step" in line)
    assert cli(*command, "--speculate", "auto").out.endswith(f"{plain.out}{report}\n")
    assert "per step" not in plain.err
