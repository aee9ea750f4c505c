"""GPT-2: one mapping translates the config, and renames, transposes and splits the weights, in both directions.

`ChatGPTForCausalLM.from_pretrained(gpt2_folder)` applies `GPT2_WEIGHT_MAPPING` in transformers' own loader, so shards,
`.bin`, dtypes and device maps work as for any model; `to_gpt2_state_dict` reverts the mapping with transformers'
`revert_weight_conversion`.
"""

from typing import Any

import torch
from transformers import GPT2Config
from transformers.core_model_loading import (
    Chunk,
    Transpose,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    revert_weight_conversion,
)

from ...errors import ConversionError
from ...model.configuration_chatgpt import GPT2_ARCHITECTURE, ChatGPTConfig
from ...model.modeling_chatgpt import ChatGPTForCausalLM
from .family import ModelFamily, State, common_fields_in, common_fields_out, refuse_other, refuse_uneven_heads

# Maps GPT-2's fields to ours with the same meaning.
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "resid_pdrop": "residual_dropout",
    "embd_pdrop": "embedding_dropout",
    "attn_pdrop": "attention_dropout",
    "layer_norm_epsilon": "norm_eps",
    "initializer_range": "initializer_range",
    "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
    "tie_word_embeddings": "tie_word_embeddings",
    "use_cache": "use_cache",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
# GPT-2 always has these values.
FIXED_FIELDS: dict[str, Any] = {
    **{name: value for name, value in GPT2_ARCHITECTURE.items() if name not in CONFIG_FIELDS.values()},
    "sliding_window": None,
    "final_logit_softcapping": None,
}

# GPT-2 features that our model lacks, with the value that turns each off.
UNSUPPORTED = {"reorder_and_upcast_attn": False, "add_cross_attention": False, "scale_attn_weights": True}

# From a GPT-2 checkpoint's names to ours. `Conv1D` stores (in, out), `nn.Linear` (out, in): hence the transpositions.
# The patterns do not start at the beginning of a key, so keys match with and without the `transformer.` prefix.
GPT2_WEIGHT_MAPPING: list[WeightTransform] = [
    WeightRenaming(r"^transformer\.", "model."),
    WeightRenaming(r"(?<!\w)wte\.", "embed_tokens."),
    WeightRenaming(r"(?<!\w)wpe\.", "embed_positions."),
    WeightRenaming(r"(?<!\w)ln_f\.", "norm."),
    WeightRenaming(r"(?<!\w)h\.", "layers."),
    WeightRenaming(r"\.ln_1\.", ".input_layernorm."),
    WeightRenaming(r"\.ln_2\.", ".post_attention_layernorm."),
    WeightConverter(r"\.mlp\.c_fc\.weight", r"\.mlp\.up_proj\.weight", operations=[Transpose(0, 1)]),
    WeightConverter(r"\.mlp\.c_proj\.weight", r"\.mlp\.down_proj\.weight", operations=[Transpose(0, 1)]),
    WeightConverter(r"\.attn\.c_proj\.weight", r"\.self_attn\.o_proj\.weight", operations=[Transpose(0, 1)]),
    WeightRenaming(r"\.mlp\.c_fc\.bias", ".mlp.up_proj.bias"),
    WeightRenaming(r"\.mlp\.c_proj\.bias", ".mlp.down_proj.bias"),
    WeightRenaming(r"\.attn\.c_proj\.bias", ".self_attn.o_proj.bias"),
    WeightConverter(
        ".attn.c_attn.weight",
        [".self_attn.q_proj.weight", ".self_attn.k_proj.weight", ".self_attn.v_proj.weight"],
        operations=[Transpose(0, 1), Chunk(dim=0)],
    ),
    WeightConverter(
        ".attn.c_attn.bias",
        [".self_attn.q_proj.bias", ".self_attn.k_proj.bias", ".self_attn.v_proj.bias"],
        operations=[Chunk(dim=0)],
    ),
]


def read_gpt2_config(config: dict[str, Any]) -> dict[str, Any]:
    """Translates a GPT-2 config.json to our config.

    Args:
        config: The file's content. Missing fields get `GPT2Config`'s defaults.

    Raises:
        ConversionError: If the checkpoint computes something that our model does not.
    """
    full = GPT2Config(**config).to_dict()
    for name, off in UNSUPPORTED.items():
        if full[name] != off:
            raise ConversionError(
                f"This GPT-2 checkpoint has `{name}={full[name]}`, which chatgpt models do not compute "
                f"(only `{name}={off}`). Load it with transformers' own GPT2LMHeadModel."
            )
    translated = {ours: full[theirs] for theirs, ours in CONFIG_FIELDS.items()}
    return {**GPT2_ARCHITECTURE, **translated, **common_fields_in(config), "model_type": ChatGPTConfig.model_type}


def to_gpt2_config(config: ChatGPTConfig) -> GPT2Config:
    """Translates our config to the equivalent GPT-2 config.

    Raises:
        ConversionError: If GPT-2 cannot express a field; the message names the first.
    """
    refuse_other("GPT-2", config, {**FIXED_FIELDS, "num_key_value_heads": config.num_attention_heads})
    refuse_uneven_heads("GPT-2", config)
    translated = {theirs: getattr(config, ours) for theirs, ours in CONFIG_FIELDS.items()}
    return GPT2Config(architectures=["GPT2LMHeadModel"], **translated, **common_fields_out(config))


def to_gpt2_state_dict(model: ChatGPTForCausalLM) -> State:
    """Returns the model's weights with GPT-2's names and layout, as `GPT2LMHeadModel` saves them."""
    # Loading a model leaves its transforms on it. A model that was not loaded has none, so transformers takes the
    # registered mapping for it.
    with torch.device("meta"):
        unread = ChatGPTForCausalLM(model.config)
    return revert_weight_conversion(unread, model.state_dict())


GPT2 = ModelFamily(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    config_in=read_gpt2_config,
    config_out=to_gpt2_config,
    tensors_out=to_gpt2_state_dict,
    fields=CONFIG_FIELDS,
    fixed=FIXED_FIELDS,
)
