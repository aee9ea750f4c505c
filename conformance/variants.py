"""Small configurations that together have every part of a chatgpt model."""

from typing import Any

from chatgpt_hf import ChatGPTConfig
from chatgpt_hf.model.configuration_chatgpt import GPT2_ARCHITECTURE

# Each variant's name in the tables, and its fields.
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2_ARCHITECTURE,
    "modern": {},
    "sinusoidal": {
        "position_embedding_type": "sinusoidal",
        "hidden_act": "relu",
        "norm_type": "layernorm",
        "qk_norm": False,
    },
    "gqa-sliding": {
        "num_key_value_heads": 2,
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention"],
        "gated_mlp": True,
        "hidden_act": "silu",
        "final_logit_softcapping": 15.0,
    },
}


# About the sizes of transformers' testers.
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_config(variant: str, **overrides: Any) -> ChatGPTConfig:
    """A tiny configuration of the variant."""
    return ChatGPTConfig(**{**SIZES, **VARIANTS[variant], **overrides})
