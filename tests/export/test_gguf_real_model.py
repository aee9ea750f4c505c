"""SmolLM2-135M-Instruct in llama.cpp: the ids of 3,000 texts, greedy text, and a chat through its template."""

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from chatgpt_hf.export.export import export_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python, which compiles for minutes"
    ),
]
MESSAGES = [
    {"role": "user", "content": "List 3 colours."},
    {"role": "assistant", "content": "1. Red\n2. Green\n3. Blue"},
    {"role": "user", "content": "And 2 animals?"},
]


@pytest.fixture(scope="module")
def source(real_model: Callable[..., Path]) -> Path:
    return real_model("float32")


@pytest.fixture(scope="module")
def tokenizer(source: Path) -> Tokenizer:
    """The folder's tokenizer.json, without any code of ours or of transformers."""
    return Tokenizer.from_file(str(source / "tokenizer.json"))


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = export_model(source, tmp_path_factory.mktemp("real") / "gguf", "gguf")
    assert done.error is not None
    assert done.error < 5e-6
    return done.files[0]


@pytest.fixture(scope="module")
def llama(exported: Path) -> Any:
    from llama_cpp import Llama

    # 0 is GGML's float32.
    return Llama(str(exported), n_ctx=256, type_k=0, type_v=0, n_threads=1, seed=0, verbose=False)


def texts() -> list[str]:
    """3,000 texts: code with its indentation, prose, numbers, white space and many scripts."""
    draw = random.Random(0)
    files = sorted(Path(json.__file__).parent.parent.glob("*.py"))[:80]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines(keepends=True)]
    code = ["".join(lines[start : start + 12]) for start in draw.sample(range(len(lines) - 12), 1200)]
    parts = [
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\r\n",
        "0",
        "7",
        "12",
        "345",
        "1,234.5",
        "-",
        ".",
        ":",
        "x",
        "kg",
        "½",
        "²",
    ]
    numbers = ["".join(draw.choices(parts, k=draw.randint(1, 30))) for _ in range(1200)]
    ranges = [(32, 127), (0xA0, 0x250), (0x370, 0x530), (0x600, 0x700), (0x900, 0xA00), (0x3040, 0x3100)]
    ranges += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1FAFF), (0x2000, 0x2070)]
    scripts = [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randint(1, 60))) for _ in range(600)
    ]
    return code + numbers + scripts


def test_the_ids_of_3000_texts(llama: Any, tokenizer: Tokenizer) -> None:
    assert llama.metadata["tokenizer.ggml.pre"] == "smollm"
    assert llama.metadata["tokenizer.ggml.add_bos_token"] == "false"
    tokenizer.encode_special_tokens = True
    for text in texts():
        # `add_bos` is llama.cpp's `add_special`: it adds what the file says, which is nothing.
        assert llama.tokenize(text.encode(), add_bos=True, special=False) == tokenizer.encode(text).ids, text
    tokenizer.encode_special_tokens = False
    for text in (
        "<|im_start|>user\n  12 cats<|im_end|>\n",
        "<repo_name>a/b<file_sep>x.py\n    return 10<|endoftext|>",
    ):
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == tokenizer.encode(text).ids


def test_greedy_text_and_a_chat(llama: Any, tokenizer: Tokenizer, source: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source).eval()

    def greedy(ids: list[int], length: int) -> str:
        options = {"do_sample": False, "max_new_tokens": length, "eos_token_id": [0, 2], "pad_token_id": 2}
        made = model.generate(torch.tensor([ids]), **options)[0, len(ids) :]
        return tokenizer.decode(made.tolist())

    fixed = {"temperature": 0.0, "repeat_penalty": 1.0}
    for prompt in ("The capital of France is", "def add(a, b):\n    ", "In 1969, 2 men", "Water boils at 100"):
        said = llama.create_completion(prompt, max_tokens=24, **fixed)["choices"][0]["text"]
        assert said == greedy(tokenizer.encode(prompt).ids, 24)
    said = llama.create_chat_completion(MESSAGES, max_tokens=32, **fixed)["choices"][0]["message"]["content"]
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = [{"role": "system", "content": system}, *MESSAGES]
    prompt = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    assert said == greedy(tokenizer.encode(prompt + "<|im_start|>assistant\n").ids, 32)
