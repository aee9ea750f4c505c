"""nanoGPT's `ckpt.pt`: GPT-2 with the exact GELU, and without any bias if trained with `bias=False`."""

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ...errors import CheckpointError, ConversionError
from ...model.configuration_chatgpt import GPT2_ARCHITECTURE, ChatGPTConfig
from .family import FileFamily, State, refuse_other, refuse_uneven_heads
from .fused import FusedNames, causal_attention, is_state_dict, layer_norm, linear, without_wrappers
from .pickles import read_pickle

NAMES = FusedNames(
    family="nanoGPT",
    modules={
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
    },
    layer_modules={
        "ln_1": "input_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    fused="attn.c_attn",
)
# Maps nanoGPT's fields to ours with the same meaning.
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
EPS = 1e-5
# Values that our fields must have; nanoGPT's `bias` and `dropout` each set several of our other fields.
FIXED_FIELDS: dict[str, Any] = {
    **{name: value for name, value in GPT2_ARCHITECTURE.items() if not name.endswith("_bias")},
    "norm_eps": EPS,
    "hidden_act": "gelu",
    "sliding_window": None,
    "final_logit_softcapping": None,
    "scale_attn_by_inverse_layer_idx": False,
}
BIASES = ("norm_bias", "attention_bias", "mlp_bias")
DROPOUTS = ("attention_dropout", "residual_dropout", "embedding_dropout")


def read_nanogpt(file: Path) -> tuple[dict[str, Any], State]:
    """Reads the `model_args` and tensors of a `ckpt.pt`; the tensors show whether the model has biases.

    Raises:
        CheckpointError: If the file is missing or not a nanoGPT checkpoint.
        ConversionError: If it is a pickle that would run code, or a nanochat checkpoint.
    """
    found = read_pickle(file)
    state = found.get("model") if isinstance(found, dict) else None
    args = found.get("model_args") if isinstance(found, dict) else None
    if not is_state_dict(state) or not isinstance(args, dict):
        if is_state_dict(found) and any(name.endswith("transformer.h.0.attn.c_q.weight") for name in found):
            raise ConversionError(
                f"{file} is a nanochat checkpoint, which chatgpt models cannot express; docs/conversion.md lists the missing "
                "features."
            )
        raise CheckpointError(
            f"{file} is not a nanoGPT checkpoint: it has no `model` with tensors and `model_args` as nanoGPT's train.py saves."
        )
    if missing := sorted(CONFIG_FIELDS.keys() - args.keys()):
        raise CheckpointError(f"{file}: `model_args` has no {', '.join(missing)}.")
    # Without flash attention, nanoGPT also saves the causal mask of each layer.
    state = {name: tensor for name, tensor in without_wrappers(state).items() if not name.endswith(".attn.bias")}
    # The head is tied to the embedding. nanoGPT saves both; one is enough.
    head, embedding = state.pop("lm_head.weight", None), state.get("transformer.wte.weight")
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise ConversionError(
            f"{file}: `lm_head.weight` differs from `transformer.wte.weight`, but nanoGPT ties them."
        )
    return {**args, "bias": any(name.endswith("attn.c_attn.bias") for name in state)}, state


def read_nanogpt_config(args: dict[str, Any]) -> dict[str, Any]:
    """Translates nanoGPT's `model_args` to our config.

    Raises:
        ConversionError: If a field that only a fork has asks for something that nanoGPT does not compute.
    """
    for name, value in args.items():
        if name not in (*CONFIG_FIELDS, "bias", "dropout") and value:
            raise ConversionError(
                f"`model_args` has `{name}={value!r}`, which nanoGPT does not have: is this checkpoint from a fork?"
            )
    bias, dropout = bool(args.get("bias", True)), args.get("dropout", 0.0)
    return {
        **FIXED_FIELDS,
        **{ours: args[theirs] for theirs, ours in CONFIG_FIELDS.items()},
        **dict.fromkeys(BIASES, bias),
        **dict.fromkeys(DROPOUTS, dropout),
        "intermediate_size": 4 * args["n_embd"],
        "model_type": ChatGPTConfig.model_type,
    }


def to_nanogpt_config(config: ChatGPTConfig) -> dict[str, Any]:
    """Translates our config to the equivalent `model_args`.

    Raises:
        ConversionError: If nanoGPT cannot express a field; the message names the first.
    """
    same = {
        "num_key_value_heads": config.num_attention_heads,
        "intermediate_size": 4 * config.hidden_size,
        **dict.fromkeys(BIASES, config.norm_bias),
        **dict.fromkeys(DROPOUTS, config.residual_dropout),
    }
    refuse_other("nanoGPT", config, {**FIXED_FIELDS, **same})
    refuse_uneven_heads("nanoGPT", config)
    sizes = {theirs: getattr(config, ours) for theirs, ours in CONFIG_FIELDS.items()}
    return {**sizes, "bias": config.norm_bias, "dropout": config.residual_dropout}


def _read_tensors(state: State, args: dict[str, Any]) -> State:
    return NAMES.read(state, (args["n_embd"],) * 3)


def _write_tensors(model: Any) -> State:
    return NAMES.write({name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"})


def _write(folder: Path, args: dict[str, Any], state: State) -> None:
    # nanoGPT's `GPT` expects the tied weight under both names.
    model = {**state, "lm_head.weight": state["transformer.wte.weight"]}
    torch.save({"model": model, "model_args": args, "config": {}}, folder / "ckpt.pt")


def nanogpt_logits(args: dict[str, Any], state: State, ids: torch.Tensor) -> torch.Tensor:
    """Computes GPT-2 (Radford et al. 2019) on nanoGPT's tensors."""
    x = functional.embedding(ids, state["transformer.wte.weight"])
    x = x + state["transformer.wpe.weight"][: ids.shape[1]]
    for index in range(args["n_layer"]):
        layer = f"transformer.h.{index}."
        heads = linear(state, layer + "attn.c_attn", layer_norm(state, layer + "ln_1", x, EPS))
        query, key, value = (
            part.unflatten(-1, (args["n_head"], -1)).transpose(1, 2) for part in heads.chunk(3, dim=-1)
        )
        x = x + linear(state, layer + "attn.c_proj", causal_attention(query, key, value))
        wide = functional.gelu(linear(state, layer + "mlp.c_fc", layer_norm(state, layer + "ln_2", x, EPS)))
        x = x + linear(state, layer + "mlp.c_proj", wide)
    return functional.linear(layer_norm(state, "transformer.ln_f", x, EPS), state["transformer.wte.weight"])


NANOGPT = FileFamily(
    name="nanogpt",
    weights_name="ckpt.pt",
    read=read_nanogpt,
    write=_write,
    logits=nanogpt_logits,
    config_in=read_nanogpt_config,
    config_out=to_nanogpt_config,
    tensors_in=_read_tensors,
    tensors_out=_write_tensors,
    fields=CONFIG_FIELDS,
    fixed=FIXED_FIELDS,
)
