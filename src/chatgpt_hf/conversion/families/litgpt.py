"""litgpt's `lit_model.pth` and `model_config.yaml`: decoders with rotary positions, shaped like GPT-2 or Llama.

One matrix, `attn.qkv`, contains all queries, then all keys, then all values. In checkpoints of 2024 and earlier it is
named `attn.attn` and interleaved by groups of queries that share a key and a value (Lightning-AI/litgpt#1013).
"""

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional

from ...errors import CheckpointError, ConversionError
from ...model.configuration_chatgpt import ChatGPTConfig
from ...parsing import parse_yaml, read_file
from .family import FileFamily, State, refuse_other
from .fused import FusedNames, causal_attention, is_state_dict, layer_norm, linear, without_wrappers
from .pickles import read_pickle

CONFIG_NAME = "model_config.yaml"
_OUTSIDE = {"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head"}
_IN_EVERY_LAYER = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.proj": "self_attn.o_proj",
    "attn.norm_q": "self_attn.q_norm",
    "attn.norm_k": "self_attn.k_norm",
    "mlp.proj": "mlp.down_proj",
}
GATED_NAMES = FusedNames(
    "litgpt", _OUTSIDE, {**_IN_EVERY_LAYER, "mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj"}, "attn.qkv"
)
PLAIN_NAMES = FusedNames("litgpt", _OUTSIDE, {**_IN_EVERY_LAYER, "mlp.fc": "mlp.up_proj"}, "attn.qkv")

# Maps litgpt's fields to ours with the same meaning.
CONFIG_FIELDS = {
    "padded_vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "head_size": "head_dim",
    "n_query_groups": "num_key_value_heads",
    "n_embd": "hidden_size",
    "intermediate_size": "intermediate_size",
    "norm_eps": "norm_eps",
    "norm_qk": "qk_norm",
    "sliding_window_size": "sliding_window",
    "final_logit_softcapping": "final_logit_softcapping",
}
# litgpt's defaults of the fields that affect the computation.
DEFAULTS: dict[str, Any] = {
    "name": "",
    "block_size": 4096,
    "n_layer": 16,
    "n_embd": 4096,
    "n_head": 32,
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "norm_qk": False,
    "mlp_class_name": "GptNeoxMLP",
    "gelu_approximate": "none",
    "bias": True,
    "attn_bias": False,
    "rope_base": 10000,
    "rope_condense_ratio": 1,
    "rope_adjustments": None,
    "sliding_window_size": None,
    "sliding_window_indices": None,
    "final_logit_softcapping": None,
    "rotary_percentage": 0.25,
    "parallel_residual": True,
}
# litgpt fields of which our model supports only one value. Fields that appear nowhere in this file must be empty.
ONLY: dict[str, Any] = {
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "norm_1": True,
    "norm_2": True,
    "norm_qk_type": "default",
}
# Fields that do not affect the computation of the supported models.
SILENT = {
    "hf_config",
    "vocab_size",
    "padding_multiple",
    "rope_n_elem",
    "n_expert_per_token",
    "moe_intermediate_size",
    "routed_scaling_factor",
    "norm_topk_prob",
}
# litgpt always has these values.
FIXED_FIELDS: dict[str, Any] = {
    "position_embedding_type": "rope",
    "embedding_norm": False,
    "embedding_residual": False,
    "ngram_vocab_sizes": None,
    "conv_kernel_size": None,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
}
GELUS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}


def read_litgpt(file: Path) -> tuple[dict[str, Any], State]:
    """Reads a `lit_model.pth` and the `model_config.yaml` next to it; converts the older layout to the current one.

    Raises:
        CheckpointError: If one of the two is missing or not from litgpt.
        ConversionError: If the weights are a pickle that would run code.
    """
    config_file = file.parent / CONFIG_NAME
    try:
        config = parse_yaml(read_file(config_file))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file} does not contain the fields of a litgpt config.")
    found = read_pickle(file)
    state = found.get("model", found) if isinstance(found, dict) else None
    if not is_state_dict(state):
        raise CheckpointError(f"{file} is not a litgpt checkpoint: it is not a dict of named tensors.")
    state = without_wrappers(state)
    embedding = state.get("transformer.wte.weight")
    if embedding is None:
        raise CheckpointError(f"{file} is not a litgpt checkpoint: `transformer.wte.weight` is missing.")
    if any("lora_" in name for name in state):
        raise ConversionError(f"{file} contains LoRA weights: merge them first with `litgpt merge_lora`.")
    head = state.get("lm_head.weight")
    config = {**DEFAULTS, **config}
    derived = {
        "padded_vocab_size": embedding.shape[0],
        "n_query_groups": config["n_head"],
        "head_size": config["n_embd"] // config["n_head"],
        "intermediate_size": 4 * config["n_embd"],
    }
    config |= {name: value for name, value in derived.items() if config.get(name) is None}
    if head is not None and torch.equal(head, embedding):
        del state["lm_head.weight"]
    return config, {name.replace(".attn.attn.", ".attn.qkv."): _today(name, t, config) for name, t in state.items()}


def _today(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Reorders the older, interleaved matrix to all queries, all keys, all values; returns other tensors unchanged."""
    if ".attn.attn." not in name:
        return tensor
    groups, size = config["n_query_groups"], config["head_size"]
    per_group = config["n_head"] // groups
    if tensor.shape[0] != groups * (per_group + 2) * size:
        raise CheckpointError(
            f"{name} has {tensor.shape[0]} rows, but {CONFIG_NAME} asks for {groups * (per_group + 2) * size}."
        )
    # (groups, the group's queries, key and value, head_size, ...)
    heads = tensor.reshape(groups, per_group + 2, size, *tensor.shape[1:])
    parts = heads.split([per_group, 1, 1], dim=1)
    return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])


def read_litgpt_config(config: dict[str, Any]) -> dict[str, Any]:
    """Translates litgpt's config to ours.

    Raises:
        ConversionError: If chatgpt models do not support a field's value; the message names the first.
    """
    config = {**DEFAULTS, **config}
    if config.get("attention_scores_scalar") == config["head_size"]:
        config["attention_scores_scalar"] = None
    for name, value in config.items():
        known = name in CONFIG_FIELDS or name in DEFAULTS or name in SILENT
        if (name in ONLY and value != ONLY[name]) or (value and not known and name not in ONLY):
            only = f" (only `{name}={ONLY[name]!r}`)" if name in ONLY else ""
            raise ConversionError(
                f"This litgpt checkpoint has `{name}={value!r}`, which chatgpt models do not compute{only}."
            )
    gated = {"GptNeoxMLP": None, "LLaMAMLP": "silu", "GemmaMLP": GELUS.get(config["gelu_approximate"])}
    norms = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
    for name, values in (("mlp_class_name", gated), ("norm_class_name", norms), ("gelu_approximate", GELUS)):
        if config[name] not in values:
            raise ConversionError(
                f"This litgpt checkpoint has `{name}={config[name]!r}`; chatgpt models support only {', '.join(values)}."
            )
    norm = norms[config["norm_class_name"]]
    named = str(config["name"])
    if ("Gemma" in named and norm == "rmsnorm") or ("OLMo" in named and norm == "layernorm"):
        raise ConversionError(
            f"This litgpt checkpoint has `name={named!r}`; litgpt gives such models norms that chatgpt models do not "
            "compute."
        )
    if config["norm_qk"] and norm != "rmsnorm":
        raise ConversionError(
            "This litgpt checkpoint has `norm_qk` with LayerNorm; chatgpt models support only RMSNorm there."
        )
    sliding = _sliding_layers(config)
    activation = gated[config["mlp_class_name"]]
    return {
        **FIXED_FIELDS,
        **{ours: config[theirs] for theirs, ours in CONFIG_FIELDS.items()},
        "norm_type": norm,
        "norm_bias": norm == "layernorm",
        "gated_mlp": activation is not None,
        "hidden_act": activation or GELUS[config["gelu_approximate"]],
        "attention_bias": bool(config["bias"] or config["attn_bias"]),
        "mlp_bias": bool(config["bias"]),
        "rope_parameters": _rope_in(config),
        "sliding_window": config["sliding_window_size"] if any(sliding) else None,
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in sliding],
        "model_type": ChatGPTConfig.model_type,
    }


def _sliding_layers(config: dict[str, Any]) -> list[bool]:
    if config["sliding_window_size"] is None:
        return [False] * config["n_layer"]
    return [bool(slides) for slides in config["sliding_window_indices"] or [1] * config["n_layer"]]


def _rope_in(config: dict[str, Any]) -> dict[str, Any]:
    """Translates litgpt's three fields to transformers' rope parameters."""
    rope = {"rope_theta": float(config["rope_base"]), "rope_type": "default"}
    adjustments = config["rope_adjustments"] or {}
    ratio = config["rope_condense_ratio"]
    if ratio != 1 and adjustments:
        raise ConversionError(
            f"This litgpt checkpoint has both `rope_condense_ratio={ratio}` and `rope_adjustments={adjustments}`, which "
            "chatgpt models do not compute."
        )
    if ratio != 1 or adjustments.keys() == {"factor"}:
        return {**rope, "rope_type": "linear", "factor": float(adjustments.get("factor", ratio))}
    if adjustments.keys() == {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}:
        return {
            **rope,
            "rope_type": "llama3",
            "factor": float(adjustments["factor"]),
            "low_freq_factor": float(adjustments["low_freq_factor"]),
            "high_freq_factor": float(adjustments["high_freq_factor"]),
            "original_max_position_embeddings": adjustments["original_max_seq_len"],
        }
    if adjustments:
        raise ConversionError(
            f"This litgpt checkpoint has `rope_adjustments={adjustments}`; chatgpt models support only linear scaling and "
            "Llama 3's."
        )
    return rope


def to_litgpt_config(config: ChatGPTConfig) -> dict[str, Any]:
    """Translates our config to the equivalent litgpt config.

    Raises:
        ConversionError: If litgpt cannot express a field; the message names the first.
    """
    refuse_other("litgpt", config, {**FIXED_FIELDS, "norm_bias": config.norm_type == "layernorm"})
    if config.qk_norm and config.norm_type != "rmsnorm":
        raise ConversionError("litgpt cannot express `qk_norm=True` with `norm_type='layernorm'`.")
    if config.mlp_bias and not config.attention_bias:
        raise ConversionError("litgpt cannot express `mlp_bias=True` with `attention_bias=False`.")
    gelus = {ours: theirs for theirs, ours in GELUS.items()}
    if config.gated_mlp and config.hidden_act == "silu":
        mlp, gelu = "LLaMAMLP", "none"
    elif config.hidden_act in gelus:
        mlp, gelu = "GemmaMLP" if config.gated_mlp else "GptNeoxMLP", gelus[config.hidden_act]
    else:
        raise ConversionError(
            f"litgpt cannot express `hidden_act={config.hidden_act!r}` with `gated_mlp={config.gated_mlp}`; it supports "
            f"'silu' only with `gated_mlp=True`, and {' and '.join(map(repr, gelus))} with both."
        )
    sliding = [kind == "sliding_attention" for kind in config.layer_types or []]
    return {
        "name": "chatgpt",
        "hf_config": {},
        "vocab_size": config.vocab_size,
        **{theirs: getattr(config, ours) for theirs, ours in CONFIG_FIELDS.items()},
        "norm_class_name": "LayerNorm" if config.norm_type == "layernorm" else "RMSNorm",
        "mlp_class_name": mlp,
        "gelu_approximate": gelu,
        "bias": config.mlp_bias,
        "attn_bias": config.attention_bias,
        "sliding_window_indices": [int(slides) for slides in sliding] if any(sliding) else None,
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        **_rope_out(config.rope_parameters or {}),
    }


def _rope_out(rope: dict[str, Any]) -> dict[str, Any]:
    base = {"rope_base": rope["rope_theta"], "rope_condense_ratio": 1, "rope_adjustments": None}
    if rope["rope_type"] == "linear":
        return {**base, "rope_adjustments": {"factor": rope["factor"]}}
    if rope["rope_type"] == "llama3":
        adjustments = {name: rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor")}
        adjustments["original_max_seq_len"] = rope["original_max_position_embeddings"]
        return {**base, "rope_adjustments": adjustments}
    if rope["rope_type"] != "default":
        raise ConversionError(f"litgpt cannot express `rope_parameters` with `rope_type={rope['rope_type']!r}`.")
    return base


def _names(config: dict[str, Any]) -> FusedNames:
    return PLAIN_NAMES if config["mlp_class_name"] == "GptNeoxMLP" else GATED_NAMES


def _read_tensors(state: State, config: dict[str, Any]) -> State:
    keys = config["n_query_groups"] * config["head_size"]
    ours = _names(config).read(state, (config["n_head"] * config["head_size"], keys, keys))
    if config["attn_bias"] and not config["bias"]:
        # litgpt has biases only on queries, keys and values; our models also have one on the output.
        for index in range(config["n_layer"]):
            name = f"model.layers.{index}.self_attn.o_proj."
            ours[name + "bias"] = ours[name + "weight"].new_zeros(config["n_embd"])
    return ours


def _write_tensors(model: Any) -> State:
    state = model.state_dict()
    if model.config.attention_bias and not model.config.mlp_bias:
        for name in [name for name in state if name.endswith("self_attn.o_proj.bias")]:
            if torch.count_nonzero(state.pop(name)):
                raise ConversionError(
                    f"litgpt cannot express `{name}` without `mlp_bias` unless it is zero: its field `bias` sets both."
                )
    return (GATED_NAMES if model.config.gated_mlp else PLAIN_NAMES).write(state)


def _write(folder: Path, config: dict[str, Any], state: State) -> None:
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    torch.save({"model": state}, folder / "lit_model.pth")


def litgpt_logits(config: dict[str, Any], state: State, ids: torch.Tensor) -> torch.Tensor:
    """Computes a pre-norm decoder with rotary positions (Su et al. 2021) on litgpt's tensors."""
    eps, silu = config["norm_eps"], config["mlp_class_name"] == "LLaMAMLP"
    rms = config["norm_class_name"] == "RMSNorm"
    size, query_heads, groups = config["head_size"], config["n_head"], config["n_query_groups"]
    cos, sin = _rotation(config, ids.shape[1])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        if not rms:
            return layer_norm(state, name, x, eps)
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * state[f"{name}.weight"]

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x, approximate=config["gelu_approximate"])

    x = functional.embedding(ids, state["transformer.wte.weight"])
    for index, slides in enumerate(_sliding_layers(config)):
        layer = f"transformer.h.{index}."
        heads = linear(state, layer + "attn.qkv", norm(layer + "norm_1", x)).unflatten(-1, (-1, size)).transpose(1, 2)
        query, key, value = heads.split([query_heads, groups, groups], dim=1)
        if config["norm_qk"]:
            query, key = norm(layer + "attn.norm_q", query), norm(layer + "attn.norm_k", key)
        window = config["sliding_window_size"] if slides else None
        x = x + linear(state, layer + "attn.proj", causal_attention(turn(query), turn(key), value, window))
        normed = norm(layer + "norm_2", x)
        if config["mlp_class_name"] == "GptNeoxMLP":
            wide = gelu(linear(state, layer + "mlp.fc", normed))
        else:
            gate = linear(state, layer + "mlp.fc_1", normed)
            wide = (functional.silu(gate) if silu else gelu(gate)) * linear(state, layer + "mlp.fc_2", normed)
        x = x + linear(state, layer + "mlp.proj", wide)
    head = state.get("lm_head.weight", state["transformer.wte.weight"])
    logits = functional.linear(norm("transformer.ln_f", x), head)
    cap = config["final_logit_softcapping"]
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _rotation(config: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of each position, (length, head_size / 2)."""
    size, rope = config["head_size"], _rope_in(config)
    frequencies = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float) / size)
    if rope["rope_type"] == "linear":
        frequencies = frequencies / rope["factor"]
    elif rope["rope_type"] == "llama3":
        # Short waves, which fit many times into the original length, stay; long ones are stretched; a ramp is in
        # between.
        fits = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = ((fits - low) / (high - low)).clamp(0, 1)
        frequencies = kept * frequencies + (1 - kept) * frequencies / rope["factor"]
    angles = torch.arange(length, dtype=torch.float)[:, None] * frequencies
    return angles.cos(), angles.sin()


LITGPT = FileFamily(
    name="litgpt",
    weights_name="lit_model.pth",
    read=read_litgpt,
    write=_write,
    logits=litgpt_logits,
    config_in=read_litgpt_config,
    config_out=to_litgpt_config,
    tensors_in=_read_tensors,
    tensors_out=_write_tensors,
    fields=CONFIG_FIELDS,
    fixed=FIXED_FIELDS,
)
