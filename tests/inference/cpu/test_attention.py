"""Our attention gives the same results as the model's, and is used only in the cases meant for it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, GrowingCache, use_cpu_kernels
from chatgpt_hf.inference.cpu import attention
from chatgpt_hf.inference.cpu.attention import ATTENTION, attend_on_cpu
from chatgpt_hf.model.modeling_chatgpt import eager_attention_forward

MODULE: Any = SimpleNamespace(num_key_value_groups=1, training=False, is_causal=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Records the shapes of the queries that reach transformers' `sdpa`."""
    seen: list[tuple[int, ...]] = []
    original = attention.sdpa_attention_forward

    def count(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(query.shape))
        return original(module, query, *args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", count)
    return seen


def states(
    queries: int, heads: int = 4, *, by_position: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query = torch.randn(3, 4, queries, 8)
    if by_position:
        key, value = torch.randn(2, 20, 3, heads, 8).permute(0, 2, 3, 1, 4)
    else:
        key, value = torch.randn(2, 3, heads, 20, 8)
    return query, key, value


@pytest.mark.parametrize("scaling", [8**-0.5, 0.1])
def test_one_query_against_attention_by_its_equation(calls: list[Any], scaling: float) -> None:
    query, key, value = states(1)
    output, weights = attend_on_cpu(MODULE, query, key, value, None, scaling=scaling)
    expected, _ = eager_attention_forward(MODULE, query, key, value, None, scaling=scaling)
    torch.testing.assert_close(output, expected)
    assert weights is None
    assert calls == []
    if scaling == 8**-0.5:
        torch.testing.assert_close(attend_on_cpu(MODULE, query, key, value, None)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_that_share_keys_and_bfloat16(
    calls: list[Any], dtype: torch.dtype, heads: int, by_position: bool, masked: bool
) -> None:
    """Every form of a decoding step against the equation in float32; only unshared keys with a mask reach `sdpa`."""
    states_of = [part.to(dtype) for part in states(1, heads, by_position=by_position)]
    mask = torch.rand(3, 1, 1, 20) > 0.3 if masked else None
    additive = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    module = SimpleNamespace(**vars(MODULE) | {"num_key_value_groups": 4 // heads})
    expected, _ = eager_attention_forward(module, *(part.float() for part in states_of), additive, scaling=0.3)
    output, _ = attend_on_cpu(module, *states_of, mask, scaling=0.3)
    assert output.dtype == dtype
    torch.testing.assert_close(
        output.float(), expected, **({} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.03})
    )
    assert bool(calls) == (heads == 4 and (masked or (dtype == torch.float32 and not by_position)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [2, 4])
def test_to_be_compiled_against_attention_by_its_equation(masked: bool, heads: int) -> None:
    query, key, value = states(1, heads, by_position=False)
    module = SimpleNamespace(**vars(MODULE) | {"num_key_value_groups": 4 // heads})
    mask = torch.rand(3, 1, 1, 20) > 0.3 if masked else None
    additive = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    for scaling in (8**-0.5, 0.1):
        expected, _ = eager_attention_forward(module, query, key, value, additive, scaling=scaling)
        torch.testing.assert_close(attention._to_compile(query, key, value, mask, scaling), expected)
    assert attention._to_compile(query, key, value, mask, None).shape == expected.shape


@pytest.mark.parametrize("case", ["several queries", "by heads", "a mask", "a bias", "float16", "training"])
def test_everything_else_is_left_to_sdpa(calls: list[Any], case: str) -> None:
    query, key, value = states(5 if case == "several queries" else 1, by_position=case != "by heads")
    mask = torch.rand(3, 1, 1, 20) > 0.3 if case == "a mask" else None
    bias = torch.randn(3, 4, 1, 20) if case == "a bias" else None
    if case == "float16":
        query, key, value = query.half(), key.half(), value.half()
    module = SimpleNamespace(
        **vars(MODULE) | {"training": case == "training", "num_key_value_groups": 4 // key.shape[1]}
    )
    output, _ = attend_on_cpu(module, query, key, value, mask, scaling=0.3, position_bias=bias)
    assert calls
    reference = torch.ones(5, 20, dtype=torch.bool).tril() if case == "several queries" else mask
    added = bias if reference is None else torch.zeros(reference.shape).masked_fill(~reference, -torch.inf)
    expected, _ = eager_attention_forward(module, query, key, value, added, scaling=0.3)
    torch.testing.assert_close(output, expected, **({"rtol": 0.02, "atol": 0.02} if case == "float16" else {}))


def test_a_model_with_kernels_answers_by_it(calls: list[Any]) -> None:
    """Layers call `sdpa` once for the prompt, then not until the buffer is laid out by head; ids do not change."""
    config = ChatGPTConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256
    )
    model = ChatGPTForCausalLM(config).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    ids = torch.randint(2, 64, (3, 16))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, max_new_tokens=150, **options)
    assert calls == []
    assert use_cpu_kernels(model).config._attn_implementation == ATTENTION
    model.generate(ids, max_new_tokens=64, past_key_values=GrowingCache(config), **options)
    assert calls == [(3, 4, 16, 8)] * 2
    assert model.generate(ids, max_new_tokens=150, past_key_values=GrowingCache(config), **options).equal(expected)
    assert {shape[2] for shape in calls} == {16, 1}


def test_a_model_with_kernels_is_batched_continuously_from_python() -> None:
    """Calls only `generate_batch`, without setting an attention implementation."""
    config = ChatGPTConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256
    )
    model = ChatGPTForCausalLM(config).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    prompts = [torch.randint(2, 64, (length,)).tolist() for length in (3, 30, 9)]
    generation = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)
    alone = [
        model.generate(torch.tensor([ids]), generation_config=generation)[0, len(ids) :].tolist() for ids in prompts
    ]
    sizes = ContinuousBatchingConfig(use_cuda_graph=False, page_size=32, num_blocks=16, max_batch_tokens=256)
    found = use_cpu_kernels(model).generate_batch(prompts, generation, continuous_batching_config=sizes)
    assert [answer.generated_tokens for answer in found.values()] == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_filled_part_of_a_cache(dtype: torch.dtype, heads: int, padded: bool) -> None:
    query = torch.randn(3, 4, 1, 8, dtype=dtype)
    key, value = torch.randn(2, 3, heads, 300, 8, dtype=dtype)
    mask = torch.zeros(3, 1, 1, 300, dtype=torch.bool)
    mask[..., :20] = True
    if padded:
        mask[1, ..., :7] = False
    output = attention._to_filled(query, key, value, mask, None)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(output, expected, atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=1.6e-2)
    torch.library.opcheck(attention._to_filled, (query, key, value, mask, None))


def test_a_prompt_in_a_cache_of_fixed_size(calls: list[Any]) -> None:
    query = torch.randn(3, 4, 5, 8)
    key, value = torch.randn(2, 3, 2, 300, 8)
    mask = torch.zeros(3, 1, 5, 300, dtype=torch.bool)
    mask[..., :20] = torch.ones(5, 20, dtype=torch.bool).tril(15)
    # A row of padding sees nothing.
    mask[2, 0, 0] = False
    seen = attention._filled(key, value, mask)
    assert [part.shape[2 if part.dtype != torch.bool else 3] for part in seen if part is not None] == [20, 20, 20]
    module: Any = SimpleNamespace(num_key_value_groups=2, training=False, is_causal=True)
    output, _ = attend_on_cpu(module, query, key, value, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(output[:2], expected[:2].transpose(1, 2))
    assert calls == [(3, 4, 5, 8)]
