"""Settings in a folder of a stranger's that hang a library, are no numbers, or ask for what is not there; and harmless ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from chatgpt_hf import untrusted
from chatgpt_hf.checkpoints import load_config, load_model
from chatgpt_hf.conversion.merge import merge_adapter
from chatgpt_hf.errors import ChatGPTError, CheckpointError, ConfigError
from chatgpt_hf.files import read_json
from chatgpt_hf.hub.files import check_model_folder
from chatgpt_hf.inference.generate import stream_text
from chatgpt_hf.tokenization_chatgpt import load_tokenizer


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "theirs"))


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """An adapter as PEFT saves it: without a tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def generated(folder: Path) -> str:
    return "".join(stream_text(folder, "The", max_new_tokens=4, seed=0))


def refusal(load: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ChatGPTError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HANGS = "(([a-z_.0-9]+)+)+!"


@pytest.mark.parametrize(
    "change", [{"target_modules": HANGS}, {"rank_pattern": {HANGS: 4}}, {"exclude_modules": HANGS}], ids=str
)
def test_a_pattern_that_takes_exponential_time(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(untrusted, "SECONDS", 1)
    edit(adapter / "adapter_config.json", **change)
    message = refusal(load_model, adapter)
    assert message.startswith(f"{adapter / 'adapter_config.json'}: the pattern ")
    assert f"of {next(iter(change))} takes more than 1 seconds" in message


def test_an_ordinary_pattern(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", target_modules=r".*\.(q|nothing)_proj", rank_pattern={r"^.*\.o_proj": 4})
    load_model(adapter)


def test_layers_that_are_repeated_without_weights(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", layer_replication=[[0, 1]] * 3000)
    assert "layer_replication asks for 3,000 layers" in refusal(load_model, adapter)


@pytest.mark.parametrize("change", [{"num_labels": 10**10}, {"text_config": {"num_labels": 10**10}}], ids=str)
def test_more_labels_than_a_model_has(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / "config.json", **change)
    assert "num_labels is 10,000,000,000, and at most" in refusal(load_config, folder)


@pytest.mark.parametrize("number", ["NaN", "1e400", "-Infinity", '{"__float__": "NaN"}'])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("config.json", "rms_norm_eps"),
        ("config.json", "rope_parameters.rope_theta"),
        ("adapter_config.json", "lora_alpha"),
        ("generation_config.json", "temperature"),
    ],
)
def test_numbers_that_are_not_finite(folder: Path, name: str, field: str, number: str) -> None:
    outer, _, inner = field.partition(".")
    text = f'{{"{outer}": {{"{inner}": {number}}}}}' if inner else f'{{"{outer}": {number}}}'
    (folder / name).write_text(text)
    message = refusal(load_model, folder)
    assert message.startswith(f"{folder / name}: {field} is ")
    assert message.endswith("which is not a finite number.")


def test_a_limit_may_be_infinite(folder: Path) -> None:
    """As Mamba's configs have it."""
    edit(folder / "config.json", time_step_limit=[0.0, float("inf")])
    load_config(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"cache_implementation": "static"},
        {"stop_strings": ["never in it"]},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=str,
)
def test_settings_of_generation_that_change_no_text(folder: Path, setting: dict[str, Any]) -> None:
    expected = generated(folder)
    edit(folder / "generation_config.json", **setting)
    assert generated(folder) == expected


@pytest.mark.parametrize(
    "setting",
    [
        {"max_time": "x"},
        {"bad_words_ids": "x"},
        {"bad_words_ids": [1]},
        {"eos_token_id": []},
        {"no_repeat_ngram_size": "x"},
        {"exponential_decay_length_penalty": [1]},
        {"forced_eos_token_id": "a"},
        {"suppress_tokens": ["a"]},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
    ],
    ids=str,
)
def test_settings_of_generation_that_cannot_be_obeyed(folder: Path, setting: dict[str, Any]) -> None:
    edit(folder / "generation_config.json", **setting)
    message = refusal(generated, folder)
    assert "generation_config.json" in message
    assert next(iter(setting)) in message


def test_padding_beyond_the_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", pad_token_id=10**9)
    with pytest.raises(ConfigError, match=r"config\.json: pad_token_id is 1000000000, and the vocabulary"):
        load_model(folder)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(adapter: Path, folder: Path, tmp_path: Path) -> None:
    assert generated(adapter) == generated(folder)  # a new LoRA adds nothing
    merge_adapter(adapter, tmp_path / "merged")
    assert load_tokenizer(tmp_path / "merged").get_vocab() == load_tokenizer(folder).get_vocab()


def test_the_files_of_macos_beside_the_weights(folder: Path) -> None:
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7Mac OS X")
    load_model(folder)
    check_model_folder(folder)


def test_a_pointer_in_the_place_of_the_weights(folder: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"model.safetensors is a pointer of Git LFS.* `git lfs pull`"):
        load_model(folder)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8-sig")
    with pytest.raises(CheckpointError, match=r"config\.json begins with a byte order mark"):
        read_json(tmp_path / "config.json")
