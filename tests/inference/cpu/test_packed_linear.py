"""Packed linear layers compute the same as the layers that they replace."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_for_generation, quantize_model, use_cpu_kernels
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference.cpu import packed_linear as kernels
from chatgpt_hf.inference.cpu.layers import (
    FloatLinear,
    Int4WeightLinear,
    Int8DynamicLinear,
    Int8WeightLinear,
    PackedLinear,
)
from chatgpt_hf.inference.cpu.operators import operator
from chatgpt_hf.model.configuration_chatgpt import GPT2_ARCHITECTURE

# The layers of the models here are smaller than this.
SMALLEST = kernels.SMALLEST

# The vocabulary is not a multiple of any kernel's block size.
SIZES = {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ARCHITECTURES = {"modern": {}, "gpt2": GPT2_ARCHITECTURE}


@pytest.fixture(autouse=True)
def _pack_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 0)


needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not multiply bfloat16"
)


def make(variant: str = "modern", dtype: torch.dtype = torch.float32) -> ChatGPTForCausalLM:
    torch.manual_seed(3)
    config = ChatGPTConfig(**SIZES, **ARCHITECTURES[variant], initializer_range=0.2)
    model = ChatGPTForCausalLM(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The distance of two tensors, relative to the second."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("rows", [1, 2, 7, 70])
@pytest.mark.parametrize("variant", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "error"),
    # Two results in bfloat16, each about 0.7 % from that in float32.
    [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 1.5e-2, marks=needs_bfloat16)],
    ids=str,
)
@torch.no_grad()
def test_floats(variant: str, dtype: torch.dtype, error: float, rows: int) -> None:
    ids = torch.randint(101, (1, rows))
    expected = make(variant, dtype)(ids).logits
    model = use_cpu_kernels(make(variant, dtype))
    assert isinstance(model.lm_head, FloatLinear)
    assert not [name for name, module in model.named_modules() if type(module) is nn.Linear]
    found = model(ids).logits
    assert found.dtype == dtype
    assert distance(found, expected) < error


@pytest.mark.parametrize("rows", [1, 2, 7, 70])
@pytest.mark.parametrize("variant", ARCHITECTURES)
@pytest.mark.parametrize(
    ("quantization", "layer", "error"),
    [
        # torchao's reference and the kernel round activations to 256 levels between minimum and maximum, not the same ones.
        ("int8", Int8DynamicLinear, 6e-2),
        pytest.param("int8-weight-only", Int8WeightLinear, 2e-2, marks=needs_bfloat16),
        # The head is that of int8.
        pytest.param("int4", Int4WeightLinear, 6e-2, marks=needs_bfloat16),
    ],
)
@torch.no_grad()
def test_quantized_weights(
    variant: str, quantization: str, layer: type[PackedLinear], error: float, rows: int
) -> None:
    ids = torch.randint(101, (1, rows))
    reference = quantize_model(make(variant), quantization)
    expected = reference(ids).logits
    model = use_cpu_kernels(quantize_model(make(variant), quantization))
    assert isinstance(model.lm_head, Int8DynamicLinear if quantization == "int4" else layer)
    assert isinstance(model.model.layers[1].mlp.down_proj, layer)
    found = model(ids).logits
    assert distance(found, expected) < error
    # The kernel adds little error compared with the quantization.
    assert distance(found, make(variant)(ids).logits) < 1.5 * distance(expected, make(variant)(ids).logits) + 1e-2


@torch.no_grad()
def test_a_row_with_large_values_takes_nothing_from_the_others() -> None:
    linear = quantize_model(make(), "int8").model.layers[0].mlp.up_proj
    packed = Int8DynamicLinear(linear)
    quiet, loud = torch.randn(1, 64), 1000 * torch.randn(1, 64)
    both = packed(torch.cat((quiet, loud, torch.zeros(1, 64))))
    assert distance(both[:1], packed(quiet)) < 2e-2
    assert not both[2].any()


@torch.no_grad()
def test_rows_with_outliers_of_either_sign_have_all_levels() -> None:
    """Several rows are as exact as each by itself."""
    linear = quantize_model(make("gpt2"), "int8").model.layers[0].mlp.up_proj
    packed = Int8DynamicLinear(linear)
    rows = torch.randn(6, 64)
    rows[::2, 3], rows[1::2, 5] = 40, -40
    exact = nn.functional.linear(rows, linear.weight.dequantize(), linear.bias)
    alone = torch.cat([packed(row[None]) for row in rows])
    assert distance(packed(rows), exact) < 1.3 * distance(alone, exact)


def test_greedy_ids_are_the_same() -> None:
    plain, fast = make("gpt2"), use_cpu_kernels(make("gpt2"))
    ids = torch.randint(101, (4, 9))
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    assert fast.generate(ids, attention_mask=mask, **options).equal(
        plain.generate(ids, attention_mask=mask, **options)
    )


def test_a_foreign_model() -> None:
    torch.manual_seed(0)
    sizes = {"intermediate_size": 64, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **sizes, initializer_range=0.2)).eval()
    ids = torch.randint(101, (1, 9))
    with torch.no_grad():
        expected = model(ids).logits
        use_cpu_kernels(model)
        counts = count_products(model)
        assert distance(model(ids).logits, expected) < 1e-5
    # Queries, keys and values; the output; gate and up; down.
    assert counts == [2 * 4 + 1]


def count_products(model: nn.Module) -> list[int]:
    """Returns a list with one number, which counts the products of packed layers."""
    counts = [0]

    def count(*_: object) -> None:
        counts[0] += 1

    for packed in {module for module in model.modules() if isinstance(module, PackedLinear)}:
        packed.register_forward_hook(count)
    return counts


@torch.no_grad()
def test_layers_of_one_input_share_a_product() -> None:
    config = ChatGPTConfig(**SIZES, gated_mlp=True, num_key_value_heads=2, attention_bias=True, initializer_range=0.2)
    torch.manual_seed(0)
    plain = ChatGPTForCausalLM(config).eval()
    fast = use_cpu_kernels(copy.deepcopy(plain))
    counts = count_products(fast)
    inputs = [torch.randint(101, (1, length)) for length in (1, 5, 5, 9)]
    for ids in inputs:
        assert distance(fast(ids).logits, plain(ids).logits) < 1e-5
    assert counts == [len(inputs) * (2 * 4 + 1)]
    # Nothing is kept between calls.
    assert all(layer.self_attn.q_proj._shared._last is None for layer in fast.model.layers)
    expected = [plain(ids).logits for ids in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda ids: fast(ids).logits, inputs * 10), expected * 10, strict=True):
            assert distance(found, wanted) < 1e-5


def test_what_a_prepared_model_cannot_do(tmp_path: Path) -> None:
    model = use_cpu_kernels(make())
    with pytest.raises(ConfigError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="cannot be moved or cast"):
        model.to(torch.float64)
    assert model.to("cpu") is model
    with pytest.raises(ConfigError, match="cannot be copied"):
        copy.deepcopy(model)
    attention = model.model.layers[0].self_attn
    assert model.lm_head.weight.dtype == attention.q_proj.weight.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize(
    "quantization",
    [
        None,
        "int8",
        pytest.param("int8-weight-only", marks=needs_bfloat16),
        pytest.param("int4", marks=needs_bfloat16),
    ],
)
@torch.no_grad()
def test_compiled_whole(quantization: str | None) -> None:
    """For `torch.compile`, a packed product is one operation; fused layers share it, and models do not mix them up."""
    torch.compiler.reset()
    products: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        products.append(sum(node.target == torch.ops.chatgpt_hf.packed_linear for node in graph.graph.nodes))
        return graph.forward

    for seed in range(2):
        model = make("gpt2")
        model.load_state_dict({name: value.roll(seed) for name, value in model.state_dict().items()})
        model = use_cpu_kernels(model if quantization is None else quantize_model(model, quantization))
        compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=False)
        for rows in (1, 5):
            ids = torch.randint(101, (1, rows))
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
    # Queries, keys and values; the output; two of the feed-forward layer; the head.
    assert products == 4 * [2 * 4 + 1]


@torch.no_grad()
def test_the_operation_of_a_product_is_a_sound_one() -> None:
    layer = FloatLinear(nn.Linear(16, 24))
    torch.library.opcheck(torch.ops.chatgpt_hf.packed_linear.default, (torch.randn(3, 16), layer._number, 24))


def test_a_layer_that_is_asked_again_looks_at_its_input_again() -> None:
    plain, attention = make().model.layers[0].self_attn, use_cpu_kernels(make()).model.layers[0].self_attn
    hidden = torch.randn(1, 3, 64)
    for _ in range(2):
        assert distance(attention.q_proj(hidden), plain.q_proj(hidden)) < 1e-5
        hidden.copy_(torch.randn(1, 3, 64))
    assert distance(attention.q_proj(hidden), plain.q_proj(hidden)) < 1e-5
    assert distance(attention.k_proj(hidden), plain.k_proj(hidden)) < 1e-5


def test_layers_with_hooks_and_adapters_stay() -> None:
    model = make()
    model.lm_head.register_forward_hook(lambda *_: None)

    class Adapted(nn.Linear):
        pass

    model.model.layers[0].mlp.up_proj = Adapted(64, 256)
    use_cpu_kernels(model)
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.layers[0].mlp.up_proj) is Adapted


def test_small_float_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", SMALLEST)
    wide = nn.ModuleDict({"small": nn.Linear(511, 511), "large": nn.Linear(512, 512)})
    model = make()
    model.extra = wide
    use_cpu_kernels(model)
    assert type(model.lm_head) is type(wide["small"]) is nn.Linear
    assert isinstance(wide["large"], FloatLinear)


def test_commands_load_by_it(chat_folder: Path) -> None:
    assert isinstance(load_for_generation(chat_folder).lm_head, FloatLinear)
    assert isinstance(load_for_generation(chat_folder, "int8").lm_head, Int8DynamicLinear)


def test_a_pytorch_without_an_operator_fails_for_the_layers_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize_model(make(), "int8")
    operator.cache_clear()
    monkeypatch.setattr(torch.ops, "quantized", SimpleNamespace())
    assert isinstance(use_cpu_kernels(make()).lm_head, FloatLinear)
    with pytest.raises(ConfigError, match=r"PyTorch 2\S* has no operator quantized.linear_prepack.*`load_model`"):
        use_cpu_kernels(model)
