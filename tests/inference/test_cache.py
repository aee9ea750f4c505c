"""Caches that grow in place have the same content as transformers' caches after every operation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, GrowingCache, PrefixCache
from chatgpt_hf.inference.cache import GrowingLayer, growing_cache
from chatgpt_hf.model.modeling_chatgpt import CACHE_NAME

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def ours(**fields: Any) -> ChatGPTForCausalLM:
    return ChatGPTForCausalLM(ChatGPTConfig(**SIZES, max_position_embeddings=512, initializer_range=0.1, **fields))


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, initializer_range=0.1))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "ours": lambda: ours(num_key_value_heads=2),
    "window": lambda: ours(sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "convolutions": lambda: ours(conv_kernel_size=3),
    "llama": llama,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]().eval()


def rows(count: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(2, 64, (count, length))


def generate(model: PreTrainedModel, ids: torch.Tensor, cache: DynamicCache | None, **options: Any) -> torch.Tensor:
    fixed = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 40}
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, past_key_values=cache, **{**fixed, **options})


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 5}, {"max_new_tokens": 300}], ids=str
)
def test_the_same_ids(model: PreTrainedModel, options: dict[str, Any]) -> None:
    ids = rows()
    cache = GrowingCache(model.config)
    assert generate(model, ids, cache, **options).equal(generate(model, ids, None, **options))


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 4}, {"assistant": True}], ids=str)
def test_guesses_that_are_taken_back(options: dict[str, Any]) -> None:
    model = ours().eval()
    if options.pop("assistant", False):
        options["assistant_model"] = ours().eval()
    ids = rows(1)
    assert generate(model, ids, GrowingCache(model.config), **options).equal(generate(model, ids, None))


@torch.no_grad()
def test_every_operation_on_a_layer() -> None:
    """Compares with `DynamicCache` after each step: growing, cropping, selecting and repeating rows, resetting."""
    config = ChatGPTConfig(**SIZES)
    cache, reference = GrowingCache(config), DynamicCache(config=config)
    assert type(cache.layers[0]) is GrowingLayer

    def both(operation: Callable[[DynamicCache], Any]) -> None:
        operation(cache)
        operation(reference)
        for layer, expected in zip(cache.layers, reference.layers, strict=True):
            if expected.is_initialized:
                torch.testing.assert_close(layer.keys, expected.keys, rtol=0, atol=0)
                torch.testing.assert_close(layer.values, expected.values, rtol=0, atol=0)
        assert cache.get_seq_length() == reference.get_seq_length()

    def grow(batch: int, length: int) -> None:
        for index in range(2):
            keys, values = torch.randn(2, batch, 4, length, 8)
            both(lambda target, k=keys, v=values, i=index: target.update(k, v, i))

    # The buffer is laid out by position first, then by head.
    for length in (40, 1, 3, 100, 1, 1, 400, 1):
        grow(2, length)
    keys: torch.Tensor = cache.layers[0].keys
    assert keys.stride(2) < keys.stride(1)
    both(lambda target: target.crop(-5))
    grow(2, 3)
    both(lambda target: target.batch_repeat_interleave(2))
    grow(4, 1)
    both(lambda target: target.reorder_cache(torch.tensor([3, 0, 1, 1])))
    grow(4, 2)
    both(lambda target: target.batch_select_indices(torch.tensor([0, 2])))
    grow(2, 1)
    # The result is a view of the first rows; the cache must not mistake it for the whole buffer.
    both(lambda target: target.batch_select_indices(slice(0, 1)))
    grow(1, 1)
    both(lambda target: target.reset())
    grow(3, 2)
    keys = cache.layers[0].keys
    assert keys.stride(2) > keys.stride(1)


def test_nothing_is_copied_while_there_is_room() -> None:
    layer = GrowingLayer()
    keys, values = torch.randn(2, 1, 4, 10, 8)
    layer.update(keys, values)
    place = layer.keys.data_ptr()
    for _ in range(60):
        layer.update(keys[:, :, :1], values[:, :, :1])
    assert layer.keys.data_ptr() == place
    assert layer.get_seq_length() == 70


def test_a_prefix_is_computed_once(model: PreTrainedModel) -> None:
    first = rows(1, 30)
    second = torch.cat((first[:, :20], rows(1, 10)), dim=-1)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 6}
    prefix = PrefixCache(model)
    for ids in (first, second, second, torch.flip(first, (1,))):
        mask = torch.ones_like(ids)
        expected = model.generate(ids, attention_mask=mask, **options)
        assert prefix.generate(ids, attention_mask=mask, **options).equal(expected)
    # Each call computes its prompt and all new tokens but the last, 35. The second call shares 20 tokens with the
    # first; the third shares all of its prompt but the last token with the second.
    assert prefix.processed_tokens == 4 * 35 - 20 - 29


def test_a_model_with_a_state_of_its_own_kind_goes_without() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)).eval()
    assert growing_cache(model) == {}
    ids, options = rows(1), {"do_sample": False, "max_new_tokens": 5}
    expected = model.generate(ids, **options)
    prefix = PrefixCache(model)
    assert prefix.generate(ids, **options).equal(expected)
    assert prefix.processed_tokens == 16


def test_windows_keep_no_more_than_they_see() -> None:
    model = MODELS["window"]().eval()
    cache = growing_cache(model)[CACHE_NAME]
    generate(model, rows(), cache, max_new_tokens=60)
    assert cache.layers[0].keys.shape[-2] == 7
