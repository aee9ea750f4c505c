"""A folder with foreign code, given to every command by somebody who answers y to every question."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from typer.main import get_command

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf_cli import make_app

# What each command needs beside the folder; ADAPTER is one whose base is the folder, OURS a chat model without code.
COMMANDS = {
    "chat": "chat THEIRS --prompt Hi",
    "chat with an adapter": "chat ADAPTER --prompt Hi",
    "chat with a moderator": "chat OURS --prompt Hi --moderation THEIRS --moderation_labels bad",
    "calibrate": "calibrate THEIRS --known CHATS",
    "generate": "generate THEIRS --prompt Hi",
    "generate with a draft": "generate OURS --prompt Hi --speculate THEIRS",
    "serve": "serve THEIRS --port 1",
    "serve with a moderator": "serve OURS --port 1 --moderation THEIRS --moderation_labels bad",
    "ui": "ui THEIRS",
    "explain": "explain THEIRS --text Hi --out NEW",
    "evaluate": "evaluate THEIRS --corpus TEXT",
    "evaluate a task": "evaluate THEIRS --task text-classification --dataset TABLE",
    "evaluate answers": "evaluate THEIRS --dataset CHATS",
    "evaluate bias": "evaluate THEIRS --bias",
    "quantize": "quantize THEIRS NEW --to int8 --corpus TEXT",
    "export": "export THEIRS --format onnx --output_dir NEW",
    "convert": "convert THEIRS NEW",
    "convert to gpt2": "convert THEIRS NEW --to gpt2",
    "merge": "merge ADAPTER NEW",
    "pretrain": "pretrain --model_name_or_path THEIRS --corpus TEXT --output_dir NEW --block_size 16",
    "prepare": "prepare --model_name_or_path THEIRS --corpus TEXT --output_dir NEW --block_size 16",
    "prepare for sft": "prepare --for sft --model_name_or_path THEIRS --dataset CHATS --output_dir NEW",
    "sft": "sft --model_name_or_path THEIRS --dataset CHATS --output_dir NEW",
    "sft of an adapter": "sft --model_name_or_path THEIRS --dataset CHATS --output_dir NEW --use_peft true",
    "dpo": "dpo --model_name_or_path THEIRS --dataset PAIRS --output_dir NEW",
    "dpo with a reference": "dpo --model_name_or_path OURS --ref_model_name_or_path THEIRS --dataset PAIRS --output_dir NEW --max_length 64",
    "reward": "reward --model_name_or_path THEIRS --dataset PAIRS --output_dir NEW",
    "distill": "distill --model_name_or_path THEIRS --teacher_model_name_or_path OURS --dataset CHATS --output_dir NEW --block_size 64",
    "distill from a teacher": "distill --model_name_or_path OURS --teacher_model_name_or_path THEIRS --dataset CHATS --output_dir NEW --block_size 64",
    "grpo": "grpo --model_name_or_path THEIRS --dataset PAIRS --rewards exact --answer_column chosen --output_dir NEW",
    "grpo with a reward model": "grpo --model_name_or_path OURS --dataset PAIRS --rewards THEIRS --output_dir NEW",
    "pairs": "pairs SAMPLES --rewards THEIRS --output NEW",
    "finetune": "finetune --task text-classification --model_name_or_path THEIRS --dataset TABLE --output_dir NEW",
    "plan": "plan --model_name_or_path THEIRS --max_steps 5 --block_size 16",
}
# They load no model. `push` publishes the code of a model's own classes; see tests/hub/test_push.py.
NO_MODEL = {"card", "compare", "data", "env", "pull", "push", "quickstart", "tokenizer"}


@pytest.fixture
def words(base_folder: Path, chats_file: Path, pairs_file: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """The words of a command, with the folders and files that it names."""
    theirs = tmp_path / "theirs"
    (tmp_path / "adapter").mkdir()
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": str(theirs)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "text.txt").write_text("The cat sits.\n" * 50)
    sample = {"prompt": "Hi", "completion": "Hello"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (tmp_path / "table.csv").write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(40)))
    named = {
        "THEIRS": theirs,
        "ADAPTER": tmp_path / "adapter",
        "OURS": base_folder,
        "TEXT": tmp_path / "text.txt",
        "TABLE": tmp_path / "table.csv",
        "CHATS": chats_file,
        "PAIRS": pairs_file,
        "SAMPLES": tmp_path / "samples.jsonl",
        "NEW": tmp_path / "new",
    }
    return lambda line: [str(named.get(word, word)) for word in line.split()]


def give_code(folder: Path, base: Path, family: str, trace: Path) -> None:
    """Makes a folder with the weights and tokenizer of `base`, whose config, tokenizer and processor name code."""
    shutil.copytree(base, folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config |= {"model_type": family, "auto_map": {name: f"theirs.{name}" for name in classes}}
    if family == "llama":
        config = {key: config[key] for key in ("model_type", "auto_map", "vocab_size", "hidden_size")}
        config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer_config.json", "processor_config.json"):
        settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        settings["auto_map"] = {"AutoTokenizer": ["theirs.T", "theirs.T"], "AutoProcessor": "theirs.P"}
        (folder / name).write_text(json.dumps(settings))
    (folder / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\n")


@pytest.mark.parametrize(
    ("command", "family"),
    [
        *((command, "llama") for command in COMMANDS),
        ("chat", "chatgpt"),
        ("chat", "unheard-of"),
        ("finetune", "unheard-of"),
    ],
)
def test_every_command_refuses_it(
    cli: Callable[..., Any],
    base_folder: Path,
    words: Callable[[str], list[str]],
    tmp_path: Path,
    command: str,
    family: str,
) -> None:
    trace = tmp_path / "was-run"
    give_code(tmp_path / "theirs", base_folder, family, trace)
    result = cli(*words(COMMANDS[command]), stdin="y\n" * 9)
    assert not trace.exists()
    assert result.code == 2, result
    _, _, message = ("\n" + result.err.rstrip("\n")).rpartition("\nerror: ")
    assert "\n" not in message, message
    assert "is not run" in message or "is unknown here" in message, message
    assert "trust_remote_code" not in result.out + result.err
    assert not (tmp_path / "new").exists()


def test_no_command_is_missing() -> None:
    names = {line.split()[0] for line in COMMANDS.values()} | NO_MODEL
    assert names == set(get_command(make_app()).commands)


def test_the_package_opens_folders_with_its_own_code(
    cli: Callable[..., Any], base_folder: Path, tmp_path: Path
) -> None:
    config = ChatGPTConfig(**{**json.loads((base_folder / "config.json").read_text()), "auto_map": None})
    ChatGPTForCausalLM(config).save_pretrained(tmp_path / "again")
    assert "auto_map" in json.loads((tmp_path / "again" / "config.json").read_text())
    assert cli("generate", base_folder, "--prompt", "Hi", "--max_new_tokens", "2").code == 0
