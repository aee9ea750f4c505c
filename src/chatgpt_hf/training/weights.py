"""The weights that a training starts from: float32 while they learn, and saved in the dtype that they came in."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..errors import ConfigError
from ..stored import check_memory, quantization_of, stored_dtype
from .arguments import ModelArguments

# Copies of the weights that a training holds: themselves, their gradients, and what the optimizer keeps for each of them.
_COPIES = {"adamw": 4, "muon": 3}
_FEWEST_COPIES = 2


def trained_dtype(chosen: ModelArguments) -> torch.dtype:
    """The dtype of the weights during the training: `--dtype`, or float32.

    bfloat16 has 8 significant bits: a step below about 1/256 of a weight rounds to no step.
    """
    return getattr(torch, chosen.dtype or "float32")


def saved_dtype(chosen: ModelArguments) -> torch.dtype | None:
    """The dtype of the saved model: `--save_dtype`, or that of the base model; None for the one that it has, for a new model."""
    if chosen.save_dtype is not None:
        return getattr(torch, chosen.save_dtype)
    return None if chosen.model_name_or_path is None else stored_dtype(chosen.model_name_or_path)


def check_trainable(
    chosen: ModelArguments, arguments: TrainingArguments, *, frozen: bool, references: int = 0
) -> None:
    """Raises before anything is loaded if the base model cannot be trained here.

    Args:
        frozen: The base model itself is not trained: only adapters or a head are.
        references: Further models of the same size that the training holds.

    Raises:
        ConfigError: If its weights are quantized.
        CheckpointError: If the weights, with gradients and the optimizer's state unless frozen, need more memory than there is.
    """
    base = str(chosen.model_name_or_path)
    method = quantization_of(base)
    if method is not None and not frozen:
        raise ConfigError(
            f"{base} is quantized ({method}), and quantized weights cannot be trained: name the original model, or train adapters "
            "with --use_peft true."
        )
    # Several processes may share the weights among them, and a GPU has its own memory.
    if Path(base).is_dir() and arguments.device.type == "cpu" and arguments.world_size == 1:
        dtype = trained_dtype(chosen)
        # Adapters and heads need the weights once, and so does everything else: larger ones get no advice to train adapters.
        check_memory(Path(base), dtype, copies=1 + references if frozen else 1)
        if frozen:
            return
        copies = next((count for name, count in _COPIES.items() if name in str(arguments.optim)), _FEWEST_COPIES)
        adapters = hasattr(chosen, "use_peft")  # pretraining has none
        hint = "Train adapters with --use_peft true, which hold one copy, or use a larger machine." if adapters else ""
        check_memory(Path(base), dtype, copies=copies + references, hint=hint)


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts a model's floating-point parameters in place; tied ones stay tied.

    Buffers stay as they are: `model.to` would round the inverse frequencies of rotary positions.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def loading(chosen: ModelArguments) -> dict[str, Any]:
    """Arguments of `load_model` for the base model of a training."""
    return {"dtype": trained_dtype(chosen), "attn_implementation": chosen.attn_implementation}
