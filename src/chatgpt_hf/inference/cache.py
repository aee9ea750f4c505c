"""Caches that append in place and can be kept between calls; `DynamicCache` copies everything for every token."""

from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..model.modeling_chatgpt import CACHE_NAME

# Minimum number of free positions in a new buffer. Untouched pages cost nothing, but a recycled buffer is already
# resident: with 256, 32 rows of GPT-2-small peaked at 680 MB, with 64 at 395.
_ROOM = 64
# Buffers of up to this many positions are laid out by position, (seq, batch, heads, head_dim), which suits our
# explicit attention; larger ones by head, which suits `sdpa`. The latter is faster from about 128 positions
# (docs/log.md).
_BY_POSITION = 128


class GrowingLayer(DynamicLayer):
    """transformers' `DynamicLayer` in a buffer with free space.

    `keys` and `values` are views of the buffers, (batch, num_key_value_heads, seq, head_dim), so all operations of the
    base class work. If an operation replaces them, the next token moves them into new buffers.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values, (batch, num_key_value_heads, new, head_dim), and returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if not self._fit(key_states.shape[0], length):
            # Double the length, so that each position is copied at most once more on average.
            room = length + max(_ROOM, before)
            keys, values = _new_buffer(key_states, room), _new_buffer(value_states, room)
            if before:
                keys[:, :, :before], values[:, :, :before] = self.keys, self.values
            self._buffers = keys, values
        assert self._buffers is not None
        keys, values = self._buffers
        # `narrow` is one operation; a subscript would be three.
        keys.narrow(2, before, length - before).copy_(key_states)
        values.narrow(2, before, length - before).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, length), values.narrow(2, 0, length)
        return self.keys, self.values

    def _fit(self, batch_size: int, length: int) -> bool:
        """True if the keys are still the beginning of the buffer, and it has room for `length` positions."""
        if self._buffers is None or not self.keys.numel():
            return False
        keys, _ = self._buffers
        return (
            self.keys.data_ptr() == keys.data_ptr()
            and self.keys.shape[0] == keys.shape[0] == batch_size
            and length <= keys.shape[-2]
        )


def _new_buffer(states: torch.Tensor, room: int) -> torch.Tensor:
    """An empty buffer, (batch, num_key_value_heads, room, head_dim), with the dtype and device of `states`."""
    batch_size, heads, _, size = states.shape
    if room <= _BY_POSITION:
        return states.new_empty((room, batch_size, heads, size)).permute(1, 2, 0, 3)
    return states.new_empty((batch_size, heads, room, size))


class GrowingCache(DynamicCache):
    """A `DynamicCache` for `generate` (as `past_key_values` or `cache`) whose full-attention layers grow without copying.

    Args:
        config: The model's config. Layers of other kinds (windows, convolutions) stay transformers' own.
    """

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """True if a model can use a `DynamicCache`; a model with another kind of state, such as Mamba, cannot."""
    return not model._is_stateful and model._supports_default_dynamic_cache()


def growing_cache(model: PreTrainedModel) -> dict[str, GrowingCache]:
    """A new `GrowingCache` as an argument of `generate`; empty if the model cannot use one."""
    return {CACHE_NAME: GrowingCache(model.config)} if keeps_keys_and_values(model) else {}


def shared_length(ids: list[int], prompt: list[int]) -> int:
    """The number of tokens with which a computed text and a prompt begin, at most all but the prompt's last token.

    The last token must be computed again, because its logits are not kept.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt[:-1], strict=False)))


class PrefixCache:
    """Keeps keys and values between calls, so that a prompt that begins like the last one costs only its new tokens.

    Args:
        model: Any causal language model. A model without keys and values computes every prompt from the start.

    Attributes:
        processed_tokens: Number of tokens that the model computed in all calls.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.processed_tokens = 0
        self._model = model
        self._cache: GrowingCache | None = None
        self._ids: list[int] = []

    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """`model.generate` for one row.

        Args:
            input_ids: (1, seq).
            **kwargs: Passed to `generate`.

        Returns:
            (1, seq + new), as from `generate`.
        """
        if not keeps_keys_and_values(self._model):
            sequence = self._model.generate(input_ids, **kwargs)
            self.processed_tokens += sequence.shape[1] - 1
            return sequence
        cache = self.take(input_ids[0].tolist())
        sequence = self._model.generate(input_ids, **{CACHE_NAME: cache}, **kwargs)
        self.keep(cache, sequence[0].tolist())
        return sequence

    def take(self, prompt: list[int]) -> GrowingCache:
        """Returns a cache with the known beginning of the prompt, at most all but its last token."""
        cache, ids, self._cache = self._cache, self._ids, None
        common = shared_length(ids, prompt)
        if cache is not None and common:
            try:
                cache.crop(common - len(ids))
            except RuntimeError:
                # A sliding window has already dropped the earlier positions.
                common = 0
            # Cropping also drops what a window had kept before it, and a later crop beyond that is not refused.
            if any(
                layer.is_sliding and layer.keys.shape[-2] < min(common, layer.sliding_window - 1)
                for layer in cache.layers
            ):
                common = 0
        if cache is None or not common:
            cache, common = GrowingCache(self._model.config), 0
            cache.activate_past_recording()
        self.processed_tokens -= common
        return cache

    def keep(self, cache: GrowingCache, ids: list[int]) -> None:
        """Takes back a cache; it contains the first of the ids, as many as its length."""
        self._cache, self._ids = cache, ids[: cache.get_seq_length()]
        self.processed_tokens += len(self._ids)
