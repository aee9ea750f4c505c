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


def test_the_likeliest_text(cli: Cli, chat_folder: Path) -> None:
    result = cli("generate", chat_folder, "--prompt", "Hi! How", "--temperature", "0", "--max_new_tokens", "6")
    tokenizer, model = AutoTokenizer.from_pretrained(chat_folder), load_model(chat_folder).eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("Hi! How")["input_ids"]]])
    mask = torch.ones_like(ids)
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[0]
    assert (result.code, result.out) == (0, tokenizer.decode(expected, skip_special_tokens=True) + "\n")
    assert result.out.startswith("Hi! How are you")


def test_sampling(cli: Cli, chat_folder: Path) -> None:
    def say(**options: Any) -> str:
        named = [word for name, value in options.items() for word in (f"--{name}", value)]
        return cli("generate", chat_folder, "--prompt", "1, 2,", "--max_new_tokens", "30", *named).out

    assert say(temperature=6, seed=1) == say(temperature=6, seed=1) != say(temperature=6, seed=2)
    likeliest = say(temperature=0)
    assert say(temperature=6, seed=1, top_k=1) == likeliest
    assert say(temperature=6, seed=1, top_p=1e-6) == likeliest


def test_no_prompt_starts_a_document(cli: Cli, base_folder: Path) -> None:
    result = cli("generate", base_folder, "--max_new_tokens", "5")
    assert result.code == 0
    assert result.out.strip()


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
        assert process.wait(timeout=120) == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
