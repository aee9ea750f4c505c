"""Folders to export: models with random weights and a tokenizer that llama.cpp supports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, train_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}
GATED = {"gated_mlp": True, "hidden_act": "silu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {"embedding_norm": True, "embedding_residual": True, "final_logit_softcapping": 15.0},
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "sliding": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "norm_bias": True,
        "hidden_act": "gelu_new",
        "gated_mlp": False,
        "attention_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "llama": {**GATED, "qk_norm": False, "tie_word_embeddings": False},
    "llama with biases": {**GATED, "qk_norm": False, "attention_bias": True, "mlp_bias": True},
    "llama stretched": {
        **GATED,
        "qk_norm": False,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    },
    "qwen3": {**GATED, "head_dim": 32},
}


@pytest.fixture(scope="session")
def digits_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that splits numbers into groups of three digits."""
    texts = ["Once upon a time there were 123 cats and 4567 dogs, and it's 89 years ago.", "你好，世界", "    if x:\n"]
    return train_tokenizer(texts * 4, 340, max_digits=3, show_progress=False)


@pytest.fixture(scope="session")
def saved(digits_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a folder with a model of the given variant and the tokenizer."""

    def save(variant: str, tokenizer: PreTrainedTokenizerBase = digits_tokenizer, **overrides: Any) -> Path:
        torch.manual_seed(0)
        config = ChatGPTConfig(**{**SIZES, "vocab_size": len(tokenizer), **VARIANTS[variant], **overrides})
        model = ChatGPTForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        folder = tmp_path_factory.mktemp("saved")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save
