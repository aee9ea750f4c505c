"""A tiny model and its inputs, as most tests of the model take them."""

from typing import Any

import torch
from torch import nn

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM

VOCAB = 67
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
POSITIONS = ["rope", "learned", "sinusoidal"]


def build(seed: int = 0, **overrides: Any) -> ChatGPTForCausalLM:
    """A tiny model with grouped keys, whose weights are wide enough for every part to show in the logits."""
    torch.manual_seed(seed)
    return ChatGPTForCausalLM(ChatGPTConfig(**{**TINY, **overrides})).eval()


def some_ids(rows: int = 2, length: int = 12, seed: int = 5) -> torch.Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor | None]:
    """The gradients by name, taken off the model."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(
    found: dict[str, torch.Tensor | None], expected: dict[str, torch.Tensor | None], tolerance: float = 1e-5
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            assert (found[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-3), name
