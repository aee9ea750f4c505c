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
from chatgpt_hf.errors import ChatGPTError, CheckpointError, ConfigError
from chatgpt_hf.stored import check_memory, machine_memory, read_header, stored_dtype
from chatgpt_hf.training.arguments import ChatSFTArguments, ModelArguments
from chatgpt_hf.training.weights import check_trainable

COMMANDS: dict[str, tuple[str, ...]] = {
    "chat": ("chat", "{}", "--prompt", "Hello!"),
    "convert": ("convert", "{}", "{new}"),
    "evaluate": ("evaluate", "{}", "--corpus", "{new}.txt"),
    "export": ("export", "{}", "--format", "onnx", "--output_dir", "{new}"),
    "finetune": ("finetune", "sst2", "--model_name_or_path", "{}", "--output_dir", "{new}"),
    "generate": ("generate", "{}", "--prompt", "Hello!"),
    "pretrain": (
        "pretrain",
        "--model_name_or_path",
        "{}",
        "--max_steps",
        "1",
        "--block_size",
        "64",
        "--output_dir",
        "{new}",
    ),
    "quantize": ("quantize", "{}", "{new}", "--to", "int8"),
    "sft": ("sft", "--model_name_or_path", "{}", "--block_size", "64", "--output_dir", "{new}"),
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
    whole = (folder / "model.safetensors").read_bytes()
    save_file(
        {**load_file(folder / "model.safetensors"), "qweight": torch.ones(2, dtype=torch.int32)},
        folder / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"is quantized \(gptq\).*pip install optimum gptqmodel.*vLLM"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(ConfigError, match=r"is quantized \(gptq\), and quantized weights cannot be trained"):
        check_trainable(ModelArguments(model_name_or_path=str(folder)), arguments, frozen=False)
    changed(folder, quantization_config=None)
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.to(torch.float8_e4m3fn) for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"stores its weights as float8 .* no `quantization_config`"):
        load_model(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"load_in_4bit": True},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "hqq", "quant_config": {}},
        {"quant_method": "quanto", "weights": "int8"},
        {"quant_method": "torchao", "quant_type": {"default": {}}},
    ],
    ids=str,
)
def test_plain_weights_that_the_config_calls_quantized(folder: Path, config: dict[str, Any]) -> None:
    changed(folder, quantization_config=config)
    with pytest.raises(
        CheckpointError,
        match=r"config\.json has a `quantization_config` \(.*and the folder's weights are not quantized",
    ):
        load_model(folder)


@pytest.mark.parametrize(
    "config", ["x", [], {"quant_method": ["gptq"]}, {"quant_method": "bitnet"}, {"quant_method": "nothing"}], ids=str
)
def test_other_configs_of_quantization(folder: Path, config: Any) -> None:
    """transformers ignores an unknown method, and refuses the others."""
    changed(folder, quantization_config=config)
    if config == {"quant_method": "nothing"}:
        load_model(folder)
        return
    with pytest.raises(ChatGPTError, match=str(folder)) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["chat", "evaluate", "export", "pretrain", "quantize", "sft"])
def test_a_config_that_asks_for_an_encoder(
    command: str, folder: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    changed(folder, is_encoder_decoder=True)
    new = str(tmp_path / "new")
    Path(f"{new}.txt").write_text("A text.")
    message = refused(*(word.replace("{new}", new).replace("{}", str(folder)) for word in COMMANDS[command]))
    assert f"{folder / 'config.json'}: is_encoder_decoder is True, and only models without an encoder" in message


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
    more = ("--optim", "adamw_torch", "--max_steps", "1", "--output_dir", folder / "run")
    assert "use_peft" not in refused("pretrain", "--model_name_or_path", folder, *more)
    # Muon keeps one number for each weight, and adapters need the weights once.
    base = ModelArguments(model_name_or_path=str(folder))
    check_trainable(base, ChatSFTArguments(output_dir="unused", use_cpu=True), frozen=False)
    has(1.1 * size)
    check_trainable(base, ChatSFTArguments(output_dir="unused", use_cpu=True), frozen=True)
    # Adapters do not fit either.
    has(0.9 * size)
    message = refused("sft", "--model_name_or_path", folder, "--output_dir", folder / "run")
    assert "GB of memory, and this machine has" in message
    assert "use_peft" not in message


def test_one_file_that_is_larger_than_memory(folder: Path, refused: Callable[..., str]) -> None:
    """It has no blocks on the disk, and could not even be mapped into memory."""
    file, size = folder / "model.safetensors", 2**43
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        opened.truncate(8 + len(header) + size)
    assert read_header(file) == [("w", "U8", (size,))]
    for command in ("chat", "convert", "finetune", "quantize", "sft"):
        new = str(folder / "new")
        words = (word.replace("{new}", new).replace("{}", str(folder)) for word in COMMANDS[command])
        assert "GB of memory, and this machine has" in refused(*words)


def test_the_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, 10**9))
    assert machine_memory() in (None, 10**9)


def with_header(header: object, *, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        with_header({}, length=2**64 - 1),
        with_header({}, length=200_000_000),
        with_header({}, length=3),
        with_header(b"not JSON"),
        with_header(b"\xff\xfe"),
        with_header(b"[" * 200_000),
        with_header([]),
        with_header({"w": 1}),
        with_header({"w": {"dtype": "F32"}}),
        with_header({"w": ENTRY}, data=b"\0" * 7),
        with_header({"w": ENTRY}, data=b"\0" * 9),
        with_header({"w": {**ENTRY, "shape": [3]}}, data=b"\0" * 8),
        with_header({"w": {**ENTRY, "shape": None}}, data=b"\0" * 8),
        with_header({"w": {**ENTRY, "dtype": "Q4"}}, data=b"\0" * 8),
        with_header({"w": {**ENTRY, "data_offsets": [8, 16]}}, data=b"\0" * 16),
        with_header({"v": ENTRY, "w": ENTRY}, data=b"\0" * 8),
    ],
)
def test_headers_that_are_not_whole(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a complete safetensors file"):
        read_header(file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a complete safetensors file"):
        stored_dtype(tmp_path)


def test_headers_of_every_dtype(tmp_path: Path) -> None:
    kinds = [torch.bool, torch.int8, torch.uint16, torch.int64, torch.float8_e5m2, torch.bfloat16, torch.complex64]
    weights = {str(kind): torch.ones(2, 3).to(kind) for kind in kinds}
    save_file(
        {**weights, "empty": torch.ones(0, 4), "one": torch.ones(())}, tmp_path / "a.safetensors", {"of": "a test"}
    )
    found = {name: (kind, shape) for name, kind, shape in read_header(tmp_path / "a.safetensors")}
    assert found["torch.bfloat16"] == ("BF16", (2, 3))
    assert (found["empty"][1], found["one"][1]) == ((0, 4), ())
    assert len(found) == len(kinds) + 2


def test_adapters_and_other_folders_are_refused_as_bases(folder: Path, refused: Callable[..., str]) -> None:
    new = str(folder / "new")
    (folder / "config.json").unlink()
    for adapter in (False, True):
        if adapter:
            (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')
        for command in ("finetune", "pretrain", "quantize", "sft"):
            words = [word.replace("{new}", new).replace("{}", str(folder)) for word in COMMANDS[command]]
            for more in ((), ("--use_peft", "true")) if command == "sft" else ((),):
                message = refused(*words, *more)
                wanted = "merge it into its base first" if adapter else "config.json is missing"
                assert wanted in message
                assert message.count("\n") == 1


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
