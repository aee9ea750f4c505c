"""CPU attention for two cases where `sdpa` is slow: one token against a short cache, and many requests per step."""

import itertools
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .operators import operator

# If "flash" is in the name, transformers builds no mask over all requests; any other custom implementation it excludes
# from continuous batching.
ATTENTION = "flash_on_cpu"
# Caches of fixed size with more positions than this may be mostly empty: attention reads what is filled. A shorter one is
# read whole by a kernel that `torch.compile` makes.
_SHORT_CACHE = 256
# The most keys, in numbers, that explicit operations in bfloat16 read: they make a copy of that size.
_MOST_KEYS = 2**24
# Queries of a prompt that are multiplied at once.
_BLOCK = 128


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Replaces `sdpa` by `attend_on_cpu` in a model, in place; leaves models with other implementations unchanged."""
    # Flash kernels do not support chunked attention, so transformers would refuse our implementation because of its
    # name.
    chunked = getattr(model.config, "attention_chunk_size", None) is not None
    if model.config._attn_implementation == "sdpa" and not chunked:
        # Not `set_attn_implementation`: it takes a name with "flash" for a kernel on the Hub.
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
    """transformers' `sdpa`, or explicit operations or a loop over requests where these are faster.

    Args:
        module: The attention layer.
        query: (batch, num_attention_heads, new, head_dim); in a paged step (1, num_attention_heads, queries of all
            requests, head_dim).
        key: (batch, num_key_value_heads, seq, head_dim); in a paged step only the new keys.
        value: Shaped like the keys.
        attention_mask: (batch, 1, new, seq), or None.
        scaling: Factor of the scores; None means 1 / sqrt(head_dim).
        cache: transformers' `PagedAttentionCache`, in a paged step. Since transformers 5.24 the layer has already updated it.
        cu_seq_lens_q: (requests + 1,), the offsets of each request's queries, in a paged step.
        **kwargs: Further arguments from transformers; in a paged step `read_index` and `cu_seq_lens_k`.

    Returns:
        (batch, new, num_attention_heads, head_dim), and None for the weights.
    """
    if cu_seq_lens_q is not None and "read_index" in kwargs:
        return _by_request(module, query, key, value, scaling, cache, cu_seq_lens_q, **kwargs), None
    plain = not module.training and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    masked = attention_mask is not None and attention_mask.dtype == torch.bool
    if query.shape[2] == 1 and plain and (masked or attention_mask is None):
        if torch.compiler.is_compiling():
            if masked and key.shape[2] > _SHORT_CACHE:
                return _to_filled(query, key, value, attention_mask, scaling), None
            return _to_compile(query, key, value, attention_mask, scaling), None
        if query.shape[1] > key.shape[1]:
            return _of_groups(query, key, value, attention_mask, scaling), None
        if attention_mask is None and _explicit_is_faster(key):
            return _from_one(query, key, value, scaling), None
    elif (
        attention_mask is not None
        and masked
        and plain
        and key.shape[2] > max(_SHORT_CACHE, query.shape[2])
        and not torch.compiler.is_compiling()
    ):
        key, value, attention_mask = _filled(key, value, attention_mask)
    if attention_mask is None and plain and _blocks_are_faster(module, query, key):
        return _in_blocks(query, key, value, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _blocks_are_faster(module: nn.Module, query: torch.Tensor, key: torch.Tensor) -> bool:
    return (
        key.shape[2] == query.shape[2] >= 2 * _BLOCK
        and query.dtype in (torch.float32, torch.bfloat16)
        and getattr(module, "is_causal", False)
        and getattr(module, "sliding_window", None) is None
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )


def _in_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention of a long prompt: blocks of queries against the keys up to their end, with oneDNN's products.

    `sdpa` multiplies with MKL, which is slow on AMD's processors: for 9 heads on 3 and 512 positions, it takes 7.0
    milliseconds and this 2.9 (docs/log.md).

    Args:
        query: (batch, num_attention_heads, seq, head_dim).
        key: (batch, num_key_value_heads, seq, head_dim).
        value: Shaped like the keys.
        scaling: Factor of the scores; None means 1 / sqrt(head_dim).

    Returns:
        (batch, seq, num_attention_heads, head_dim).
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    scaling = size**-0.5 if scaling is None else scaling
    product = operator("mkldnn._linear_pointwise.default")
    # Sums and probabilities of bfloat16 are in float32, as in `sdpa`.
    rows = (query.float() * scaling).view(batch, groups, -1, length, size)
    keys, values = key.float().contiguous(), value.float().transpose(2, 3).contiguous()
    output = torch.empty(batch, length, groups, heads // groups, size)
    hidden = torch.full((_BLOCK, _BLOCK), float("-inf")).triu(1)
    # A last block of another length would make oneDNN compile kernels for each length of a prompt.
    whole = length - length % _BLOCK
    for begin in range(0, whole, _BLOCK):
        end = begin + _BLOCK
        for row, group in itertools.product(range(batch), range(groups)):
            block = rows[row, group, :, begin:end].reshape(-1, size)
            scores = product(block, keys[row, group, :end], None, "none", [], "").view(-1, _BLOCK, end)
            scores[..., begin:] += hidden
            weights = scores.softmax(-1).view(-1, end)
            found = product(weights, values[row, group, :, :end].contiguous(), None, "none", [], "")
            output[row, begin:end, group] = found.view(-1, _BLOCK, size).transpose(0, 1)
    output = output.view(batch, length, heads, size).to(query.dtype)
    if whole < length:
        mask = _mask(length - whole, length, None, query.device)
        rest = nn.functional.scaled_dot_product_attention(
            query[:, :, whole:], key, value, attn_mask=mask, scale=scaling, enable_gqa=groups < heads
        )
        output[:, whole:] = rest.transpose(1, 2)
    return output


def _filled(
    key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys, values and mask without the positions behind the last that a query sees; no mask where one query sees all.

    Args:
        key: (batch, num_key_value_heads, seq, head_dim).
        value: Shaped like the keys.
        mask: (batch, 1, new, seq), True for visible keys.
    """
    # Any row may be the one that sees most: a row of padding sees nothing.
    visible = mask.any(2).any(0).flatten() if mask.shape[0] > 1 or mask.shape[2] > 1 else mask.flatten()
    length = int(visible.nonzero()[-1]) + 1 if visible.any() else key.shape[2]
    key, value, mask = key.narrow(2, 0, length), value.narrow(2, 0, length), mask.narrow(3, 0, length)
    return key, value, None if mask.shape[2] == 1 and mask.all() else mask


@torch.library.custom_op("chatgpt_hf::attend_to_filled", mutates_args=())
def _to_filled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of one query in a compiled step, without the empty end of a cache of fixed size.

    How much is filled changes with every token, so it is not compiled: with 8,192 positions and 100 of them filled, the
    compiled kernel would read 80 times as much. Arguments as for `_to_compile`.
    """
    key, value, visible = _filled(key, value, mask)
    if query.shape[1] > key.shape[1]:
        return _of_groups(query, key, value, visible, scaling).contiguous()
    if visible is None and key.dtype == torch.bfloat16 and _explicit_is_faster(key):
        return _from_one(query, key, value, scaling).contiguous()
    output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling)
    return output.transpose(1, 2).contiguous()


@_to_filled.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    batch, heads, _, size = query.shape
    return query.new_empty((batch, 1, heads, size))


def _explicit_is_faster(key: torch.Tensor) -> bool:
    if key.dtype == torch.bfloat16:
        # `sdpa` multiplies a single row of bfloat16 slowly: 462 microseconds for 9 heads and 512 positions, 194 explicitly.
        return key.numel() <= _MOST_KEYS
    return key.dtype == torch.float32 and key.stride(2) > key.stride(1)


def _of_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention of one query whose heads share keys: the heads of a group are the rows of one `sdpa`.

    `sdpa` itself reads the keys again for each head of a group, row by row. For 9 heads that share 3, eight rows and 64
    positions, this takes 59 microseconds instead of 83, and in bfloat16 75 instead of 504 (docs/log.md).

    Args:
        query: (batch, num_attention_heads, 1, head_dim).
        key: (batch, num_key_value_heads, seq, head_dim).
        value: Shaped like the keys.
        mask: (batch, 1, 1, seq), True for visible keys; None means all are visible.
        scaling: Factor of the scores; None means 1 / sqrt(head_dim).
    """
    batch, heads, _, size = query.shape
    rows = query.reshape(batch, key.shape[1], -1, size)
    output = nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(batch, 1, heads, size)


def _from_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Attention of one query, written out; for keys that are stored by position, as in a new `GrowingCache`, or in bfloat16.

    Reads keys and values in the order of positions. `sdpa` reads them head by head: for eight rows of 40 positions, a layer of
    GPT-2-small takes 370 microseconds with `sdpa` and 240 with this (docs/log.md).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # (seq, batch, heads, head_dim), and one position of queries.
    query, key, value = (states.permute(2, 0, 1, 3) for states in (query * scaling, key, value))
    weights = (key * query).sum(-1, keepdim=True).softmax(0)
    return (value * weights).sum(0).unsqueeze(1)


def _to_compile(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention of one query that `torch.compile` can fuse with its surroundings into one kernel, unlike `sdpa`.

    Args:
        query: (batch, num_attention_heads, 1, head_dim).
        key: (batch, num_key_value_heads, seq, head_dim).
        value: Shaped like the keys.
        mask: (batch, 1, 1, seq), True for visible keys; None means all are visible.
        scaling: Factor of the scores; None means 1 / sqrt(head_dim).
    """
    batch, heads, _, size = query.shape
    # Heads that share keys are rows of one product.
    rows = query.reshape(batch, key.shape[1], -1, size)
    scores = rows @ key.transpose(2, 3) * (size**-0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).reshape(batch, 1, heads, size)


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
    """Calls `sdpa` for each request; returns (1, queries of all requests, num_attention_heads, head_dim).

    transformers computes each query against the keys of all requests and then masks foreign ones, so its cost grows
    with the square of the number of requests (figures in docs/log.md).

    Args:
        module: The attention layer.
        query: See `attend_on_cpu`.
        key: See `attend_on_cpu`.
        value: See `attend_on_cpu`.
        scaling: See `attend_on_cpu`.
        cache: See `attend_on_cpu`.
        cu_seq_lens_q: See `attend_on_cpu`.
        sliding_window: Positions that a query sees, including its own; None means all.
        **kwargs: Further arguments from transformers, including `cu_seq_lens_k`.
    """
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx, kwargs)
    outputs = []
    spans = zip(
        itertools.pairwise(cu_seq_lens_q.tolist()), itertools.pairwise(kwargs["cu_seq_lens_k"].tolist()), strict=True
    )
    for (first, end), (first_key, end_key) in spans:
        mask = _mask(end - first, end_key - first_key, sliding_window, query.device)
        states = query[:, :, first:end], key[:, :, first_key:end_key], value[:, :, first_key:end_key]
        output, _ = sdpa_attention_forward(module, *states, mask, scaling=scaling, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """A mask (queries, keys), True if a query sees a key; both end at the same position. None if `sdpa` needs none."""
    if (window is None or keys <= window) and queries in (1, keys):
        return None
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


AttentionInterface.register(ATTENTION, attend_on_cpu)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
