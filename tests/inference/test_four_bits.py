"""4-bit weights are the nearest levels of their group, and with text the ones that change a layer's outputs least."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chatgpt_hf import quantize_model, use_cpu_kernels
from chatgpt_hf.inference.four_bits import four_bit_weight, quantize_layers

SIZES = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LAYERS = [
    f"model.layers.{index}.{name}"
    for index in range(2)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")
]


def make() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
    return LlamaForCausalLM(config).eval()


def test_sixteen_levels_between_the_extremes_of_a_group() -> None:
    torch.manual_seed(0)
    # Far from zero: levels around zero could not tell these weights apart.
    weight = 5 + torch.rand(8, 64)
    found = four_bit_weight(weight)
    assert (found.qdata.min(), found.qdata.max()) == (-8, 7)
    steps = (weight.view(8, 2, 32).amax(-1) - weight.view(8, 2, 32).amin(-1)) / 15
    errors = (found.dequantize() - weight).abs().view(8, 2, 32).amax(-1)
    # Half a step, and the rounding of scale and middle to bfloat16.
    assert (errors < 0.5 * steps + 6 * 2**-8).all()
    # Weights that are on such levels already, as those of a file with 4 bits, stay as they are.
    levels = torch.randint(0, 16, (8, 64)).float()
    levels[:, ::32], levels[:, 1::32] = 0, 15
    torch.testing.assert_close(four_bit_weight(levels * 0.25 - 1).dequantize(), levels * 0.25 - 1)
    torch.testing.assert_close(four_bit_weight(torch.zeros(2, 32)).dequantize(), torch.zeros(2, 32))


def test_errors_are_compensated_where_inputs_depend_on_each_other() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(200, 6) @ torch.randn(6, 64) + 0.1 * torch.randn(200, 64)
    # An input that is always zero must not break the factorization.
    inputs[:, 5] = 0
    weight = torch.randn(16, 64)
    nearest, chosen = (four_bit_weight(weight, sums).dequantize() for sums in (None, inputs.T @ inputs))
    errors = [((part - weight) @ inputs.T).norm().item() for part in (nearest, chosen)]
    assert errors[1] < 0.5 * errors[0]


def test_layers_are_chosen_with_the_inputs_that_they_get() -> None:
    rows = torch.randint(101, (6, 40), generator=torch.Generator().manual_seed(1)).tolist()
    ids = torch.tensor(rows)
    with torch.no_grad():
        expected = make()(ids).logits
        errors = []
        for given in ((), rows):
            model = make()
            quantize_layers(model, LAYERS, given)
            errors.append((model(ids).logits - expected).norm().item())
    assert errors[1] < 0.9 * errors[0]
    assert not [module for module in model.modules() if module._forward_pre_hooks]


def test_the_head_keeps_8_bits() -> None:
    model = use_cpu_kernels(quantize_model(make(), "int4"))
    assert type(model.lm_head).__name__ == "Int8DynamicLinear"
