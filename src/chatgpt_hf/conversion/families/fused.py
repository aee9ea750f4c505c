"""Names of decoders in nanoGPT's tradition, whose queries, keys and values are one matrix, and the equations they share."""

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
    """Which module of a family is which of ours, both ways.

    Attributes:
        family: For messages.
        modules: Outside the layers, under their full names.
        layer_modules: Inside a layer.
        fused: The layer's module whose rows are the queries', the keys' and the values', in this order.
    """

    family: str
    modules: Mapping[str, str]
    layer_modules: Mapping[str, str]
    fused: str

    def read(self, state: State, rows: tuple[int, int, int]) -> State:
        """The family's tensors under our names.

        Args:
            state: Under the family's.
            rows: Of the queries, the keys and the values.

        Raises:
            ConversionError: On a tensor that the family does not have.
            CheckpointError: On a fused matrix of other sizes.
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
                    raise CheckpointError(f"{name} has {tensor.shape[0]} rows and its config asks for {sum(rows)}.")
                for letter, part in zip("qkv", tensor.split(rows), strict=True):
                    # A copy: parts of one memory cannot be saved as tensors of their own.
                    ours[f"model.layers.{layer[1]}.self_attn.{letter}_proj.{kind}"] = part.clone()
            else:
                raise ConversionError(f"The tensor {name} is none of {self.family}'s: is this a fork of it?")
        return ours

    def write(self, state: State) -> State:
        """Our tensors under the family's names: the inverse of `read`.

        Raises:
            ConversionError: On a tensor that the family has no place for.
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
    """Tensors without the prefixes that `torch.compile` and data-parallel wrappers leave in their names."""
    return {
        re.sub(r"^(?:(?:_orig_mod|_forward_module|module)\.)+", "", name): tensor for name, tensor in state.items()
    }


def is_state_dict(found: object) -> TypeGuard[State]:
    """Whether this is names and tensors and nothing else."""
    return (
        isinstance(found, dict)
        and len(found) > 0
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items())
    )


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """The module `name` applied to x (..., in), with its bias where it has one: (..., out)."""
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm with the module's weight, and its bias where it has one."""
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), eps)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1) to earlier positions, the last `window` of them.

    Args:
        query: (batch, heads, seq, head_dim); keys and values have a divisor of these heads, each for a run of queries.

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
