"""Compiled steps say the same, and a machine without a compiler says so and goes on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference.compiling import missing_compiler
from chatgpt_hf.inference.generate import stream_text

OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0}


@pytest.mark.slow
@pytest.mark.skipif(
    missing_compiler(torch.device("cpu")) is not None, reason="this machine has no C++ compiler for torch.compile"
)
def test_the_same_text(chat_folder: Path) -> None:
    torch.compiler.reset()
    expected = "".join(stream_text(chat_folder, "A cat number", **OPTIONS))
    said: list[str] = []
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    assert "".join(stream_text(chat_folder, "A cat number", compile=True, report=said.append, **OPTIONS)) == expected
    assert graphs["unique_graphs"] == before + 1
    assert not said


def test_without_a_compiler(chat_folder: Path) -> None:
    script = [sys.executable, "-c", "from chatgpt_hf.cli import main; main()", "generate", str(chat_folder)]
    script += ["--prompt", "A cat", "--temperature", "0", "--max_new_tokens", "5"]
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    plain = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=300)
    bare = subprocess.run(
        [*script, "--compile"], capture_output=True, text=True, env={**environment, "PATH": "/nowhere"}, timeout=300
    )
    assert plain.returncode == bare.returncode == 0, bare.stderr
    assert bare.stdout == plain.stdout
    assert bare.stderr.count("Not compiled, for want of a C++ compiler") == 1


def test_not_with_guesses(chat_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--compile is for one token a step"):
        next(stream_text(chat_folder, "A cat", compile=True, speculate="auto"))
