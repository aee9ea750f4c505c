"""Linear weights in 4 bits: groups with a scale and an offset each, rounded so that a layer's outputs change least (GPTQ)."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..extras import needed_by

if TYPE_CHECKING:
    from torchao.quantization import IntxUnpackedToInt8Tensor

# Number of weights in a row that share a scale and an offset: the smallest that PyTorch's kernel takes.
GROUP_SIZE = 32
# Added to the diagonal of a layer's input products, relative to its mean, as in the paper.
_DAMPING = 0.01
# The products of as many layers as fit are collected in one pass over the text.
_MOST_BYTES = 2**30


def four_bit_weight(weight: torch.Tensor, products: torch.Tensor | None = None) -> "IntxUnpackedToInt8Tensor":
    """Rounds a weight to 16 levels per group of 32, from the smallest to the largest weight of the group.

    With `products`, each rounding error is compensated by the weights to its right that are not rounded yet (Frantar et al.
    2022, "GPTQ"). torchao's own GPTQ runs only on CUDA, and its other ways to choose levels have integer offsets only.

    Args:
        weight: (out_features, in_features) in float32; `in_features` is a multiple of 32.
        products: (in_features, in_features), the sum of `x x^T` over the layer's inputs; None rounds to nearest.
    """
    with needed_by("int4"):
        from torchao.quantization import IntxUnpackedToInt8Tensor

    rows, columns = weight.shape
    weight = weight.detach().float().clone()
    factor = None if products is None else _factor(products)
    levels = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scales = torch.empty(rows, columns // GROUP_SIZE, device=weight.device)
    zeros = torch.empty_like(scales)
    for begin in range(0, columns, GROUP_SIZE):
        end = begin + GROUP_SIZE
        group = weight[:, begin:end]
        low, high = group.aminmax(dim=1, keepdim=True)
        # The kernels keep scale and middle in bfloat16, so the levels are chosen for the rounded values.
        scale = ((high - low) / 15).clamp_min(torch.finfo(torch.float32).tiny).bfloat16().float()
        middle = (low + 8 * scale).bfloat16().float()
        errors = torch.empty_like(group)
        for index in range(GROUP_SIZE):
            column = group[:, index : index + 1]
            level = ((column - middle) / scale).round_().clamp_(-8, 7)
            levels[:, begin + index] = level[:, 0]
            if factor is not None:
                error = (column - (level * scale + middle)) / factor[begin + index, begin + index]
                group[:, index + 1 :] -= error * factor[begin + index, begin + index + 1 : end]
                errors[:, index] = error[:, 0]
        if factor is not None:
            weight[:, end:] -= errors @ factor[begin:end, end:]
        scales[:, begin // GROUP_SIZE], zeros[:, begin // GROUP_SIZE] = scale[:, 0], (-middle / scale)[:, 0]
    int4 = torch.int4  # type: ignore[attr-defined]
    return IntxUnpackedToInt8Tensor(levels, scales, zeros, int4, (1, GROUP_SIZE), torch.float32, None)


def _factor(products: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped products."""
    damped = products.clone()
    diagonal = damped.diagonal()
    # An input that is always zero has no say; the damping keeps its weights as they are.
    diagonal += _DAMPING * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


@torch.no_grad()
def quantize_layers(model: PreTrainedModel, names: Sequence[str], rows: Sequence[Sequence[int]] = ()) -> None:
    """Replaces the weights of linear layers by 4-bit weights, in place.

    Args:
        model: A model in float32.
        names: The layers, in the order in which the model computes them.
        rows: Token ids of texts like those that the model will see; without them, weights are rounded to the nearest
            level. The model reads them as often as 1 GB of products needs.
    """
    left = list(names)
    while left:
        taken, used = [left.pop(0)], 0
        used = model.get_submodule(taken[0]).in_features ** 2 * 4
        while left and (used := used + model.get_submodule(left[0]).in_features ** 2 * 4) <= _MOST_BYTES:
            taken.append(left.pop(0))
        layers: list[Any] = [model.get_submodule(name) for name in taken]
        products = _collect(model, layers, rows)
        for layer, product in zip(layers, products, strict=True):
            layer.weight = nn.Parameter(four_bit_weight(layer.weight, product), requires_grad=False)


def _collect(model: PreTrainedModel, layers: Sequence[nn.Linear], rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The sums of `x x^T` over the inputs of each layer, while the model reads the rows; layers of one input share one."""
    sums: list[Any] = [None] * len(layers)
    last: tuple[Any, int] = (None, 0)

    def add(index: int, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal last
        if inputs[0] is last[0]:
            sums[index] = sums[last[1]]
            return
        last = inputs[0], index
        states = inputs[0].detach().flatten(0, -2).float()
        sums[index] = states.T @ states if sums[index] is None else sums[index].addmm_(states.T, states)

    hooks = [layer.register_forward_pre_hook(functools.partial(add, index)) for index, layer in enumerate(layers)]
    try:
        for row in rows:
            # Only the body: the head is not needed.
            model.base_model(torch.tensor([row], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sums
