"""What a family of checkpoints is: how its config and its tensors become ours, and ours become its."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import ConversionError
from ...model.configuration_chatgpt import ChatGPTConfig

State = dict[str, torch.Tensor]

# What every transformers config may carry and all families mean alike.
COMMON_FIELDS = ("dtype", "id2label", "label2id", "problem_type")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family, in both directions.

    Attributes:
        name: What `--to` calls it and, for a family of transformers', the `model_type` of its config.json.
        config_in: The content of its config as that of ours.
        config_out: Our config as its, refusing with the field's name what it cannot express.
        tensors_in: Its tensors under our names, given its config; None where the names are ours already, or transformers'
            loader has the mapping.
        tensors_out: A model's tensors under its names.
        fields: Its config's fields and those of ours that mean the same.
        fixed: Fields of ours that have one value only in this family.
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
    """A family that transformers has a class for, so a checkpoint is a folder as `save_pretrained` writes it.

    Attributes:
        architecture: Name of its causal language model in transformers.
    """

    architecture: str

    def reader(self, config: dict[str, Any]) -> dict[str, Any]:
        """What `ChatGPTForCausalLM.from_pretrained` makes of a config.json of the family.

        Raises:
            ConversionError: If the family's tensors are not those of ours, or its config cannot be expressed.
        """
        if self.tensors_in is not None:
            raise ConversionError(
                f"A {self.name} checkpoint does not have all of a chatgpt model's weights: chatgpt-hf convert adds them."
            )
        return self.config_in(config)


@dataclass(frozen=True, kw_only=True)
class FileFamily(Family):
    """A family whose checkpoint is a file of torch's, which only its own code base loads.

    Attributes:
        weights_name: The file's usual name.
        read: A file's config and tensors, the prefixes of wrappers taken off.
        write: Writes config and tensors into a folder.
        logits: Logits (batch, seq, vocab) of ids (batch, seq), computed in float32 from config and tensors as they are in
            the file, by the family's equations: what a conversion is compared with.
    """

    weights_name: str
    read: Callable[[Path], tuple[dict[str, Any], State]]
    write: Callable[[Path, dict[str, Any], State], None]
    logits: Callable[[dict[str, Any], State, torch.Tensor], torch.Tensor]


def refuse_other(family: str, config: ChatGPTConfig, fixed: Mapping[str, Any]) -> None:
    """Raises `ConversionError` for the first field of ours that has another value than the family's only one."""
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ConversionError(
                f"{family} cannot express `{name}={getattr(config, name)!r}`; it has `{name}={value!r}` built in."
            )


def refuse_uneven_heads(family: str, config: ChatGPTConfig) -> None:
    """Raises `ConversionError` where the heads do not divide the width."""
    if config.head_dim is None or config.hidden_size != config.num_attention_heads * config.head_dim:
        raise ConversionError(
            f"{family} cannot express `head_dim={config.head_dim}` with `hidden_size={config.hidden_size}` and "
            f"`num_attention_heads={config.num_attention_heads}`: its heads divide the width."
        )


def common_fields_in(config: dict[str, Any]) -> dict[str, Any]:
    """The common fields that a config.json has, `torch_dtype` under its present name."""
    common = {name: config[name] for name in COMMON_FIELDS if name in config}
    if "dtype" not in common and "torch_dtype" in config:
        common["dtype"] = config["torch_dtype"]
    return common


def common_fields_out(config: ChatGPTConfig) -> dict[str, Any]:
    """The common fields that our config sets."""
    return {name: getattr(config, name) for name in COMMON_FIELDS if getattr(config, name) is not None}
