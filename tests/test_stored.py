"""Folders that hold something else than a model's plain weights, or more than fits, are named before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatgpt_hf import load_model, stored
from chatgpt_hf.errors import CheckpointError, ConfigError
from chatgpt_hf.stored import check_memory, machine_memory, stored_dtype
from chatgpt_hf.training.arguments import ChatSFTArguments, ModelArguments
from chatgpt_hf.training.weights import check_trainable

COMMANDS: dict[str, tuple[str, ...]] = {
    "chat": ("chat", "{}", "--prompt", "Hello!"),
    "convert": ("convert", "{}", "{new}"),
    "evaluate": ("evaluate", "{}", "--corpus", "{new}.txt"),
    "export": ("export", "{}", "--format", "onnx", "--output_dir", "{new}"),
    "finetune": ("finetune", "sst2", "--model_name_or_path", "{}", "--output_dir", "{new}"),
    "generate": ("generate", "{}", "--prompt", "Hello!"),
    "pretrain": ("pretrain", "--model_name_or_path", "{}", "--max_steps", "1", "--output_dir", "{new}"),
    "quantize": ("quantize", "{}", "{new}", "--to", "int8"),
    "sft": ("sft", "--model_name_or_path", "{}", "--output_dir", "{new}"),
}


def changed(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base_folder, tmp_path / "model")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_another_program(command: str, refused: Callable[..., str], tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    Path(f"{new}.txt").write_text("A text.")
    for name, content, words in (
        ("model.bin", b"GGUF\3\0\0\0", "is a GGUF file, which llama.cpp reads"),
        ("model.onnx", b"\x08\x08", "is an ONNX graph, which onnxruntime runs"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        message = refused(*(word.replace("{new}", new).replace("{}", str(file)) for word in COMMANDS[command]))
        assert f"{file} {words}" in message
        assert "Name the folder that it was made from" in message
    assert not Path(new).exists()


def test_a_folder_of_other_files(folder: Path) -> None:
    (folder / "model-q4.gguf").write_bytes(b"GGUF\3\0\0\0")
    load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-q4\.gguf is a GGUF file"):
        load_model(folder)


def test_quantized_folders(folder: Path) -> None:
    arguments = ChatSFTArguments(output_dir="unused", use_cpu=True)
    changed(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"is quantized \(gptq\).*pip install optimum gptqmodel.*vLLM"):
        load_model(folder)
    with pytest.raises(ConfigError, match=r"is quantized \(gptq\), and quantized weights cannot be trained"):
        check_trainable(ModelArguments(model_name_or_path=str(folder)), arguments, frozen=False)
    changed(folder, quantization_config=None)
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.to(torch.float8_e4m3fn) for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"stores its weights as float8 .* no `quantization_config`"):
        load_model(folder)


def test_a_model_larger_than_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    memory = machine_memory()
    assert memory is None or memory > 1e9
    size = (folder / "model.safetensors").stat().st_size

    def no_weights(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the weights are loaded")

    def has(count: float) -> None:
        monkeypatch.setattr(stored, "machine_memory", lambda: int(count))

    has(1.1 * size)
    load_model(folder)
    # Two bytes for each number are enough, and four times four are too many.
    has(0.6 * size)
    check_memory(folder, torch.bfloat16)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", no_weights)
    with pytest.raises(CheckpointError, match=r"needs 0\.\d GB of memory, and this machine has 0\.\d GB"):
        load_model(folder)
    assert "GB of memory, and this machine has" in refused("chat", folder, "--prompt", "Hello!")
    has(3.5 * size)
    message = refused("sft", "--model_name_or_path", folder, "--optim", "adamw_torch", "--output_dir", folder / "run")
    assert "to train (weights, gradients and the state of the optimizer)" in message
    assert "--use_peft true" in message
    # Muon keeps one number for each weight, and adapters need the weights once.
    base = ModelArguments(model_name_or_path=str(folder))
    check_trainable(base, ChatSFTArguments(output_dir="unused", use_cpu=True), frozen=False)
    has(1.1 * size)
    check_trainable(base, ChatSFTArguments(output_dir="unused", use_cpu=True), frozen=True)


def test_the_dtype_that_weights_are_stored_in(folder: Path, tmp_path: Path) -> None:
    assert stored_dtype(folder) == torch.float32
    load_model(folder).half().save_pretrained(folder)
    assert stored_dtype(folder) == torch.float16
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert stored_dtype(folder) == torch.float16
    # As transformers 4 wrote it.
    changed(folder, torch_dtype="bfloat16")
    assert stored_dtype(folder) == torch.bfloat16
    assert stored_dtype(tmp_path / "nothing") == torch.float32
