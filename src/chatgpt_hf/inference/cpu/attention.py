"""Attention on a CPU where transformers' `sdpa` is slow: one new position to a few others, and many requests in one step."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# transformers takes an implementation with "flash" in its name for one that needs no mask over all requests, and any other but
# its own for one that cannot be batched continuously.
ATTENTION = "flash_on_cpu"


def use_cpu_attention(model: PreTrainedModel) -> None:
    """`attend_on_cpu` in the place of `sdpa`, in place; a model that attends otherwise is left as it is."""
    # Flash attention's kernels cannot attend in chunks, for which transformers refuses an implementation by its name.
    chunked = getattr(model.config, "attention_chunk_size", None) is not None
    if model.config._attn_implementation == "sdpa" and not chunked:
        # Not `set_attn_implementation`, which takes a name with "flash" in it for a kernel of the Hub.
        model.config._attn_implementation = ATTENTION


def attend_on_cpu(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cache: Any = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa`, written out or request by request where that is faster.

    Args:
        module: The attention layer.
        query: (batch, num_attention_heads, new, head_dim); of a paged step (1, num_attention_heads, queries of all requests,
            head_dim).
        key: (batch, num_key_value_heads, seq, head_dim); of a paged step those of the queries alone.
        value: As the keys.
        attention_mask: (batch, 1, new, seq), or None.
        scaling: Of the scores; None means 1 / sqrt(head_dim).
        cache: transformers' `PagedAttentionCache`, of a paged step.
        cu_seq_lens_q: (requests + 1,), where each request's queries begin, of a paged step.
        **kwargs: What else transformers hands on.

    Returns:
        (batch, new, num_attention_heads, head_dim), and None for the weights.
    """
    if cache is not None and cu_seq_lens_q is not None:
        return _by_request(module, query, key, value, scaling, cache, cu_seq_lens_q, **kwargs), None
    plain = not module.training and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if query.shape[2] == 1 and query.shape[1] == key.shape[1] and query.dtype == torch.float32 and plain:
        if torch.compiler.is_compiling() and (attention_mask is None or attention_mask.dtype == torch.bool):
            return _to_compile(query, key, value, attention_mask, scaling), None
        if key.stride(2) > key.stride(1) and attention_mask is None:
            return _from_one(query, key, value, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _from_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Attention of one query to keys that lie position after position, as a new `GrowingCache` keeps them.

    They are read from one place to the end, and so are the values. `sdpa` reads them head by head, and of GPT-2-small takes 370
    microseconds a layer for eight rows of 40 positions where this takes 240 (docs/log.md).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # (seq, batch, heads, head_dim), and one position of queries.
    query, key, value = (states.permute(2, 0, 1, 3) for states in (query * scaling, key, value))
    weights = (key * query).sum(-1, keepdim=True).softmax(0)
    return (value * weights).sum(0).unsqueeze(1)


def _to_compile(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention of one query as `torch.compile` makes one kernel of it, with what comes before and after (`sdpa` stays `sdpa`).

    Args:
        query: (batch, heads, 1, head_dim).
        key: (batch, heads, seq, head_dim).
        value: As the keys.
        mask: (batch, 1, 1, seq), True where a key is seen; None means all.
        scaling: None means 1 / sqrt(head_dim).
    """
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def _by_request(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    cache: Any,
    cu_seq_lens_q: torch.Tensor,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """(1, queries of all requests, num_attention_heads, head_dim), `sdpa` for each request.

    transformers' own computes each query against the keys of all requests and masks the others', which grows with the square
    of their number (docs/log.md has the figures).

    Args:
        module: The attention layer.
        query: As `attend_on_cpu` takes it.
        key: As well.
        value: As well.
        scaling: As well.
        cache: As well.
        cu_seq_lens_q: As well.
        sliding_window: Positions that a query sees, its own among them; None means all.
        **kwargs: `cu_seq_lens_k` is one of them.
    """
    key, value = cache.update(key, value, module.layer_idx, kwargs)
    outputs = []
    spans = zip(pairwise(cu_seq_lens_q.tolist()), pairwise(kwargs["cu_seq_lens_k"].tolist()), strict=True)
    for (first, end), (first_key, end_key) in spans:
        mask = _mask(end - first, end_key - first_key, sliding_window, query.device)
        states = query[:, :, first:end], key[:, :, first_key:end_key], value[:, :, first_key:end_key]
        output, _ = sdpa_attention_forward(module, *states, mask, scaling=scaling, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """(queries, keys), True where a query sees a key, the last of both being the same position; None where `sdpa` needs none."""
    if (window is None or keys <= window) and queries in (1, keys):
        return None
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


AttentionInterface.register(ATTENTION, attend_on_cpu)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
