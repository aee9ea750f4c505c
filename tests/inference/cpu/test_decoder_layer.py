"""A packed model's decoder layers compute what their own `forward` computes."""

import copy
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, GrowingCache, quantize_model, use_cpu_kernels
from chatgpt_hf.inference.cpu import attention
from chatgpt_hf.inference.cpu import packed_linear as kernels
from chatgpt_hf.inference.cpu.decoder_layer import FastLayer

SIZES = {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def _pack_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 0)


def make(family: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    options = {**SIZES, "num_key_value_heads": 2, "initializer_range": 0.2, **options}
    if family == "llama":
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(intermediate_size=96, **options))
    else:
        model = ChatGPTForCausalLM(ChatGPTConfig(**options))
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model.eval()


def fast_layers(model: PreTrainedModel) -> int:
    return sum(isinstance(layer.forward, FastLayer) for layer in model.model.layers)


def slow(model: PreTrainedModel) -> PreTrainedModel:
    """The same packed model with its layers' own `forward`."""
    for layer in model.model.layers:
        del layer.forward
    return model


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("ours", {}),
        ("ours", {"gated_mlp": True, "qk_norm": False, "hidden_act": "silu", "attention_bias": True}),
    ],
    ids=["llama", "biases", "ours", "gated"],
)
@torch.no_grad()
def test_logits_and_greedy_ids_are_the_same(family: str, options: dict[str, Any]) -> None:
    plain, fast = make(family, **options), use_cpu_kernels(make(family, **options))
    assert fast_layers(fast) == 2
    ids = torch.randint(101, (3, 9), generator=torch.Generator().manual_seed(1))
    # One row is padded on the left.
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    for given in (None, mask):
        seen = torch.ones_like(ids, dtype=torch.bool) if given is None else given.bool()
        found, expected = (model(ids, attention_mask=given).logits[seen] for model in (fast, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    greedy: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = plain.generate(ids, attention_mask=mask, **greedy)
    for cache in (GrowingCache(fast.config), StaticCache(fast.config, max_cache_len=29), None):
        assert fast.generate(ids, attention_mask=mask, past_key_values=cache, **greedy).equal(expected)


@torch.no_grad()
def test_hidden_states_and_eight_bits_are_the_same() -> None:
    ids = torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(1))
    fast = use_cpu_kernels(quantize_model(make("ours"), "int8"))
    found = fast(ids, output_hidden_states=True)
    expected = slow(fast)(ids, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    # Sums in another order can choose a neighbouring level.
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0.02 * expected.logits.abs().max().item())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not multiply bfloat16")
@torch.no_grad()
def test_bfloat16_is_as_exact_as_before() -> None:
    ids = torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(1))
    exact = make("ours")(ids).logits
    fast = use_cpu_kernels(make("ours").bfloat16())
    assert fast_layers(fast) == 2
    found = fast(ids).logits
    expected = slow(fast)(ids).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() < 1.2 * (expected.float() - exact).norm()


@torch.no_grad()
def test_who_looks_into_a_layer_gets_its_own_forward() -> None:
    """A hook on an attention layer, or attention that returns its weights, still sees what the model computes."""
    ids = torch.randint(101, (1, 7), generator=torch.Generator().manual_seed(1))
    model = use_cpu_kernels(make("ours"))
    seen = []
    handle = model.model.layers[1].self_attn.register_forward_hook(lambda *_: seen.append(1))
    expected = model(ids).logits
    assert seen == [1]
    handle.remove()
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    model.set_attn_implementation("eager")
    assert model(ids, output_attentions=True).attentions[1].shape == (1, 4, 7, 7)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_type": "layernorm"},
        {"position_embedding_type": "learned"},
        {"conv_kernel_size": 3},
        {"embedding_residual": True},
        {"sliding_window": 4},
    ],
    ids=lambda options: next(iter(options)),
)
@torch.no_grad()
def test_what_has_further_parts_stays(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = ChatGPTConfig(**SIZES, initializer_range=0.2, **options)
    plain = ChatGPTForCausalLM(config).eval()
    fast = use_cpu_kernels(copy.deepcopy(plain))
    # Without rotation, the fast `forward` calls the slow one.
    assert fast_layers(fast) == 0 or config.position_embedding_type == "learned"
    ids = torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [256, 300])
@torch.no_grad()
def test_long_prompts_in_blocks(dtype: torch.dtype, length: int) -> None:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(2, length, 4, 16, generator=draw).to(dtype).transpose(1, 2)
    key, value = (torch.randn(2, length, 2, 16, generator=draw).to(dtype).transpose(1, 2) for _ in range(2))
    module = SimpleNamespace(is_causal=True, training=False, num_key_value_groups=2)
    with patch.object(attention, "_in_blocks", wraps=attention._in_blocks) as blocks:
        found, _ = attention.attend_on_cpu(module, query, key, value, None, scaling=0.3)
    blocks.assert_called_once()
    expected = sdpa(query.float(), key.float(), value.float(), is_causal=True, scale=0.3, enable_gqa=True)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected.transpose(1, 2), rtol=tolerance, atol=tolerance)
