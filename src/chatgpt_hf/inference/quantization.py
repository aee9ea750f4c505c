"""Quantizes weights with transformers' own `TorchAoConfig`, so that a quantized folder is an ordinary model folder."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from ..checkpoints import check_tokenizer_fits, load_model
from ..errors import ConfigError
from ..extras import require
from ..files import atomic_folder, check_new_folder
from ..tokenization_chatgpt import load_tokenizer

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

# Number of int4 weights that share a scale.
GROUP_SIZE = 32


def _int8(device: torch.device) -> "AOBaseConfig":
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def _int8_weight_only(device: torch.device) -> "AOBaseConfig":
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _int4(device: torch.device) -> "AOBaseConfig":
    from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if device.type == "cuda":
        # PyTorch's own kernel; torchao's default packing needs one more package (mslk).
        return Int4WeightOnlyConfig(group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d")  # type: ignore[arg-type]
    # The config above has kernels only for GPUs. This one stores a byte per weight in the file.
    return IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP_SIZE))  # type: ignore[attr-defined]


# Each function takes the model's device.
QUANTIZATIONS: dict[str, Callable[[torch.device], "AOBaseConfig"]] = {
    "int8": _int8,
    "int8-weight-only": _int8_weight_only,
    "int4": _int4,
}


def quantize_model(model: PreTrainedModel, quantization: str) -> PreTrainedModel:
    """Quantizes every linear layer of a model in place, including the head, but not the embeddings.

    A tied head is separated from the embedding, because reading it is a third of the work of a small model.

    Args:
        model: A model in float32 or bfloat16; int4 on a GPU converts it to bfloat16.
        quantization: `int8` (weights per row; activations per token, dynamically), `int8-weight-only` (per row), or
            `int4` (weights in groups of 32).

    Raises:
        ConfigError: If the quantization is unknown, the model is already quantized, or a layer's width is not a multiple of
            the group size.
        MissingDependency: If torchao is not installed.
    """
    _check_name(quantization)
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError("The model is already quantized: quantize the original instead.")
    require("Quantizing", "torchao")
    if quantization == "int4":
        _check_groups(model)
    from torchao.quantization import quantize_

    config = TorchAoConfig(QUANTIZATIONS[quantization](model.device), modules_to_not_convert=[])
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    if quantization == "int4" and model.device.type == "cuda":
        # The kernel takes only bfloat16.
        model.to(torch.bfloat16)
    quantize_(model, config.quant_type)
    # Set as `from_pretrained` does when it quantizes a model; `save_pretrained` needs both.
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    return model


def _check_name(quantization: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"There is no quantization {quantization}; choose from {', '.join(QUANTIZATIONS)}.")


def _check_groups(model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % GROUP_SIZE:
            raise ConfigError(
                f"int4 has one scale per {GROUP_SIZE} weights, but {name} has rows of {module.in_features}: hidden_size, "
                f"intermediate_size and head_dim x num_attention_heads must be multiples of {GROUP_SIZE}. Use int8 instead."
            )


def quantize_folder(source: str | Path, folder: str | Path, quantization: str) -> Path:
    """Writes a model folder with quantized weights, which `from_pretrained` loads if torchao is installed.

    Args:
        source: Folder or Hub id of a causal language model.
        folder: A folder that does not exist or is empty.
        quantization: See `quantize_model`.

    Raises:
        ConfigError: If `quantize_model` raises it.
        CheckpointError: If there is no model, or it is incomplete.
        TokenizerError: If there is no tokenizer, or it does not fit the model.
        OutputError: If the folder is not empty.
    """
    _check_name(quantization)
    target = check_new_folder(folder)
    model = load_model(source)
    tokenizer = load_tokenizer(str(source))
    check_tokenizer_fits(model, tokenizer)
    quantize_model(model, quantization)
    with atomic_folder(target) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return target
