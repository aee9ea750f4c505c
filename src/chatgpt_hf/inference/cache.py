"""Keys and values that are written once and kept between calls: `DynamicCache` copies all of them for every token."""

from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Positions of a new buffer beside those that are there. What is not written to takes no memory of its own, but an allocator that
# lays a freed buffer under it does: with 256, 32 rows of GPT-2-small peaked at 680 MB, with 64 at 395.
_ROOM = 64
# Buffers of up to so many positions hold one after another, (seq, batch, heads, head_dim), larger ones by heads: the first is read
# faster by the attention written out, and the second by `sdpa`, from about 128 positions on (docs/log.md).
_BY_POSITION = 128


class GrowingLayer(DynamicLayer):
    """transformers' layer that grows, in a buffer with room for more.

    `keys` and `values` are views of the buffers, (batch, num_key_value_heads, seq, head_dim), so that all that the base class
    does with them stays right; after an operation that replaces them the next token moves them into new buffers.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends (batch, num_key_value_heads, new, head_dim) and returns all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if not self._fit(key_states.shape[0], length):
            # Twice the length, so that each position is copied once more at most on the average.
            room = length + max(_ROOM, before)
            keys, values = _new_buffer(key_states, room), _new_buffer(value_states, room)
            if before:
                keys[:, :, :before], values[:, :, :before] = self.keys, self.values
            self._buffers = keys, values
        assert self._buffers is not None
        keys, values = self._buffers
        # By `narrow`, which is one operation where a subscript is three.
        keys.narrow(2, before, length - before).copy_(key_states)
        values.narrow(2, before, length - before).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, length), values.narrow(2, 0, length)
        return self.keys, self.values

    def _fit(self, batch_size: int, length: int) -> bool:
        """Whether the keys are still the beginning of a buffer that has room for so many positions."""
        if self._buffers is None or not self.keys.numel():
            return False
        keys, _ = self._buffers
        return (
            self.keys.data_ptr() == keys.data_ptr()
            and self.keys.shape[0] == keys.shape[0] == batch_size
            and length <= keys.shape[-2]
        )


def _new_buffer(states: torch.Tensor, room: int) -> torch.Tensor:
    """(batch, num_key_value_heads, room, head_dim), like such states."""
    batch_size, heads, _, size = states.shape
    if room <= _BY_POSITION:
        return states.new_empty((room, batch_size, heads, size)).permute(1, 2, 0, 3)
    return states.new_empty((batch_size, heads, room, size))


class GrowingCache(DynamicCache):
    """`DynamicCache` for `generate(past_key_values=...)` whose full-attention layers do not copy what they hold.

    Args:
        config: Of the model; the layers of other kinds (windows, convolutions) are transformers' own.
    """

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether a model takes a `DynamicCache`; one with a state of its own kind, as Mamba, does not."""
    return not model._is_stateful and model._supports_default_dynamic_cache()


def growing_cache(model: PreTrainedModel) -> dict[str, GrowingCache]:
    """A new `GrowingCache` as `generate` takes it; nothing where the model takes none."""
    return {"past_key_values": GrowingCache(model.config)} if keeps_keys_and_values(model) else {}


class PrefixCache:
    """Keys and values of what a model has seen, so that a prompt which begins as the last one did costs only what is new in it.

    Args:
        model: Any causal language model. One that keeps no keys and values computes every prompt anew.

    Attributes:
        processed_tokens: That the model computed, in all calls.
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
            **kwargs: For `generate`.

        Returns:
            (1, seq + new), as `generate` does.
        """
        if not keeps_keys_and_values(self._model):
            sequence = self._model.generate(input_ids, **kwargs)
            self.processed_tokens += sequence.shape[1] - 1
            return sequence
        cache = self.take(input_ids[0].tolist())
        sequence = self._model.generate(input_ids, past_key_values=cache, **kwargs)
        self.keep(cache, sequence[0].tolist())
        return sequence

    def take(self, prompt: list[int]) -> GrowingCache:
        """A cache of as much of the prompt as is known, all but its last token at most."""
        cache, ids, self._cache = self._cache, self._ids, None
        # The last token has to be computed again: its logits are not kept.
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt[:-1], strict=False)))
        if cache is not None and common:
            try:
                cache.crop(common - len(ids))
            except RuntimeError:
                # What a sliding window let go does not come back.
                common = 0
        if cache is None or not common:
            cache, common = GrowingCache(self._model.config), 0
            cache.activate_past_recording()
        self.processed_tokens -= common
        return cache

    def keep(self, cache: GrowingCache, ids: list[int]) -> None:
        """Takes a cache back after it has seen the first of the ids, as many as it is long."""
        self._cache, self._ids = cache, ids[: cache.get_seq_length()]
        self.processed_tokens += len(self._ids)
