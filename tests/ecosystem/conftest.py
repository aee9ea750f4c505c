"""Small models with random weights, saved as a user would save them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.model.configuration_chatgpt import GPT2_ARCHITECTURE

VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {"num_key_value_heads": 2},
    "gpt2": GPT2_ARCHITECTURE,
    "memories": {
        "conv_kernel_size": 3,
        "ngram_vocab_sizes": [500, 501],
        "embedding_norm": True,
        "embedding_residual": True,
        "sliding_window": 6,
        "tie_word_embeddings": False,
    },
}


@pytest.fixture(scope="session")
def folders(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each variant: a language model of three layers and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    saved = {}
    for name, variant in VARIANTS.items():
        torch.manual_seed(1)
        config = ChatGPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            # Large enough for each layer to matter to the logits.
            initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **variant,
        )
        model = ChatGPTForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # What starts at zero or one (convolutions, scales, norms) must matter too.
                if parameter.ndim != 2:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        saved[name] = tmp_path_factory.mktemp("ecosystem") / name
        model.save_pretrained(saved[name])
        tokenizer.save_pretrained(saved[name])
    return saved


@pytest.fixture(scope="session")
def folder(folders: dict[str, Path]) -> Path:
    """The modern variant."""
    return folders["modern"]
