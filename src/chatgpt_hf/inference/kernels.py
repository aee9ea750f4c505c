"""Linear layers in the form that this CPU multiplies fastest, for models that only answer.

`torch.nn.Linear` multiplies a weight as it lies in memory. oneDNN and FBGEMM, which every torch wheel for x86 carries, are two
to seven times as fast on one that was reordered for them first (docs/performance.md has the figures); PyTorch itself does so
only while it compiles (`torch._inductor.config.freezing`).
"""

import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import ConfigError

# Weights from which on packing a float layer pays: a packed product begins 12 microseconds later than a plain one, which is
# as long as one row takes a layer of 512 x 512.
SMALLEST = 2**18
# Rows from which on int8 weights are unpacked to bfloat16 and multiplied as such: `_weight_int8pack_mm` costs 28 microseconds a
# row at 3,072 x 768, the unpacked product 600 altogether.
_UNPACK_FROM = 24


class PackedLinear(nn.Module):
    """A linear layer without gradients, whose weight only its own kernel can read.

    Its forward takes (..., in_features) and gives (..., out_features) in the same dtype.

    Raises:
        ConfigError: When it is to be saved or moved.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()

    def _save_to_state_dict(self, *_: Any) -> None:
        raise ConfigError(
            "This model was prepared for answering on this CPU and cannot be saved: save the one that it was made from."
        )

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        # A pipeline moves its model to where it is already.
        probe = torch.empty(0, dtype=self.dtype)
        moved = fn(probe)
        if (moved.dtype, moved.device) != (probe.dtype, probe.device):
            raise ConfigError(
                "This model was prepared for answering on this CPU and cannot be moved or cast: load it again, for the "
                "other device."
            )
        return self

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.bias is None else self.bias.dtype

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class FloatLinear(PackedLinear):
    """float32 or bfloat16 by oneDNN: the same product as `nn.Linear`, added up in another order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        # Blocked for any number of rows: for a given one, other numbers are up to twice as slow.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    @property
    def dtype(self) -> torch.dtype:
        return self._packed.dtype

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features), unpacked anew each time: some models ask a layer for its dtype."""
        return self._packed.to_dense()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, self.in_features)
        count = len(rows)
        # oneDNN compiles a kernel for each number of rows, in 1 to 2 milliseconds and 0.15 MB: prompts of all lengths share some.
        shared = 1 << (count - 1).bit_length() if count <= 64 else count + -count % 64
        if count < shared:
            rows = nn.functional.pad(rows, (0, 0, 0, shared - count))
        product = torch.ops.mkldnn._linear_pointwise.default(rows, self._packed, self.bias, "none", [], "")
        return product[:count].view(*hidden_states.shape[:-1], self.out_features)


class Int8DynamicLinear(PackedLinear):
    """int8 weights by row, activations quantized to 8 bits on the way, both by FBGEMM or oneDNN in one kernel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight: Any = linear.weight
        scale, zero = weight.scale.flatten().double(), torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():
            # Such tensors will go from PyTorch (issue 184982), the kernel's plain form is `onednn.qlinear_pointwise`: by it,
            # with activations quantized in eager operations, a token of GPT-2's smallest takes 9.2 ms and not 7.5.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            quantized = torch._make_per_channel_quantized_tensor(weight.qdata, scale, zero, 0)
        self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        # Without VNNI, sums of two products are kept in 16 bits, and full 8-bit activations overflow them.
        self._reduce_range = not torch.cpu._is_vnni_supported()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.float()
        if rows.numel() == self.in_features:
            product = torch.ops.quantized.linear_dynamic.default(rows, self._packed, self._reduce_range)
            product = product if self.bias is None else product + self.bias
            return product.to(hidden_states.dtype)
        # The kernel has one scale for all rows, so a row with large values would leave few of the 256 steps to the others.
        largest = rows.abs().amax(-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
        product = torch.ops.quantized.linear_dynamic.default(rows / largest, self._packed, self._reduce_range)
        product = product.mul_(largest) if self.bias is None else torch.addcmul(self.bias, product, largest)
        return product.to(hidden_states.dtype)


class Int8WeightLinear(PackedLinear):
    """int8 weights by row, activations in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight: Any = linear.weight
        # A copy, since the kernel reads 16 bytes from addresses that 16 divides, and ends the process on a tensor that lies
        # elsewhere, as those of a safetensors file do.
        self._weight = weight.qdata.clone(memory_format=torch.contiguous_format)
        self._scale = weight.scale.flatten().bfloat16()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.bfloat16().reshape(-1, self.in_features)
        if len(rows) < _UNPACK_FROM:
            product = torch.ops.aten._weight_int8pack_mm(rows, self._weight, self._scale)
        else:
            product = nn.functional.linear(rows, self._weight.bfloat16()) * self._scale
        product = product.view(*hidden_states.shape[:-1], self.out_features).to(hidden_states.dtype)
        return product if self.bias is None else product + self.bias


class Int4WeightLinear(PackedLinear):
    """int4 weights in groups, activations in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight: Any = linear.weight
        self._group_size = weight.block_size[1]
        scale = weight.scale.bfloat16()
        # The kernel computes (q - 8) * scale + zero, with q from 0 to 15.
        zero = -weight.zero_point.to(scale.dtype) * scale
        scale_and_zero = torch.stack((scale, zero), dim=-1).transpose(0, 1)
        # It takes rows by 16; a vocabulary can have any number of them.
        missing = -self.out_features % 16
        self._scale_and_zero = nn.functional.pad(scale_and_zero, (0, 0, 0, missing)).contiguous()
        levels = nn.functional.pad(weight.qdata.int() + 8, (0, 0, 0, missing))
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.bfloat16().reshape(-1, self.in_features).contiguous()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self._packed, self._group_size, self._scale_and_zero
        )[:, : self.out_features]
        product = product.reshape(*hidden_states.shape[:-1], self.out_features).to(hidden_states.dtype)
        return product if self.bias is None else product + self.bias


def use_cpu_kernels(model: PreTrainedModel) -> PreTrainedModel:
    """Puts a packed layer in the place of every linear layer that this CPU has a kernel for, in place.

    What the model computes stays the same up to the order of sums, and for torchao's weights up to the rounding of activations.
    Float layers too small to gain by it stay. It can answer afterwards, and neither learn nor be saved. A model on another device is left as it is. The head of tied
    weights gets a copy of its own, since an embedding cannot be looked up in a packed one.

    Args:
        model: Any; layers that are not plain `torch.nn.Linear`, as an adapter's, stay.
    """
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not (child._forward_hooks or child._forward_pre_hooks):
                packed = _packed_class(child.weight)
                if packed is not None:
                    setattr(parent, name, packed(child))
    return model


def _packed_class(weight: Any) -> type[PackedLinear] | None:
    """The layer for a weight, or None where this CPU has none that pays."""
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    kind = type(weight.data).__name__
    if kind == "Tensor":
        if weight.numel() < SMALLEST:
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
