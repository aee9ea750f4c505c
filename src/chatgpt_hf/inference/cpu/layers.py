"""Linear layers in the format that this CPU multiplies fastest, for inference only.

`torch.nn.Linear` multiplies a weight in its plain memory layout. oneDNN and FBGEMM, which are part of every torch
wheel for x86, are two to seven times as fast if the weight is reordered for them first (figures in docs/log.md);
PyTorch itself does this only when it compiles (`torch._inductor.config.freezing`).
"""

import itertools
import warnings
from abc import ABC, abstractmethod
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from ...errors import ConfigError
from .operators import operator

# From this number of rows, int8 weights are unpacked to bfloat16 and multiplied in this form: at 3,072 x 768,
# `_weight_int8pack_mm` costs 28 microseconds per row, the unpacked product 600 in total.
_UNPACK_FROM = 24

# `torch.compile` cannot trace packed weights, so it gets one custom operation that takes the layer's number.
_numbers = itertools.count()
_layers: WeakValueDictionary[int, "PackedLinear"] = WeakValueDictionary()
_library = torch.library.Library("chatgpt_hf", "FRAGMENT")
_library.define("packed_linear(Tensor hidden_states, int layer, int out_features) -> Tensor")
_library.impl("packed_linear", lambda hidden_states, layer, _: _layers[layer].multiply(hidden_states), "CPU")


@torch.library.register_fake("chatgpt_hf::packed_linear")
def _packed_linear_shape(hidden_states: torch.Tensor, layer: int, out_features: int) -> torch.Tensor:
    return hidden_states.new_empty((*hidden_states.shape[:-1], out_features))


def _refuse_to_save(*_: Any) -> None:
    raise ConfigError(
        "This model was prepared for inference on this CPU and cannot be saved: save the original instead."
    )


class PackedLinear(nn.Module, ABC):
    """Linear layers that share an input, without gradients; only their own kernel can read their weights.

    The forward maps (..., in_features) to (..., out_features) in the same dtype, and concatenates the layers' outputs.

    Args:
        linears: One layer, or several with the same input and the same kind of weight.

    Raises:
        ConfigError: On an attempt to save, copy or move it.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linears[0].in_features, sum(linear.out_features for linear in linears)
        self.bias = None if linears[0].bias is None else _join([linear.bias.detach() for linear in linears])
        self._number = next(_numbers)
        _layers[self._number] = self
        self.register_state_dict_pre_hook(_refuse_to_save)

    @abstractmethod
    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps (..., in_features) to (..., out_features) with the kernel of the class."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return torch.ops.chatgpt_hf.packed_linear(hidden_states, self._number, self.out_features)
        return self.multiply(hidden_states)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        raise ConfigError("This model was prepared for inference on this CPU and cannot be copied: load it again.")

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        # Allow no-ops: a pipeline moves its model to the device that it is already on.
        probe = torch.empty(0, dtype=self.dtype)
        moved = fn(probe)
        if (moved.dtype, moved.device) != (probe.dtype, probe.device):
            raise ConfigError(
                "This model was prepared for inference on this CPU and cannot be moved or cast: load it again for the other "
                "device."
            )
        return self

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.bias is None else self.bias.dtype

    @property
    def weight(self) -> torch.Tensor:
        """An empty tensor, because some models read the dtype or device of a layer's weight."""
        return torch.empty(0, dtype=self.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class FloatLinear(PackedLinear):
    """float32 or bfloat16 with oneDNN: the same product as `nn.Linear`, summed in another order."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__(*linears)
        # The layout is for any number of rows: one for a given number makes other numbers up to twice as slow.
        weight = _join([linear.weight.detach() for linear in linears])
        self._packed = operator("mkldnn._reorder_linear_weight")(weight, None)
        self._product = operator("mkldnn._linear_pointwise.default")

    @property
    def dtype(self) -> torch.dtype:
        return self._packed.dtype

    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, self.in_features)
        count = len(rows)
        # oneDNN compiles a kernel for each number of rows, which takes 1 to 2 milliseconds and 0.15 MB; rounding up
        # lets prompts of all lengths share a few kernels. Those for 3 to 6 rows read GPT-2-small's weights in 32
        # milliseconds (float32; 19 in bfloat16), those for 1, 2 and 8 in 40, 48 and 40 (22, 24 and 23).
        if count <= 6:
            shared = 4 if count <= 4 else 6
        else:
            shared = 1 << (count - 1).bit_length() if count <= 64 else count + -count % 64
        if count < shared:
            rows = nn.functional.pad(rows, (0, 0, 0, shared - count))
        product = self._product(rows, self._packed, self.bias, "none", [], "")
        return product[:count].view(*hidden_states.shape[:-1], self.out_features)


class Int8DynamicLinear(PackedLinear):
    """int8 weights per row and activations dynamically quantized to 8 bits, in one kernel of FBGEMM or oneDNN."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__(*linears)
        self._bias = None if self.bias is None else self.bias.float()
        scale, zero = _parts(linears, "scale").flatten().double(), torch.zeros(self.out_features, dtype=torch.long)
        self._sums = (_parts(linears, "qdata").sum(1) * scale).float()
        with warnings.catch_warnings():
            # PyTorch will remove quantized tensors (issue 184982). The plain form of the kernel is
            # `onednn.qlinear_pointwise`; with it, and activations quantized in eager operations, a token of
            # GPT-2-small takes 9.2 ms instead of 7.5.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            quantized = torch._make_per_channel_quantized_tensor(_parts(linears, "qdata"), scale, zero, 0)
        self._packed = operator("quantized.linear_prepack")(quantized, self._bias)
        # The operator itself; bypasses torch.ops' per-call script-object lookup (6 µs).
        self._product = operator("quantized.linear_dynamic.default._op")
        # Without VNNI, the sum of two products has 16 bits, and full 8-bit activations would overflow it.
        self._reduce_range = not torch.cpu._is_vnni_supported()
        self._product_of_levels = operator("quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op")
        self._levels = 127 if self._reduce_range else 255

    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Multiplies one row of any values, or several rows of levels, which the kernel rounds to whole numbers of 0 to 255."""
        if hidden_states.numel() == self.in_features:
            return self._product(hidden_states, self._packed, self._reduce_range)
        return self._product_of_levels(hidden_states, 1.0, 0, self._packed)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.dtype != torch.float32:
            return self.forward(hidden_states.float()).to(hidden_states.dtype)
        if hidden_states.numel() == self.in_features:
            return super().forward(hidden_states)
        # The kernel has one scale for all rows, so a row with large values would leave few of the 256 levels for the
        # others. So each row gets its own levels here, from its smallest to its largest value, of which zero is one: most
        # activations are small beside the outliers, and a common error of all of them would add up.
        low, high = (
            hidden_states.amin(-1, keepdim=True).clamp_max_(0),
            hidden_states.amax(-1, keepdim=True).clamp_min_(0),
        )
        step = (high - low).div_(self._levels).clamp_min_(torch.finfo(torch.float32).tiny)
        zero = low.div_(step).round_()
        product = super().forward((hidden_states / step).sub_(zero))
        # It added the undivided bias, so the result is bias + step * (product - bias + zero * sums of weights).
        product = product.mul_(step) if self.bias is None else torch.lerp(self._bias, product, step, out=product)
        return product.addcmul_(zero.mul_(step), self._sums)


class Int8WeightLinear(PackedLinear):
    """int8 weights per row, activations in bfloat16."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__(*linears)
        # Copied, because the kernel requires 16-byte alignment and crashes the process otherwise; tensors from a
        # safetensors file may be unaligned.
        self._weight = _parts(linears, "qdata").clone(memory_format=torch.contiguous_format)
        self._scale = _parts(linears, "scale").flatten().bfloat16()
        self._product = operator("aten._weight_int8pack_mm")

    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.bfloat16().reshape(-1, self.in_features)
        if len(rows) < _UNPACK_FROM:
            product = self._product(rows, self._weight, self._scale)
        else:
            product = nn.functional.linear(rows, self._weight.bfloat16()) * self._scale
        product = product.view(*hidden_states.shape[:-1], self.out_features).to(hidden_states.dtype)
        return product if self.bias is None else product + self.bias


class Int4WeightLinear(PackedLinear):
    """int4 weights in groups, activations in bfloat16."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__(*linears)
        weight: Any = linears[0].weight
        self._group_size = weight.block_size[1]
        scale = _parts(linears, "scale").float()
        # The kernel computes (q - 8) * scale + zero, with q from 0 to 15.
        zero = -_parts(linears, "zero_point").float() * scale
        scale_and_zero = torch.stack((scale, zero), dim=-1).transpose(0, 1).bfloat16()
        # The kernel takes a multiple of 16 rows; a vocabulary can have any number.
        missing = -self.out_features % 16
        self._scale_and_zero = nn.functional.pad(scale_and_zero, (0, 0, 0, missing)).contiguous()
        levels = nn.functional.pad(_parts(linears, "qdata").int() + 8, (0, 0, 0, missing))
        self._packed = operator("aten._convert_weight_to_int4pack_for_cpu")(levels, 1)
        self._product = operator("aten._weight_int4pack_mm_for_cpu")

    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.bfloat16().reshape(-1, self.in_features).contiguous()
        product = self._product(rows, self._packed, self._group_size, self._scale_and_zero)[:, : self.out_features]
        product = product.reshape(*hidden_states.shape[:-1], self.out_features).to(hidden_states.dtype)
        return product if self.bias is None else product + self.bias


class Int8Embedding(nn.Module):
    """An embedding with int8 weights per row, of which torchao would convert all rows for each call.

    Args:
        embedding: Its weight is torchao's `Int8Tensor`.
    """

    levels: torch.Tensor
    scales: torch.Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        weight: Any = embedding.weight.detach()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.register_buffer("levels", weight.qdata, persistent=False)
        self.register_buffer("scales", weight.scale, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """(num_embeddings, embedding_dim), computed anew."""
        return self.levels * self.scales

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) ids to (..., embedding_dim)."""
        return nn.functional.embedding(ids, self.levels) * nn.functional.embedding(ids, self.scales)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Concatenates the rows of all parts; does not copy a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(linears: tuple[nn.Linear, ...], name: str) -> torch.Tensor:
    """Concatenates one part of torchao's weights, such as `scale`, over all layers."""
    return _join([getattr(linear.weight, name) for linear in linears])


class Shared:
    """Fuses layers that share an input: the first call multiplies once for all of them.

    A call with another input, for example from another thread, multiplies again. So does a second call for the same
    layer, because the content of its input may have changed.
    """

    def __init__(self, packed: PackedLinear, sizes: list[int]) -> None:
        self.packed, self.sizes = packed, sizes
        # The last input, and the outputs that were not fetched yet, by layer.
        self._last: tuple[torch.Tensor, dict[int, torch.Tensor]] | None = None

    def output(self, index: int, hidden_states: torch.Tensor) -> torch.Tensor:
        last = self._last
        if last is None or last[0] is not hidden_states or index not in last[1]:
            self._last = last = hidden_states, dict(enumerate(self.packed(hidden_states).split(self.sizes, dim=-1)))
        output = last[1].pop(index)
        if not last[1]:
            self._last = None
        return output


class SharedLinear(nn.Module):
    """One of the layers that a `Shared` fuses."""

    def __init__(self, shared: Shared, index: int) -> None:
        super().__init__()
        # A submodule, so that saving and moving the model reach it.
        self.packed, self.index = shared.packed, index
        self.in_features, self.out_features = shared.packed.in_features, shared.sizes[index]
        self._shared = shared

    @property
    def weight(self) -> torch.Tensor:
        """See `PackedLinear.weight`."""
        return self.packed.weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self._shared.output(self.index, hidden_states)
