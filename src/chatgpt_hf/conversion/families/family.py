"""Definition of a checkpoint family: how to translate configs and tensors to ours and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import ConversionError
from ...model.configuration_chatgpt import ChatGPTConfig

State = dict[str, torch.Tensor]

# Config fields with the same meaning in every family.
COMMON_FIELDS = ("dtype", "id2label", "label2id", "problem_type")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family, in both directions.

    Attributes:
        name: The family's name for `--to` and, if transformers has the family, the `model_type` of its config.json.
        config_in: Translates the content of its config to ours.
        config_out: Translates our config to its; raises with the field's name if the family cannot express it.
        tensors_in: Renames its tensors to our names, given its config; None if the names are the same, or
            transformers' loader has the mapping.
        tensors_out: Returns a model's tensors under the family's names.
        fields: Maps its config's fields to ours with the same meaning.
        fixed: Fields of ours that have only one possible value in this family.
    """

    name: str
    config_in: Callable[[dict[str, Any]], dict[str, Any]]
    config_out: Callable[[ChatGPTConfig], Any]
    tensors_out: Callable[[Any], State]
    tensors_in: Callable[[State, dict[str, Any]], State] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelFamily(Family):
    """A family with a class in transformers; its checkpoints are folders as `save_pretrained` writes them.

    Attributes:
        architecture: Name of its causal language model in transformers.
    """

    architecture: str

    def reader(self, config: dict[str, Any]) -> dict[str, Any]:
        """Translates a config.json of the family for `ChatGPTForCausalLM.from_pretrained`.

        Raises:
            ConversionError: If the family's tensors differ from ours, or our config cannot express its config.
        """
        if self.tensors_in is not None:
            raise ConversionError(
                f"A {self.name} checkpoint lacks some weights of a chatgpt model: `chatgpt-hf convert` adds them."
            )
        return self.config_in(config)


@dataclass(frozen=True, kw_only=True)
class FileFamily(Family):
    """A family whose checkpoints are torch files that only its own code base loads.

    Attributes:
        weights_name: The file's usual name.
        read: Returns a file's config and tensors, without wrapper prefixes in the names.
        write: Writes config and tensors into a folder.
        logits: Computes logits (batch, seq, vocab) of ids (batch, seq) in float32 by the family's equations, from
            config and tensors as in the file: the reference for conversions.
    """

    weights_name: str
    read: Callable[[Path], tuple[dict[str, Any], State]]
    write: Callable[[Path, dict[str, Any], State], None]
    logits: Callable[[dict[str, Any], State, torch.Tensor], torch.Tensor]


def refuse_other(family: str, config: ChatGPTConfig, fixed: Mapping[str, Any]) -> None:
    """Raises `ConversionError` for the first field of ours that differs from the family's only possible value."""
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ConversionError(
                f"{family} cannot express `{name}={getattr(config, name)!r}`; it always has `{name}={value!r}`."
            )


def refuse_uneven_heads(family: str, config: ChatGPTConfig) -> None:
    """Raises `ConversionError` if `hidden_size` is not `num_attention_heads * head_dim`."""
    if config.head_dim is None or config.hidden_size != config.num_attention_heads * config.head_dim:
        raise ConversionError(
            f"{family} cannot express `head_dim={config.head_dim}` with `hidden_size={config.hidden_size}` and "
            f"`num_attention_heads={config.num_attention_heads}`: it always splits the width evenly into heads."
        )


def common_fields_in(config: dict[str, Any]) -> dict[str, Any]:
    """The common fields in a config.json; `torch_dtype` gets its current name, `dtype`."""
    common = {name: config[name] for name in COMMON_FIELDS if name in config}
    if "dtype" not in common and "torch_dtype" in config:
        common["dtype"] = config["torch_dtype"]
    return common


def common_fields_out(config: ChatGPTConfig) -> dict[str, Any]:
    """The common fields that our config sets."""
    return {name: getattr(config, name) for name in COMMON_FIELDS if getattr(config, name) is not None}
