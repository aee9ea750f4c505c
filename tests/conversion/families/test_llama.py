"""Converts Llama-like families in both directions and compares them with transformers' classes.

The random weights are large enough to reveal errors.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, convert_checkpoint
from chatgpt_hf.conversion.families import FAMILIES, MODEL_FAMILIES
from chatgpt_hf.errors import ConversionError

VOCAB, PAD, EOS = 259, 256, 257
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1}),
    ("llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 32, "num_key_value_heads": 1}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0}, "hidden_act": "gelu"}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 7, "head_dim": 16}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 16}),
    (
        "qwen3",
        {
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
    ("smollm3", {"no_rope_layers": [1, 1, 1]}),
    ("smollm3", {"no_rope_layers": [1, 1, 1], "attention_bias": True, "mlp_bias": True}),
]
IDS = [f"{name}-{'-'.join(overrides) or 'plain'}" for name, overrides in VARIANTS]


def stock(name: str, **overrides: Any) -> Any:
    """A tiny model of transformers'; all weights and biases are random with std 0.2."""
    model_class = getattr(transformers, FAMILIES[name].architecture)
    model = model_class(model_class.config_class(**{**SIZES, **overrides}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize(("name", "overrides"), VARIANTS, ids=IDS)
def test_parity_both_ways(
    name: str, overrides: dict[str, Any], assert_parity: Callable[..., None], byte_tokenizer: Any, tmp_path: Path
) -> None:
    theirs = stock(name, **overrides)
    theirs.save_pretrained(tmp_path / "theirs")
    byte_tokenizer.save_pretrained(tmp_path / "theirs")
    assert convert_checkpoint(tmp_path / "theirs", tmp_path / "ours") <= 1e-4
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is ChatGPTForCausalLM
    assert_parity(theirs, ours)

    assert convert_checkpoint(tmp_path / "ours", tmp_path / "again", name) <= 1e-4
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert type(again) is type(theirs)
    assert {kind: found for kind, found in report.items() if found} == {}
    assert_parity(theirs, again)
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in theirs.state_dict().items())
    # The configs are the same too, apart from fields about their origin.
    before, after = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("theirs", "again"))
    ignored = {"transformers_version", "max_window_layers"}
    if not before.get("use_sliding_window", True):
        ignored |= {"sliding_window"}
    assert {key: before.get(key) for key in before.keys() - ignored} == {
        key: after.get(key) for key in before.keys() - ignored
    }
    for folder in ("ours", "again"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert tokenizer("Hi 你")["input_ids"] == byte_tokenizer("Hi 你")["input_ids"]


@pytest.mark.parametrize("name", [name for name in MODEL_FAMILIES if name not in ("gpt2", "qwen2")])
def test_from_pretrained_reads_the_folder(name: str, assert_parity: Callable[..., None], tmp_path: Path) -> None:
    theirs = stock(name, **({"no_rope_layers": [1, 1, 1]} if name == "smollm3" else {}))
    theirs.save_pretrained(tmp_path)
    ours, report = ChatGPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {kind: found for kind, found in report.items() if found} == {}
    assert_parity(theirs, ours)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(theirs), (
        "transformers' own class is left alone"
    )


def test_an_older_config_json(assert_parity: Callable[..., None], tmp_path: Path) -> None:
    """A config from before transformers 5: separate `rope_theta` and `rope_scaling`, `torch_dtype`, no `head_dim`."""
    theirs = stock("llama", rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["dtype"], config["head_dim"]
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps({**config, **old}))
    ours = ChatGPTForCausalLM.from_pretrained(tmp_path)
    assert ours.config.rope_parameters.items() >= {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}.items()
    assert_parity(theirs, ours)


def ours(**overrides: Any) -> ChatGPTForCausalLM:
    """A model of ours that Llama can express."""
    llama = {"gated_mlp": True, "hidden_act": "silu", "qk_norm": False}
    model = ChatGPTForCausalLM(ChatGPTConfig(**{**SIZES, **llama, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("mistral", {"sliding_window": 6}),
        (
            "qwen3",
            {
                "qk_norm": True,
                "sliding_window": 6,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
        ("smollm3", {"sliding_window": 6, "attention_bias": True}),
    ],
    ids=str,
)
def test_a_model_of_ours_becomes_stock(
    name: str, overrides: dict[str, Any], assert_parity: Callable[..., None], tmp_path: Path
) -> None:
    model = ours(**overrides)
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, True
    model.save_pretrained(tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "stock", name)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(converted).__name__ == FAMILIES[name].architecture
    assert converted.generation_config.temperature == 0.5
    assert_parity(model, converted)


def test_a_stock_folder_needs_none_of_our_code(tmp_path: Path) -> None:
    model = ours(qk_norm=True)
    model.save_pretrained(tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "stock", "qwen3")
    code = f"""
import sys
sys.modules["chatgpt_hf"] = None  # so that an import of it fails
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "stock")!r})
assert type(model).__module__.startswith("transformers."), type(model)
print(model(torch.arange(9)[None]).logits.double().sum().item())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = model(torch.arange(9)[None]).logits.double().sum().item()
    assert float(result.stdout) == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_stored_bytes_come_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    stock(name, tie_word_embeddings=True).to(dtype).save_pretrained(tmp_path / "theirs")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "again", name)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").dtype == dtype
    for file in ("model.safetensors", "generation_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("smollm3", {}, "`no_rope_layers=[1, 1, 0]`"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "`quantization_config`"),
        ("qwen2", None, "`chatgpt-hf convert` adds them"),
    ],
    ids=str,
)
def test_what_ours_cannot_express_is_refused(
    name: str, overrides: dict[str, Any] | None, words: str, tmp_path: Path
) -> None:
    extra = {"no_rope_layer_interval": 3} if name == "smollm3" else {}
    stock(name, **extra).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **(overrides or {})}))
    with pytest.raises(ConversionError) as error:
        ChatGPTForCausalLM.from_pretrained(tmp_path)
    assert words in str(error.value)
    if overrides is not None:
        with pytest.raises(ConversionError) as error:
            convert_checkpoint(tmp_path, tmp_path / "new")
        assert words in str(error.value)


GATED = {**SIZES, "gated_mlp": True, "hidden_act": "silu", "qk_norm": False}
COMMON_REFUSALS: list[dict[str, Any]] = [
    {"gated_mlp": False},
    {"position_embedding_type": "learned"},
    {"norm_type": "layernorm"},
    {"norm_bias": True},
    {"embedding_norm": True},
    {"embedding_residual": True},
    {"conv_kernel_size": 3},
    {"ngram_vocab_sizes": [50]},
    {"residual_dropout": 0.1},
    {"embedding_dropout": 0.1},
    {"final_logit_softcapping": 15.0},
    {"scale_attn_by_inverse_layer_idx": True},
]
OWN_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"qk_norm": True}, "`qk_norm="),
    ("llama", {"sliding_window": 8}, "`sliding_window="),
    ("llama", {"hidden_size": 50, "head_dim": 16}, "hidden size"),
    ("mistral", {"attention_bias": True}, "`attention_bias="),
    ("mistral", {"mlp_bias": True}, "`mlp_bias="),
    (
        "mistral",
        {"sliding_window": 8, "layer_types": ["full_attention"] + ["sliding_attention"] * 2},
        "`layer_types=",
    ),
    ("qwen2", {}, "`attention_bias="),
    ("qwen3", {}, "`qk_norm="),
    ("qwen3", {"qk_norm": True, "mlp_bias": True}, "`mlp_bias="),
    ("smollm3", {"qk_norm": True}, "`qk_norm="),
]


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [*(("llama", overrides, f"`{next(iter(overrides))}=") for overrides in COMMON_REFUSALS), *OWN_REFUSALS],
    ids=str,
)
def test_what_the_family_cannot_express_is_refused(name: str, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConversionError) as error:
        FAMILIES[name].config_out(ChatGPTConfig(**{**GATED, **overrides}))
    assert words in str(error.value)


def test_an_output_bias_is_not_dropped(tmp_path: Path) -> None:
    ours(attention_bias=True).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConversionError, match=r"qwen2 cannot express `model.layers.0.self_attn.o_proj.bias`"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "new", "qwen2")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_is_decided(name: str) -> None:
    """A new field of our config must be translated, refused, or known to change nothing in a trained model."""
    family = FAMILIES[name]
    own = {field.name for field in fields(ChatGPTConfig)} - {field.name for field in fields(PreTrainedConfig)}
    translated = {
        "gpt2": {"num_key_value_heads", "head_dim"},
        "nanogpt": {
            *("num_key_value_heads", "head_dim", "intermediate_size", "tie_word_embeddings"),
            *("norm_bias", "attention_bias", "mlp_bias", "attention_dropout", "residual_dropout", "embedding_dropout"),
        },
        "litgpt": {
            *("norm_type", "norm_bias", "gated_mlp", "hidden_act", "attention_bias", "mlp_bias"),
            *("rope_parameters", "tie_word_embeddings"),
        },
    }.get(name, {"head_dim"})
    no_matter = {"classifier_pooling", "zero_init_residual", "initializer_range", "use_cache", "rope_parameters"}
    no_matter |= {"layer_types", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert own <= set(family.fields.values()) | set(family.fixed) | translated | no_matter
