"""Finds the parts of a causal language model: layers, attention, feed-forward networks, heads, norm, output head.

Nothing here depends on a model family. transformers' decoders keep their layers in one `ModuleList` of `num_hidden_layers`,
and there are few names for the modules of a layer. Models that are built differently are rejected with an error.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..evaluation.mode import evaluating

_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "ff")


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model.

    Attributes:
        layers: From the embeddings upwards.
        attentions: Each layer's attention.
        num_heads, head_dim: Number and size of each attention's heads.
    """

    model: PreTrainedModel
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    num_heads: int
    head_dim: int

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def mlp(self, layer: int) -> nn.Module:
        """Returns the feed-forward network of a layer.

        Raises:
            ConfigError: If the layer has none with a known name.
        """
        found = _child(self.layers[layer], _MLP_NAMES)
        if found is None:
            raise ConfigError(
                f"{type(self.model).__name__} has no feed-forward network in layer {layer} with one of the names "
                f"{', '.join(_MLP_NAMES)}, so it cannot be removed: remove heads or whole layers."
            )
        return found

    def output_projection(self, layer: int) -> nn.Module:
        """Returns the matrix that maps the concatenated heads of a layer to the residual stream.

        Raises:
            ConfigError: If the attention has no such matrix, or several candidates.
        """
        width = self.num_heads * self.head_dim
        # GPT-2's Conv1D is not a Linear, and its matrix is transposed.
        found = [
            module
            for name, module in self.attentions[layer].named_modules()
            if name.rpartition(".")[2] in ("o_proj", "c_proj", "out_proj", "dense", "wo")
            and width in getattr(module, "weight", torch.empty(0)).shape
        ]
        if len(found) != 1:
            raise ConfigError(
                f"{type(self.model).__name__} has no known output matrix of the heads in layer {layer}, so single heads "
                "cannot be removed: remove the layer or its feed-forward network."
            )
        return found[0]

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Applies the last norm and the head to a residual stream: (..., hidden) to float32 logits (..., vocab).

        Raises:
            ConfigError: If the norm or the head is not found.
        """
        head = self.model.get_output_embeddings()
        norm = self._final_norm()
        if head is None or norm is None:
            raise ConfigError(
                f"{type(self.model).__name__} has no known {'head' if head is None else 'norm after its last layer'}, which a "
                "lens needs."
            )
        logits = head(norm(hidden)).float()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    def _final_norm(self) -> nn.Module | None:
        """Returns the last norm in the module that has the layers, or None."""
        for body in self.model.modules():
            children = list(body.children())
            if any(isinstance(child, nn.ModuleList) and tuple(child) == self.layers for child in children):
                norms = [child for child in children if "norm" in type(child).__name__.lower()]
                return norms[-1] if norms else None
        return None

    def check_layer(self, layer: int) -> int:
        """Returns the number of the layer if it exists.

        Raises:
            ConfigError: If the model has no such layer.
        """
        if not 0 <= layer < self.num_layers:
            raise ConfigError(
                f"There is no layer {layer}: the model's {self.num_layers} layers are 0 to {self.num_layers - 1}."
            )
        return layer

    def check_head(self, head: int) -> int:
        """Returns the number of the head if it exists.

        Raises:
            ConfigError: If the layers have no such head.
        """
        if not 0 <= head < self.num_heads:
            raise ConfigError(
                f"There is no head {head}: each layer's {self.num_heads} heads are 0 to {self.num_heads - 1}."
            )
        return head


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Finds the parts of a model.

    Raises:
        ConfigError: If its layers or their attention are not found.
    """
    config = model.config.get_text_config()
    name = type(model).__name__
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    # Layers may contain lists of the same length; the first list is the outermost.
    layers = tuple(stacks[0]) if stacks else ()
    attentions = tuple(found for layer in layers if (found := _child(layer, _ATTENTION_NAMES)) is not None)
    if not layers or len(attentions) != len(layers):
        raise ConfigError(
            f"{name} is not built like the supported decoders: "
            + (
                f"only {len(attentions)} of its {len(layers)} layers have attention."
                if layers
                else "its layers were not found."
            )
        )
    heads = config.num_attention_heads
    head_dim = (
        getattr(attentions[0], "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    )
    return Anatomy(model, layers, attentions, heads, head_dim)


def _child(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((child for name, child in layer.named_children() if name in names), None)


def first_tensor(output: Any) -> torch.Tensor:
    """Returns the tensor of a layer's output, which is a tensor or a tuple that begins with it."""
    return output if isinstance(output, torch.Tensor) else output[0]


def with_first_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """Returns a layer's output with its tensor replaced."""
    return tensor if isinstance(output, torch.Tensor) else (tensor, *output[1:])


@contextmanager
def output_changed(module: nn.Module, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replaces a module's output (its first tensor) by `change(input, output)` while the block runs."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given: Any = args[0] if args else kwargs.get("hidden_states")
        return with_first_tensor(output, change(given, first_tensor(output)))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def residual_streams(parts: Anatomy, ids: torch.Tensor) -> list[torch.Tensor]:
    """Returns the residual stream before the first layer and after each: `num_layers + 1` tensors (batch, seq, hidden).

    Does not use `output_hidden_states`: its last entry includes the last norm in most families, but not in all.
    """
    streams: list[torch.Tensor] = []

    def keep(given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if not streams:
            streams.append(given)
        streams.append(output)
        return output

    with ExitStack() as stack:
        stack.enter_context(evaluating(parts.model))
        for layer in parts.layers:
            stack.enter_context(output_changed(layer, keep))
        parts.model(input_ids=ids, use_cache=False)
    return streams
