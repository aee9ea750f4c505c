"""transformers' Llama-like families: decoders with rotary positions, RMSNorm and a gated feed-forward layer.

Their tensors have our names, so `ChatGPTForCausalLM.from_pretrained(llama_folder)` only translates the config. Qwen2
is the exception: it has biases on queries, keys and values but not on the output projection. Our model has biases on
all four or none, so converting from Qwen2 adds a bias of zeros, and converting back removes it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from ...errors import ConversionError
from ...model.configuration_chatgpt import ChatGPTConfig
from .family import ModelFamily, State, common_fields_in, common_fields_out, refuse_other

# Maps Llama's fields to ours with the same meaning.
CONFIG_FIELDS = {
    **{
        name: name
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rope_parameters",
            "hidden_act",
            "attention_dropout",
            "initializer_range",
            "tie_word_embeddings",
            "use_cache",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        )
    },
    "rms_norm_eps": "norm_eps",
}
# The values of our fields that define a Llama, apart from its size.
LLAMA_ARCHITECTURE: dict[str, Any] = {
    "position_embedding_type": "rope",
    "norm_type": "rmsnorm",
    "norm_bias": False,
    "gated_mlp": True,
    "embedding_norm": False,
    "embedding_residual": False,
    "ngram_vocab_sizes": None,
    "conv_kernel_size": None,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "final_logit_softcapping": None,
    "scale_attn_by_inverse_layer_idx": False,
}


def _read_config(
    config: dict[str, Any], *, name: str, architecture: str, fields: Mapping[str, str], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Translates a config.json of the family to ours; missing fields get the family's own defaults.

    Raises:
        ConversionError: If the checkpoint computes something that our model does not.
    """
    full = _config_class(architecture)(**config).to_dict()
    if full.get("quantization_config"):
        raise ConversionError(
            "This checkpoint has a `quantization_config`: its weights are not plain matrices. Convert the original."
        )
    if not all(full.get("no_rope_layers") or [True]):
        raise ConversionError(
            f"This {name} checkpoint has `no_rope_layers={full['no_rope_layers']}`: layers without positions, which "
            f"chatgpt models do not compute (only 1 for every layer). Load it with transformers' own {architecture}."
        )
    translated = {ours: full[theirs] for theirs, ours in fields.items()}
    translated["head_dim"] = full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"]
    if "sliding_window" in fields and "use_sliding_window" in full:
        window = full["sliding_window"] if full["use_sliding_window"] else None
        sliding = window is not None and "sliding_attention" in full["layer_types"]
        translated["sliding_window"] = window if sliding else None
        translated["layer_types"] = full["layer_types"] if sliding else None
    return {**fixed, **translated, **common_fields_in(config), "model_type": ChatGPTConfig.model_type}


def _write_config(
    config: ChatGPTConfig, *, name: str, architecture: str, fields: Mapping[str, str], fixed: Mapping[str, Any]
) -> Any:
    """Translates our config to the family's equivalent config.

    Raises:
        ConversionError: If the family cannot express a field; the message names the first.
    """
    refuse_other(name, config, fixed)
    translated = {theirs: getattr(config, ours) for theirs, ours in fields.items()}
    translated["rope_parameters"] = dict(config.rope_parameters or {})
    config_class = _config_class(architecture)
    if config.head_dim != config.hidden_size // config.num_attention_heads or hasattr(config_class, "head_dim"):
        translated["head_dim"] = config.head_dim
    if "sliding_window" in fields:
        if hasattr(config_class, "use_sliding_window"):
            translated["use_sliding_window"] = config.sliding_window is not None
            translated["layer_types"] = config.layer_types
        elif config.sliding_window is not None and "full_attention" in (config.layer_types or []):
            raise ConversionError(
                f"{name} cannot express `layer_types={config.layer_types!r}`: its window applies to every layer."
            )
    if name == "smollm3":
        translated["no_rope_layers"] = [1] * config.num_hidden_layers
    try:
        return config_class(architectures=[architecture], **translated, **common_fields_out(config))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConversionError(f"{name} cannot express this config: {error}") from error


def _config_class(architecture: str) -> Any:
    return getattr(transformers, architecture).config_class


def _state_dict(model: Any) -> State:
    return model.state_dict()


def _add_output_bias(state: State, config: dict[str, Any]) -> State:
    """Adds zero biases for the output projections to Qwen2's tensors, which have none."""
    biases = {
        name.replace("o_proj.weight", "o_proj.bias"): tensor.new_zeros(tensor.shape[0])
        for name, tensor in state.items()
        if name.endswith("self_attn.o_proj.weight")
    }
    return {**state, **biases}


def _drop_output_bias(model: Any) -> State:
    """Returns the model's tensors without the output projections' biases.

    Raises:
        ConversionError: If one of these biases is not zero.
    """
    kept = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("self_attn.o_proj.bias"):
            kept[name] = tensor
        elif torch.count_nonzero(tensor):
            raise ConversionError(
                f"qwen2 cannot express `{name}`, which is not zero: it has no bias on the output projection."
            )
    return kept


def _family(
    name: str, architecture: str, own_fields: tuple[str, ...], fixed: dict[str, Any], **tensors: Any
) -> ModelFamily:
    parts: dict[str, Any] = {
        "name": name,
        "architecture": architecture,
        "fields": {**CONFIG_FIELDS, **{field: field for field in own_fields}},
        "fixed": {**LLAMA_ARCHITECTURE, **fixed},
    }
    return ModelFamily(
        **{"tensors_out": _state_dict, **tensors},
        **parts,
        config_in=partial(_read_config, **parts),
        config_out=partial(_write_config, **parts),
    )


LLAMA_FAMILIES = (
    _family(
        "llama",
        "LlamaForCausalLM",
        ("attention_bias", "mlp_bias"),
        {"qk_norm": False, "sliding_window": None},
    ),
    _family(
        "mistral",
        "MistralForCausalLM",
        ("sliding_window",),
        {"qk_norm": False, "attention_bias": False, "mlp_bias": False},
    ),
    _family(
        "qwen2",
        "Qwen2ForCausalLM",
        ("sliding_window",),
        {"qk_norm": False, "attention_bias": True, "mlp_bias": False},
        tensors_in=_add_output_bias,
        tensors_out=_drop_output_bias,
    ),
    _family("qwen3", "Qwen3ForCausalLM", ("attention_bias", "sliding_window"), {"qk_norm": True, "mlp_bias": False}),
    _family("smollm3", "SmolLM3ForCausalLM", ("attention_bias", "mlp_bias", "sliding_window"), {"qk_norm": False}),
)
