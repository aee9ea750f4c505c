"""Attention of one new position to a few others, written out: `sdpa` is slow on a CPU when keys and values come from memory."""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ONE_QUERY = "sdpa_or_written_out"


def attend_from_one(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa`, but written out for one float32 query to keys that lie position after position, as a new
    `GrowingCache` keeps them.

    Then keys and values are each read from one place to the end. `sdpa` reads them head by head, and of GPT-2-small takes 370
    microseconds a layer for eight rows of 40 positions, where this takes 240 (docs/performance.md).

    Args:
        module: The attention layer.
        query: (batch, num_attention_heads, new, head_dim).
        key: (batch, num_key_value_heads, seq, head_dim).
        value: As the keys.
        attention_mask: (batch, 1, new, seq), or None.
        scaling: Of the scores; None means 1 / sqrt(head_dim).
        **kwargs: What else transformers hands on.

    Returns:
        (batch, new, num_attention_heads, head_dim), and None for the weights.
    """
    if (
        query.shape[2] != 1
        or attention_mask is not None
        or key.shape[1] != query.shape[1]
        or key.stride(2) <= key.stride(1)
        or query.dtype != torch.float32
        or module.training
    ):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # (seq, batch, heads, head_dim), and one position of queries.
    query, key, value = (states.permute(2, 0, 1, 3) for states in (query * scaling, key, value))
    weights = (key * query).sum(-1, keepdim=True).softmax(0)
    return (value * weights).sum(0)[:, None], None


AttentionInterface.register(ONE_QUERY, attend_from_one)
AttentionMaskInterface.register(ONE_QUERY, sdpa_mask)
