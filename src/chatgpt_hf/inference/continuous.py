"""transformers' continuous batching: what it can do with a model, how large its pages are, and attention for a CPU."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import ConfigError
from .attention import ONE_QUERY

# Positions in a page of keys and values.
PAGE = 32
# transformers takes an implementation with "flash" in its name for one that needs no mask over all requests, and any other but
# its own for one that cannot be batched continuously.
ATTENTION = "flash_by_request"
# Parameters that it does not apply, with the values that change nothing.
_IGNORED = {"repetition_penalty": 1.0, "min_p": 0.0, "bad_words_ids": None, "watermarking_config": None}


def check_continuous_batching(model: PreTrainedModel, config: GenerationConfig, otherwise: str) -> None:
    """Refuses what would be ignored, or computed wrongly.

    Args:
        model: To be batched.
        config: Its generation parameters.
        otherwise: For the message: how to do without continuous batching.

    Raises:
        ConfigError: Naming the parameter or the field.
    """
    ignored = [name for name, neutral in _IGNORED.items() if getattr(config, name) not in (None, neutral)]
    if ignored:
        other = ", or with --repetition_penalty 1" if ignored == ["repetition_penalty"] else ""
        raise ConfigError(f"Continuous batching cannot apply {', '.join(ignored)}: {otherwise}{other}.")
    if getattr(model.config, "conv_kernel_size", None) or getattr(model.config, "ngram_vocab_sizes", None):
        raise ConfigError(
            "Continuous batching keeps keys and values alone, and a model with convolutions or n-grams needs more of the "
            f"past: {otherwise}."
        )


def prepare_batching(model: PreTrainedModel, context: int, max_concurrent: int) -> dict[str, Any]:
    """Fields of `ContinuousBatchingConfig` for so many requests of so many positions at a time.

    Elsewhere than on an NVIDIA GPU the model attends request by request from now on.
    """
    if model.device.type == "cuda":
        return {}
    if model.config._attn_implementation in ("sdpa", ONE_QUERY):
        model.config._attn_implementation = ATTENTION
    # On a CPU transformers would take most of the machine's memory.
    pages = math.ceil(min(context, 4096) / PAGE) + 1
    return {"page_size": PAGE, "num_blocks": max_concurrent * pages, "max_batch_tokens": max(512, context)}


def attend_by_request(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cache: Any = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa` for each request of a paged step; without a paged cache the same as `sdpa`.

    transformers' own computes each query against the keys of all requests and masks the others', which grows with the square
    of their number (docs/performance.md has the figures).

    Args:
        module: The attention layer.
        query: (1, num_attention_heads, queries of all requests, head_dim).
        key: (1, num_key_value_heads, queries of all requests, head_dim).
        value: As the keys.
        attention_mask: Of a call without a paged cache.
        scaling: Of the scores.
        cache: transformers' `PagedAttentionCache`.
        cu_seq_lens_q: (requests + 1,), where each request's queries begin.
        sliding_window: Positions that a query sees, its own among them; None means all.
        **kwargs: What else transformers hands on; `cu_seq_lens_k` is one of them.

    Returns:
        (1, queries of all requests, num_attention_heads, head_dim), and None for the weights.
    """
    if cache is None or cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    key, value = cache.update(key, value, module.layer_idx, kwargs)
    outputs = []
    spans = zip(pairwise(cu_seq_lens_q.tolist()), pairwise(kwargs["cu_seq_lens_k"].tolist()), strict=True)
    for (first, end), (first_key, end_key) in spans:
        mask = _mask(end - first, end_key - first_key, sliding_window, query.device)
        states = query[:, :, first:end], key[:, :, first_key:end_key], value[:, :, first_key:end_key]
        output, _ = sdpa_attention_forward(module, *states, mask, scaling=scaling, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """(queries, keys), True where a query sees a key, the last of both being the same position; None where `sdpa` needs none."""
    if (window is None or keys <= window) and queries in (1, keys):
        return None
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


AttentionInterface.register(ATTENTION, attend_by_request)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
