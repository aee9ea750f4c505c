"""`chatgpt-hf generate`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from chatgpt_hf import load_model

Cli = Callable[..., Any]


@pytest.mark.parametrize("prompt", ["Hi! How", "你好 👍🏽 <|im_end|>", ""])
def test_the_likeliest_text(prompt: str, cli: Cli, chat_folder: Path) -> None:
    result = cli("generate", chat_folder, "--prompt", prompt, "--temperature", "0", "--max_new_tokens", "12")
    tokenizer, model = AutoTokenizer.from_pretrained(chat_folder), load_model(chat_folder).eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, split_special_tokens=True)["input_ids"]]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    continuation = model.generate(ids, **options)[0, ids.shape[1] :]
    assert (result.code, result.out) == (0, prompt + tokenizer.decode(continuation, skip_special_tokens=True) + "\n")


def test_sampling(cli: Cli, chat_folder: Path) -> None:
    def say(**options: Any) -> str:
        named = [word for name, value in options.items() for word in (f"--{name}", value)]
        return cli("generate", chat_folder, "--prompt", "1, 2,", "--max_new_tokens", "30", *named).out

    assert say(temperature=6, seed=1) == say(temperature=6, seed=1) != say(temperature=6, seed=2)
    likeliest = say(temperature=0)
    assert say(temperature=6, seed=1, top_k=1) == likeliest
    assert say(temperature=6, seed=1, top_p=1e-6) == likeliest


def test_never_beyond_the_context(cli: Cli, base_folder: Path) -> None:
    prompt = "the river " * 11
    result = cli("generate", base_folder, "--prompt", prompt, "--max_new_tokens", "10000")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    assert result.out.startswith(prompt)
    # The document's start, the prompt, and what is left of 128 positions.
    assert len(tokenizer(result.out)["input_ids"]) <= 130


@pytest.mark.e2e
@pytest.mark.slow
def test_a_reader_that_goes_away(base_folder: Path) -> None:
    command = [sys.executable, "-c", "from chatgpt_hf.cli import main; main()", "generate", str(base_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=900) == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
