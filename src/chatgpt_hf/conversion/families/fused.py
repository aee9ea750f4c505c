"""Names and shared equations of nanoGPT-like decoders, which have one matrix for queries, keys and values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch.nn import functional

from ...errors import CheckpointError, ConversionError
from .family import State

_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)")


@dataclass(frozen=True)
class FusedNames:
    """Maps a family's module names to ours, and back.

    Attributes:
        family: Name for messages.
        modules: Modules outside the layers, by full name.
        layer_modules: Modules inside a layer.
        fused: The layer's module that contains the rows of queries, keys and values, in this order.
    """

    family: str
    modules: Mapping[str, str]
    layer_modules: Mapping[str, str]
    fused: str

    def read(self, state: State, rows: tuple[int, int, int]) -> State:
        """Renames the family's tensors to our names.

        Args:
            state: Tensors under the family's names.
            rows: Number of rows for queries, keys and values.

        Raises:
            ConversionError: If the family has no such tensor.
            CheckpointError: If a fused matrix has another number of rows.
        """
        ours: State = {}
        for name, tensor in state.items():
            module, _, kind = name.rpartition(".")
            layer = _LAYER.fullmatch(module)
            if layer is None and module in self.modules:
                ours[f"{self.modules[module]}.{kind}"] = tensor
            elif layer is not None and layer[2] in self.layer_modules:
                ours[f"model.layers.{layer[1]}.{self.layer_modules[layer[2]]}.{kind}"] = tensor
            elif layer is not None and layer[2] == self.fused:
                if tensor.shape[0] != sum(rows):
                    raise CheckpointError(f"{name} has {tensor.shape[0]} rows, but its config asks for {sum(rows)}.")
                for letter, part in zip("qkv", tensor.split(rows), strict=True):
                    # Copied, because tensors that share memory cannot be saved separately.
                    ours[f"model.layers.{layer[1]}.self_attn.{letter}_proj.{kind}"] = part.clone()
            else:
                raise ConversionError(f"{self.family} has no tensor {name}: is this checkpoint from a fork?")
        return ours

    def write(self, state: State) -> State:
        """Renames our tensors to the family's names: the inverse of `read`.

        Raises:
            ConversionError: If the family has no place for a tensor.
        """
        modules = {ours: theirs for theirs, ours in self.modules.items()}
        layer_modules = {ours: theirs for theirs, ours in self.layer_modules.items()}
        theirs: State = {}
        for name, tensor in state.items():
            module, _, kind = name.rpartition(".")
            if module in modules:
                theirs[f"{modules[module]}.{kind}"] = tensor
                continue
            layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
            if layer is not None and layer[2] in layer_modules:
                theirs[f"transformer.h.{layer[1]}.{layer_modules[layer[2]]}.{kind}"] = tensor
            elif layer is not None and re.fullmatch(r"self_attn\.[qkv]_proj", layer[2]):
                if layer[2] == "self_attn.q_proj":
                    parts = [state[f"model.layers.{layer[1]}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                    theirs[f"transformer.h.{layer[1]}.{self.fused}.{kind}"] = torch.cat(parts)
            else:
                raise ConversionError(f"{self.family} cannot express the tensor {name}.")
        return theirs


def without_wrappers(state: State) -> State:
    """Removes the name prefixes that `torch.compile` and data-parallel wrappers leave."""
    return {
        re.sub(r"^(?:(?:_orig_mod|_forward_module|module)\.)+", "", name): tensor for name, tensor in state.items()
    }


def is_state_dict(found: object) -> TypeGuard[State]:
    """True if this is a non-empty dict of tensors by name."""
    return (
        isinstance(found, dict)
        and len(found) > 0
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items())
    )


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Applies the module `name`, with its bias if it has one, to x (..., in): (..., out)."""
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm with the module's weight, and its bias if it has one."""
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), eps)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """Causal scaled dot-product attention (Vaswani et al. 2017, equation 1) to the last `window` positions.

    Args:
        query: (batch, heads, seq, head_dim). The number of key and value heads divides `heads`; each serves
            consecutive query heads.

    Returns:
        (batch, seq, heads * head_dim).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    positions = torch.arange(query.shape[2])
    distance = positions[:, None] - positions[None, :]
    visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)
