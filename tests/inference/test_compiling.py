"""Compiled steps give the same text; without a compiler, a message says so and generation continues."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StaticCache

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, compile_config
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference.compiling import missing_compiler
from chatgpt_hf.inference.cpu import packed_linear as kernels
from chatgpt_hf.inference.cpu.attention import use_cpu_attention
from chatgpt_hf.inference.generate import stream_text

OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0}


@pytest.mark.slow
@pytest.mark.skipif(
    missing_compiler(torch.device("cpu")) is not None, reason="this machine has no C++ compiler for torch.compile"
)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_same_text(chat_folder: Path, monkeypatch: pytest.MonkeyPatch, quantize: str | None) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    torch.compiler.reset()
    options = {**OPTIONS, "quantize": quantize}
    expected = "".join(stream_text(chat_folder, "A cat number", **options))
    said: list[str] = []
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    assert "".join(stream_text(chat_folder, "A cat number", compile=True, report=said.append, **options)) == expected
    assert graphs["unique_graphs"] == before + 1
    assert not said


@pytest.mark.parametrize("window", [None, 6])
def test_steps_for_several_answers(window: int | None) -> None:
    """Uses PyTorch's operations instead of inductor's, so that the ids are exactly those of uncompiled steps."""
    torch.compiler.reset()
    torch.manual_seed(0)
    sizes = {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = ChatGPTForCausalLM(ChatGPTConfig(**sizes, sliding_window=window, initializer_range=0.2)).eval()
    ids = torch.randint(101, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options, pad_token_id=0)
    config = compile_config()
    config.backend = "aot_eager"
    config.mode = None
    use_cpu_attention(model)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(3):
        cache = StaticCache(model.config, max_cache_len=21)
        found = model.generate(ids, **options, pad_token_id=0, past_key_values=cache, compile_config=config)
        assert found.equal(expected)
    # transformers counts a window's positions in a Python integer, which PyTorch first treats as a constant.
    assert graphs["unique_graphs"] == before + (1 if window is None else 2)


def test_without_a_compiler(chat_folder: Path) -> None:
    script = [sys.executable, "-c", "from chatgpt_hf_cli import main; main()", "generate", str(chat_folder)]
    script += ["--prompt", "A cat", "--temperature", "0", "--max_new_tokens", "5"]
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    plain = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=900)
    bare = subprocess.run(
        [*script, "--compile"], capture_output=True, text=True, env={**environment, "PATH": "/nowhere"}, timeout=900
    )
    assert plain.returncode == bare.returncode == 0, bare.stderr
    assert bare.stdout == plain.stdout
    assert bare.stderr.count("Not compiled, because a C++ compiler (g++ or clang++) is missing") == 1


def test_not_with_guesses(chat_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--compile works only with one token per step"):
        next(stream_text(chat_folder, "A cat", compile=True, speculate="auto"))
