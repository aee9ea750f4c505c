"""Merges an adapter into its base model."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints import ADAPTER_CONFIG_NAME, load_model, repair_generation_config
from ..errors import ConversionError
from ..extras import needed_by
from ..files import check_new_folder, new_folder
from ..stored import base_of, carry_origin, copy_licence, quantization_of, stored_dtype, warn_of_calibration
from ..tokenization_chatgpt import load_tokenizer
from .convert import float32_logits, random_ids

# Largest difference of float32 logits that rounding can explain, as a share of the largest logit.
RELATIVE_TOLERANCE = 1e-4


def merge_adapter(source: str | Path, output_dir: str | Path, dtype: torch.dtype | None = None) -> float:
    """Adds an adapter's weights to its base model's, compares the logits, and writes the result.

    Merges and compares in float32, also for a base that is stored in half precision, and rounds last.

    Args:
        source: Folder of an adapter, as written by `chatgpt-hf sft --use_peft true` or by PEFT.
        output_dir: A folder that does not exist or is empty.
        dtype: The dtype of the merged model; None for the one that the base model is stored in.

    Returns:
        The largest difference between the logits with a separate adapter and with the merged one, in float32.

    Raises:
        ConversionError: If the source contains no adapter, or none that can be merged, or the logits differ.
        OutputError: If the folder is not empty.
        CheckpointError: If adapter or base model cannot be read, or do not belong together.
    """
    folder = check_new_folder(output_dir)
    if not (Path(source) / ADAPTER_CONFIG_NAME).is_file():
        raise ConversionError(
            f"{source} contains no adapter: {ADAPTER_CONFIG_NAME} is missing. A complete model needs no merging."
        )
    base = base_of(source)
    if base and (method := quantization_of(base)):
        raise ConversionError(
            f"{base}, the base model of {source}, is quantized ({method}): an adapter can only be added to plain weights. Write "
            f"the original model's name into {ADAPTER_CONFIG_NAME}."
        )
    tokenizer = load_tokenizer(source)
    adapted: Any = load_model(source, dtype=torch.float32)
    if adapted.active_peft_config.is_prompt_learning:
        raise ConversionError(
            f"{source} is an adapter of the kind {adapted.active_peft_config.peft_type.value}, which adds inputs and changes no weights: "
            "it cannot be merged. Load it together with its base model."
        )
    ids = random_ids(adapted.config)
    before = float32_logits(adapted, ids)
    _separate_tied_weights(adapted.get_base_model())
    merged = adapted.merge_and_unload()
    _tie_equal_weights(merged)
    difference = (float32_logits(merged, ids) - before).abs().max().item()
    tolerance = RELATIVE_TOLERANCE * max(1.0, before.abs().max().item())
    if not difference <= tolerance:
        raise ConversionError(
            f"The merged model's logits differ by {difference:.1e} (rounding explains at most {tolerance:.0e}). Nothing was "
            "written."
        )
    for parameter in merged.parameters():
        # Not `Module.to`, which would round the inverse frequencies of rotary positions too.
        parameter.data = parameter.data.to(dtype or stored_dtype(source))
    repair_generation_config(merged)
    if base:
        carry_origin(merged.config, base, source)
    with new_folder(folder) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        copy_licence(base, temporary)
    warn_of_calibration(source)
    return difference


def _separate_tied_weights(model: Any) -> None:
    """Unties the head if an adapter changes it or the embedding: each gets what its own adapter adds."""
    with needed_by("Merging"):
        from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    table, head = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers)
    if head is not None and head.weight is table.weight:
        head.weight = nn.Parameter(copy.deepcopy(head.weight.detach()))


def _tie_equal_weights(model: Any) -> None:
    """Makes the config say whether embedding and head are one weight; where they are equal they become one again."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or not model.config.tie_word_embeddings or head.weight is table.weight:
        return
    if torch.equal(head.weight, table.weight):
        model.tie_weights()
    else:
        model.config.tie_word_embeddings = False
