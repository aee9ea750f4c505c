"""Prepares a model for inference on this CPU: which layers are packed, and what else is replaced."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

from .attention import use_cpu_attention
from .decoder_layer import use_fast_layers
from .huge_pages import use_huge_pages
from .layers import (
    FloatLinear,
    Int4WeightLinear,
    Int8DynamicLinear,
    Int8Embedding,
    Int8WeightLinear,
    PackedLinear,
    Shared,
    SharedLinear,
)
from .operators import operator

# Smallest float layer that gains from packing, in weights: a packed product starts 12 microseconds later than a plain
# one, which is as long as a layer of 512 x 512 takes for one row.
SMALLEST = 2**18
# The same for many rows, which every layer gains from: 256 rows through 256 x 256 weights take 308 microseconds plain and 142
# packed. Packing takes as long as one or two products.
SMALLEST_FOR_MANY_ROWS = 2**12
# From this number of weights, they do not fit into a processor's cache, so each token reads them from memory.
_BEYOND_CACHE = 2**23
# Layers that get the same input, in our models and those of other families.
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def use_cpu_kernels(model: PreTrainedModel, *, smallest: int | None = None) -> PreTrainedModel:
    """Replaces every linear layer that this CPU has a kernel for by a packed layer, in place.

    The model's results stay the same up to the order of sums, and with torchao's weights up to the rounding of
    activations. Float layers that are too small to gain stay. Afterwards the model can generate, but not be trained or
    saved. A model on another device stays unchanged. A tied head gets its own copy of the weights, because embeddings
    cannot be looked up in packed weights.

    Args:
        model: Any model; layers that are not plain `torch.nn.Linear`, such as an adapter's, stay.
        smallest: Smallest float layer to pack, in weights; None means `SMALLEST`.
    """
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    _pack(model, SMALLEST if smallest is None else smallest)
    packed_layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if sum(layer.in_features * layer.out_features for layer in packed_layers) >= _BEYOND_CACHE:
        use_huge_pages()
    return model


def packed_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a copy of a trainable model that generates many rows faster, with the weights that the model has now.

    The copy shares embeddings and norms with the model, and has its linear layers packed, in float32 another copy of
    their weights. It takes about as long as one step of 256 rows, so it pays for every batch of texts, and has to be made anew after
    each step of the optimizer.

    Args:
        model: Any model, also one with adapters; not changed.

    Returns:
        The copy, in evaluation mode; the model itself if it is on another device, sharded, or already packed.
    """
    plain = all(type(parameter.data) is torch.Tensor for parameter in model.parameters())
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not plain or packed:
        return model
    # `deepcopy` takes what it finds in this table instead of copying it.
    shared = {id(parameter): parameter for parameter in model.parameters()}
    fast = copy.deepcopy(model, shared).eval()
    _pack(fast, SMALLEST_FOR_MANY_ROWS)
    return fast


def _pack(model: PreTrainedModel, smallest: int) -> None:
    # List only the parents: a list of the layers would keep all of them in memory until the last is packed.
    for parent in [module for module in model.modules() if next(module.children(), None) is not None]:
        for names in _SAME_INPUT:
            linears = [child for name in names if (child := getattr(parent, name, None)) is not None]
            if len(linears) == len(names) and (packed := _packed_class(smallest, *linears)) is not None:
                shared = Shared(packed(*linears), [linear.out_features for linear in linears])
                for index, name in enumerate(names):
                    setattr(parent, name, SharedLinear(shared, index))
        for name, child in list(parent.named_children()):
            if isinstance(child, NewGELUActivation):
                # The same function in one kernel instead of eight.
                setattr(parent, name, GELUTanh())
            if (packed := _packed_class(smallest, child)) is not None:
                setattr(parent, name, packed(child))
            elif type(child) is nn.Embedding and type(child.weight.data).__name__ == "Int8Tensor":
                setattr(parent, name, Int8Embedding(child))
    use_cpu_attention(model)
    use_fast_layers(model)


def _packed_class(smallest: int, *modules: nn.Module) -> type[PackedLinear] | None:
    """The packed class for linear layers of the same kind; None if they differ, or this CPU has none that pays off."""
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) < len(modules) or any(linear._forward_hooks or linear._forward_pre_hooks for linear in linears):
        return None
    kinds = {(type(linear.weight.data), linear.weight.dtype, linear.bias is None) for linear in linears}
    if len({linear.in_features for linear in linears}) > 1 or len(kinds) > 1:
        return None
    return _class_for(linears[0].weight, sum(linear.weight.numel() for linear in linears), smallest)


def _class_for(weight: Any, count: int, smallest: int) -> type[PackedLinear] | None:
    """The packed class for `count` weights of this kind, or None."""
    has_bfloat16 = operator("mkldnn._is_mkldnn_bf16_supported")()
    kind = type(weight.data).__name__
    if kind == "Tensor":
        if count < smallest:
            return None
        if weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16):
            return FloatLinear
        return None
    if kind == "Int8Tensor" and tuple(weight.block_size) == (1, weight.shape[1]):
        if weight.act_quant_kwargs is not None:
            return Int8DynamicLinear
        return Int8WeightLinear if has_bfloat16 else None
    if (
        kind == "IntxUnpackedToInt8Tensor"
        and str(weight.target_dtype) == "torch.int4"
        and weight.block_size[1] in (32, 64, 128)
    ):
        return Int4WeightLinear if has_bfloat16 else None
    return None
