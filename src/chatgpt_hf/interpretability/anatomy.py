"""Where the parts of a causal language model are: layers, attention, feed-forward, heads, norm, head.

Nothing here knows a family. transformers' decoders keep their layers in one `ModuleList` of `num_hidden_layers`, and name
what is in a layer in a handful of ways; a model that does otherwise is refused by name.
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
        attentions: Of each layer.
        num_heads, head_dim: Of each layer's attention.
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
        """The feed-forward network of a layer.

        Raises:
            ConfigError: When the layer has none under a known name.
        """
        found = _child(self.layers[layer], _MLP_NAMES)
        if found is None:
            raise ConfigError(
                f"{type(self.model).__name__} has no feed-forward network in layer {layer} under any of the names "
                f"{', '.join(_MLP_NAMES)}, so it cannot be removed; remove heads or whole layers."
            )
        return found

    def output_projection(self, layer: int) -> nn.Module:
        """The matrix that takes the heads of a layer, side by side, back to the residual stream.

        Raises:
            ConfigError: When no single matrix of the attention does.
        """
        width = self.num_heads * self.head_dim
        # GPT-2's Conv1D is no Linear and keeps its matrix the other way round.
        found = [
            module
            for name, module in self.attentions[layer].named_modules()
            if name.rpartition(".")[2] in ("o_proj", "c_proj", "out_proj", "dense", "wo")
            and width in getattr(module, "weight", torch.empty(0)).shape
        ]
        if len(found) != 1:
            raise ConfigError(
                f"In {type(self.model).__name__} the output of the heads of layer {layer} was not found, so no head can be "
                "removed alone; remove the layer or its feed-forward network."
            )
        return found[0]

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model's last norm and head make of a residual stream: (..., hidden) to logits (..., vocab) in float32.

        Raises:
            ConfigError: When the model shows no such norm or head.
        """
        head = self.model.get_output_embeddings()
        norm = self._final_norm()
        if head is None or norm is None:
            raise ConfigError(
                f"{type(self.model).__name__} shows no {'head' if head is None else 'norm after its last layer'}, which a lens "
                "looks through."
            )
        logits = head(norm(hidden)).float()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    def _final_norm(self) -> nn.Module | None:
        """The last norm beside the stack of layers."""
        for body in self.model.modules():
            children = list(body.children())
            if any(isinstance(child, nn.ModuleList) and tuple(child) == self.layers for child in children):
                norms = [child for child in children if "norm" in type(child).__name__.lower()]
                return norms[-1] if norms else None
        return None

    def check_layer(self, layer: int) -> int:
        """The layer.

        Raises:
            ConfigError: When the model has no such layer.
        """
        if not 0 <= layer < self.num_layers:
            raise ConfigError(
                f"There is no layer {layer}: the model's {self.num_layers} layers are 0 to {self.num_layers - 1}."
            )
        return layer

    def check_head(self, head: int) -> int:
        """The head.

        Raises:
            ConfigError: When no layer has such a head.
        """
        if not 0 <= head < self.num_heads:
            raise ConfigError(
                f"There is no head {head}: each layer's {self.num_heads} heads are 0 to {self.num_heads - 1}."
            )
        return head


def anatomy(model: PreTrainedModel) -> Anatomy:
    """The parts of a model.

    Raises:
        ConfigError: When its layers or their attention are not found.
    """
    config = model.config.get_text_config()
    name = type(model).__name__
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    # Inside a layer there may be lists of the same length: the first is the outermost.
    layers = tuple(stacks[0]) if stacks else ()
    attentions = tuple(found for layer in layers if (found := _child(layer, _ATTENTION_NAMES)) is not None)
    if not layers or len(attentions) != len(layers):
        raise ConfigError(
            f"{name} is not built as the decoders that this looks into: "
            + (
                f"only {len(attentions)} of its {len(layers)} layers have attention."
                if layers
                else "its layers are not found."
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
    """What a layer gives: a tensor, or a tuple that begins with it."""
    return output if isinstance(output, torch.Tensor) else output[0]


def with_first_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """A layer's output with another tensor in it."""
    return tensor if isinstance(output, torch.Tensor) else (tensor, *output[1:])


@contextmanager
def output_changed(module: nn.Module, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Puts `change(input, output)` in the place of a module's output, first tensors each, while the block runs."""

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
    """The residual stream before the first layer and after each: `num_layers + 1` tensors (batch, seq, hidden).

    Not `output_hidden_states`, whose last entry has gone through the last norm in most families and not in all.
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
