"""Settings in a folder of a stranger's that hang a library, are no numbers, or ask for what is not there; and harmless ones."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaForCausalLM

from chatgpt_hf import untrusted
from chatgpt_hf.checkpoints import load_config, load_model
from chatgpt_hf.conversion.merge import merge_adapter
from chatgpt_hf.errors import ChatGPTError, CheckpointError, ConfigError
from chatgpt_hf.evaluation.generation import Completion, generate_completions
from chatgpt_hf.files import read_json
from chatgpt_hf.hub.files import check_model_folder, published_files
from chatgpt_hf.inference.continuous import check_continuous_batching
from chatgpt_hf.inference.generate import encode_prompt, stream_text
from chatgpt_hf.reporting.card import make_card
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


@pytest.mark.parametrize(
    "change",
    [
        {"init_lora_weights": "pissa_niter_5000"},
        {"init_lora_weights": f"pissa_niter_{'0' * 5000}5000"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 5000}},
    ],
    ids=["PiSSA", "zeros", "LoftQ"],
)
def test_an_adapter_that_is_initialized_for_hours(adapter: Path, change: dict[str, Any]) -> None:
    edit(adapter / "adapter_config.json", **change)
    message = refusal(load_model, adapter)
    assert message.startswith(f"{adapter / 'adapter_config.json'}: {list(change)[-1]}")
    assert "asks for 5,000 rounds, and at most 100 are possible" in message


def test_an_adapter_of_an_ordinary_initialization(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", init_lora_weights="pissa_niter_16")
    load_model(adapter)


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
        {"constraints": [1]},
        {"force_words_ids": [[1]]},
        {"sequence_bias": {"5": 1.0}},
        {"sequence_bias": [[[5], 1]]},
        {"sequence_bias": [[[10**9], 1.0]]},
        {"watermarking_config": {"bias": "x"}},
        {"watermarking_config": {"greenlist_ratio": 1.0}},
        {"forced_bos_token_id": 10**9},
        {"forced_eos_token_id": 10**9},
        {"bad_words_ids": [[10**9]]},
        {"bad_words_ids": [[-1]]},
        {"exponential_decay_length_penalty": [10**6, 1.5], "eos_token_id": 10**9},
        {"pad_token_id": 10**9},
        {"stop_strings": [1]},
        {"stop_strings": [""]},
        {"stop_strings": {}},
        {"cache_implementation": "x"},
        {"cache_implementation": 3},
        {"compile_config": {"mode": "x"}},
        {"max_length": -5},
        {"max_new_tokens": 0},
        {"min_new_tokens": "3"},
        {"max_time": "1"},
        {"top_k": "5"},
        {"top_k": 5.5},
        {"temperature": True},
        {"num_beams": 10**9},
        {"num_beams": 4},
        {"num_return_sequences": 2, "do_sample": True},
        {"do_sample": "yes"},
        {"is_assistant": True},
        {"token_healing": True},
        {"prefill_chunk_size": 0},
        {"prompt_lookup_num_tokens": "x"},
        {"assistant_early_exit": "x"},
        {"num_assistant_tokens": -1},
        {"guidance_scale": "x"},
        {"typical_p": -1.0, "do_sample": True},
        {"to_dict": 1},
    ],
    ids=str,
)
def test_settings_of_generation_that_cannot_be_obeyed(folder: Path, setting: dict[str, Any]) -> None:
    edit(folder / "generation_config.json", **setting)
    message = refusal(generated, folder)
    assert "generation_config.json" in message
    assert next(iter(setting)) in message


# By setting: whether the text may change by it.
OBEYED: list[tuple[dict[str, Any], bool]] = [
    ({"sequence_bias": [[[40], 90.0], [[40, 41], 99.0]]}, True),
    ({"watermarking_config": {"bias": 90.0}}, True),
    ({"bad_words_ids": [[token] for token in range(100, 300)]}, True),
    ({"suppress_tokens": [*range(100, 300), 10**6]}, True),
    ({"begin_suppress_tokens": [*range(100, 300), 10**6]}, True),
    ({"forced_eos_token_id": 41}, True),
    ({"exponential_decay_length_penalty": [1, 9.0]}, True),
    ({"guidance_scale": 9.0}, True),
    ({"encoder_repetition_penalty": 90.0}, True),
    ({"repetition_penalty": 0.01}, True),
    ({"forced_bos_token_id": 40}, False),  # comes first only where there is no prompt
    ({"eos_token_id": [10**6, 0]}, False),
    ({"decoder_start_token_id": 10**6}, False),
    ({"assistant_confidence_threshold": 0.1, "num_assistant_tokens": 3}, False),
    ({"prompt_lookup_num_tokens": 2}, False),
    ({"prefill_chunk_size": 1}, False),
    ({"use_cache": False}, False),
    ({"max_length": 7}, False),
]


@pytest.mark.parametrize(("setting", "changes"), OBEYED, ids=str)
def test_settings_of_generation_are_obeyed(folder: Path, setting: dict[str, Any], changes: bool) -> None:
    plain = generated(folder)
    edit(folder / "generation_config.json", **setting)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    ids = torch.tensor([encode_prompt(tokenizer, "The")])
    expected = model.generate(ids, max_new_tokens=4)[0, ids.shape[1] :]
    text = generated(folder)
    assert text == "The" + tokenizer.decode(expected, skip_special_tokens=True)
    assert (text != plain) is changes


def test_settings_of_older_models(folder: Path) -> None:
    """transformers takes them from config.json where there is no other file."""
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", max_length="x")
    assert "config.json: max_length is 'x', which is not" in refusal(load_model, folder)
    edit(folder / "config.json", max_length=7, bad_words_ids=[[10**9]])
    assert "bad_words_ids is [[1000000000]], which cannot be applied" in refusal(load_model, folder)


def test_settings_of_generation_where_answers_are_measured(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    prompts = [encode_prompt(tokenizer, text) for text in ("The", "The man")]

    def completions(**setting: Any) -> list[Completion]:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 1, **setting}))
        options: dict[str, Any] = {
            "max_new_tokens": 6,
            "batch_size": 2,
            "progress": False,
            "desc": "",
            "do_sample": False,
        }
        return generate_completions(load_model(folder), tokenizer, prompts, **options)

    plain = completions()
    assert completions(prompt_lookup_num_tokens=2, use_cache=False) == plain
    text = plain[0].text
    cut = completions(stop_strings=[text[3:5], "never in it"])[0]
    assert (cut.text, cut.ended) == (text[: text.find(text[3:5])], True)
    assert completions(num_beams=3)
    with pytest.raises(ConfigError, match="num_return_sequences is 2, and here each text is continued once"):
        completions(num_return_sequences=2, do_sample=True)
    with pytest.raises(ConfigError, match=r"constrained beam search, .* Delete force_words_ids there"):
        completions(force_words_ids=[[5]], num_beams=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to_dict", "x"),
        ("get_text_config", 1),
        ("__class__", "x"),
        ("return_dict", False),
        ("architectures", [1]),
        ("architectures", "LlamaForCausalLM"),
        ("is_encoder_decoder", True),
        ("num_key_value_heads", 0),
        ("head_dim", 0),
    ],
)
def test_fields_that_nothing_works_with(folder: Path, field: str, value: Any) -> None:
    edit(folder / "config.json", **{field: value})
    message = refusal(load_model, folder)
    assert str(folder) in message
    assert f"{folder / 'config.json'}: {field} is " in message or "division" in message or "negative power" in message


def test_a_watermark_of_another_kind(folder: Path) -> None:
    edit(folder / "generation_config.json", watermarking_config={"ngram_len": 5})
    assert "generation_config.json cannot be used: WatermarkingConfig" in refusal(generated, folder)


def test_padding_beyond_the_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", pad_token_id=10**9)
    with pytest.raises(ConfigError, match=r"config\.json: pad_token_id is 1000000000, and the vocabulary"):
        load_model(folder)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(adapter: Path, folder: Path, tmp_path: Path) -> None:
    assert generated(adapter) == generated(folder)  # a new LoRA adds nothing
    merge_adapter(adapter, tmp_path / "merged")
    assert load_tokenizer(tmp_path / "merged").get_vocab() == load_tokenizer(folder).get_vocab()


def test_a_base_is_sought_beside_the_adapter_and_then_from_the_working_directory(
    adapter: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    shutil.copytree(folder, here / "base")
    weights = load_file(folder / "model.safetensors")
    other = {name: weight + 1 for name, weight in weights.items()}
    save_file(other, here / "base" / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.chdir(here)

    def embedding() -> torch.Tensor:
        return load_model(adapter).get_input_embeddings().weight

    edit(adapter / "adapter_config.json", base_model_name_or_path="base")
    assert torch.equal(embedding(), other["model.embed_tokens.weight"])
    shutil.copytree(folder, adapter / "base")
    assert torch.equal(embedding(), weights["model.embed_tokens.weight"])
    edit(adapter / "adapter_config.json", base_model_name_or_path=f"../{folder.name}")
    assert torch.equal(embedding(), weights["model.embed_tokens.weight"])
    merge_adapter(adapter, tmp_path / "merged")
    (adapter / "README.md").unlink()
    assert "base_model" not in make_card(adapter, "mine")
    # The adapter itself is no base, but the working directory may be one.
    edit(adapter / "adapter_config.json", base_model_name_or_path=".")
    monkeypatch.chdir(here / "base")
    assert torch.equal(embedding(), other["model.embed_tokens.weight"])
    edit(adapter / "adapter_config.json", base_model_name_or_path="not/here")
    for load in (load_model, load_tokenizer):
        message = refusal(load, adapter)
        assert (
            f"There is no folder {adapter / 'not/here'}, and no not/here in the working directory, {Path.cwd()}."
            in message
        )


def test_an_adapter_loads_without_warnings_of_the_libraries(adapter: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load_model(adapter)


@pytest.mark.parametrize(
    "setting",
    [
        {"sequence_bias": [[[5], 1.0]]},
        {"forced_eos_token_id": 5},
        {"no_repeat_ngram_size": 2},
        {"stop_strings": ["x"]},
    ],
    ids=str,
)
def test_settings_that_batches_of_requests_cannot_apply(folder: Path, setting: dict[str, Any]) -> None:
    config = GenerationConfig(**setting)
    with pytest.raises(ConfigError, match=f"cannot apply {next(iter(setting))}"):
        check_continuous_batching(LlamaForCausalLM.from_pretrained(folder), config, "one by one")


def test_weights_on_another_disk(folder: Path, tmp_path: Path) -> None:
    """A link to weights is followed to load them, and nothing of it is published."""
    (folder / "model.safetensors").rename(tmp_path / "large.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "large.safetensors")
    load_model(folder)
    assert "is a link to" in refusal(published_files, folder)
    for target in ("large.bin", "large.safetensors"):
        (tmp_path / "large.safetensors").rename(tmp_path / "large.bin")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(tmp_path / target)
        assert "followed only to weights (.safetensors), and only to load them" in refusal(load_model, folder)
        (tmp_path / "large.bin").rename(tmp_path / "large.safetensors")


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
