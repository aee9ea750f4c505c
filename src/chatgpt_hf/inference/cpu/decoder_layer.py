"""A decoder layer in as few operations as possible: for one token, starting them takes longer than computing them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from ..cache import GrowingCache
from .attention import ATTENTION, attend_on_cpu
from .layers import PackedLinear, SharedLinear

# Layers that compute norm, attention, add, norm, feed-forward, add, if they have these parts and no others.
_LAYERS = ("ChatGPTDecoderLayer", "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
_NORMS = ("ChatGPTRMSNorm", "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")
_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP_PARTS = {"up_proj", "down_proj", "act_fn"}

# Cosines and sines, as a model gives them to its layers.
Positions = tuple[torch.Tensor, torch.Tensor]


class _Rotation:
    """Turns queries and keys together; what all layers need for one step is computed once."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def _factors(self, positions: Positions) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each (batch, seq, 1, head_dim); the sines of the first half are negative."""
        cos, sin = positions
        last = self._last
        if last is None or last[0] is not cos:
            first, second = sin.chunk(2, dim=-1)
            self._last = last = cos, cos.unsqueeze(2), torch.cat((-first, second), dim=-1).unsqueeze(2)
        return last[1], last[2]

    def __call__(self, heads: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Rotates heads (batch, seq, heads, head_dim)."""
        cos, sin = self._factors(positions)
        return (heads * cos).addcmul_(heads.roll(heads.shape[-1] // 2, -1), sin)


class _Norm:
    """Root mean square norm of the last dimension in four operations instead of eight, computed in float32.

    Args:
        weight: (size,), or (heads, size) for heads with different weights.
        eps: Added to the mean square.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        size = weight.shape[-1]
        # x / sqrt(mean(x²) + eps) = sqrt(size) * x / sqrt(|x|² + size * eps).
        self._weight = weight.detach().float() * size**0.5
        self._least = torch.tensor((eps * size) ** 0.5)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32).hypot_(self._least)
        normed = (states / length).mul_(self._weight)
        return normed if states.dtype == torch.float32 else normed.to(states.dtype)


class FastLayer:
    """The `forward` of a decoder layer whose linear layers are packed.

    Computes what the layer's own `forward` computes, up to the order of sums, and calls that one for everything else:
    while compiling, with paged attention, other attention functions, or hooks on its parts.

    Args:
        layer: A layer that `is_fast` accepts.
        rotation: Shared by all layers of a model.
    """

    def __init__(self, layer: Any, rotation: _Rotation) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._parts = tuple(layer.children())
        self._slow: Callable[..., torch.Tensor] = layer.forward
        self._attention, self._mlp, self._index = attention, mlp, attention.layer_idx
        self._rotate, self._config = rotation, attention.config
        self._norm, self._mlp_norm = (
            _Norm(norm.weight, norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        self._gated = getattr(mlp, "gate_proj", None) is not None
        self._qkv, self._up = attention.q_proj.packed, mlp.gate_proj.packed if self._gated else mlp.up_proj
        self._output, self._down, self._activation = attention.o_proj, mlp.down_proj, mlp.act_fn
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        self._query_heads = attention.q_proj.out_features // self._head_dim
        self._key_heads = attention.k_proj.out_features // self._head_dim
        self._head_norm = None
        if (query_norm := getattr(attention, "q_norm", None)) is not None:
            weights = [query_norm.weight] * self._query_heads + [attention.k_norm.weight] * self._key_heads
            self._head_norm = _Norm(torch.stack(weights), query_norm.variance_epsilon)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: Positions | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(batch, seq, hidden) to the same shape; arguments as transformers' decoder layers take them."""
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        if (
            torch.compiler.is_compiling()
            or position_embeddings is None
            or self._config._attn_implementation != ATTENTION
            or kwargs.get("cu_seq_lens_q") is not None
            or not (cache is None or isinstance(cache, Cache))
            or any(part._forward_hooks or part._forward_pre_hooks for part in self._parts)
        ):
            return self._slow(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **kwargs
            )
        batch, length, _ = hidden_states.shape
        heads = self._qkv(self._norm(hidden_states)).view(batch, length, -1, self._head_dim)
        # `split_with_sizes` is one operation; `narrow` would be one for each part, and `split` begins in Python.
        turned, value = heads.split_with_sizes((self._query_heads + self._key_heads, self._key_heads), 2)
        if self._head_norm is not None:
            turned = self._head_norm(turned)
        query, key = self._rotate(turned, position_embeddings).split_with_sizes(
            (self._query_heads, self._key_heads), 2
        )
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if type(cache) is GrowingCache:
            # Without the questions that a cache asks for other kinds of layers.
            key, value = cache.layers[self._index].update(key, value)
        elif cache is not None:
            key, value = cache.update(key, value, self._index)
        attended, _ = attend_on_cpu(self._attention, query, key, value, attention_mask, scaling=self._scaling)
        hidden_states = self._output(attended.reshape(batch, length, -1)).add_(hidden_states)
        inner = self._up(self._mlp_norm(hidden_states))
        if self._gated:
            gate, up = inner.chunk(2, -1)
            inner = self._activation(gate).mul_(up)
        else:
            inner = self._activation(inner)
        return self._down(inner).add_(hidden_states)


def use_fast_layers(model: PreTrainedModel) -> None:
    """Gives the decoder layers of a packed model a faster `forward`, in place, where `is_fast` allows it."""
    rotation = _Rotation()
    for layer in model.modules():
        if is_fast(layer):
            layer.forward = FastLayer(layer, rotation)  # type: ignore[method-assign, assignment]


def is_fast(layer: Any) -> bool:
    """True if `FastLayer` can compute a layer: it has these parts and no others, and its linear layers are packed."""
    if type(layer).__name__ not in _LAYERS or _parts(layer) != _PARTS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    parts, mlp_parts = _parts(attention), _parts(mlp)
    shared = [getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")]
    packed = [attention.o_proj, mlp.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if parts == _ATTENTION_PARTS | _HEAD_NORMS:
        norms += [attention.q_norm, attention.k_norm]
    elif parts != _ATTENTION_PARTS:
        return False
    if mlp_parts == _MLP_PARTS | {"gate_proj"}:
        shared += [mlp.gate_proj, mlp.up_proj]
    elif mlp_parts == _MLP_PARTS:
        packed.append(mlp.up_proj)
    else:
        return False
    return (
        all(isinstance(linear, SharedLinear) for linear in shared)
        and all(isinstance(linear, PackedLinear) for linear in packed)
        and all(type(norm).__name__ in _NORMS and getattr(norm, "bias", None) is None for norm in norms)
        and attention.is_causal
        and getattr(attention, "sliding_window", None) is None
    )


def _parts(module: nn.Module) -> set[str]:
    """The names of a module's parts and parameters; `nn.Dropout` does nothing at inference."""
    children = {name for name, child in module.named_children() if not isinstance(child, nn.Dropout)}
    return children | {name for name, _ in module.named_parameters(recurse=False)}
