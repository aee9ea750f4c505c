"""Loads models for generation, in the form that is fastest on this machine."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..checkpoints import load_for_inference
from ..conversion.heads import check_language_model
from ..errors import ConfigError
from .cpu.packed_linear import SMALLEST_FOR_MANY_ROWS, use_cpu_kernels
from .quantization import quantize_model
from .tensor_parallel import current_group

# How the text is computed, which is decided here: the cache, and who guesses tokens (`--speculate`).
_WAYS = ("cache_implementation", "use_cache", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
_OUTPUTS = (
    *("return_dict_in_generate", "output_scores", "output_logits"),
    *("output_attentions", "output_hidden_states"),
)


def load_language_model(name_or_path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Calls `load_for_inference`, and raises `ConversionError` for a model with the head of another task.

    Within `run_shared`, the model is shared among its processes.
    """
    if (group := current_group()) is not None:
        return group.load(name_or_path, **kwargs)
    model = load_for_inference(name_or_path, **kwargs)
    check_language_model(model, name_or_path, "do this")
    return model


def load_for_generation(
    name_or_path: str | Path, quantize: str | None = None, *, many_rows: bool = False
) -> PreTrainedModel:
    """Loads a causal language model on the accelerator, or with fast CPU kernels; it can generate but not be trained.

    Within `run_shared`, the model is shared among its processes, on a CPU with PyTorch's own kernels.

    Args:
        name_or_path: Folder or Hub id.
        quantize: See `quantize_model`; None leaves the weights as they are stored. A folder is
            quantized from float32, whatever it is stored in.
        many_rows: The model will compute dozens of rows at once, for which small layers are packed too.

    Raises:
        CheckpointError: If there is no model, or it is incomplete.
        ConfigError: If it cannot be quantized that way.
        ConversionError: If it has the head of another task.
    """
    if quantize is not None and current_group() is not None:
        raise ConfigError("--quantize packs whole matrices, and --tp_plan shares them: leave one of them out.")
    model = load_language_model(name_or_path, dtype=torch.float32 if quantize is not None else None)
    if quantize is not None:
        quantize_model(model, quantize)
    _take_tokens_only(model.generation_config)
    if current_group() is not None:
        return model
    return use_cpu_kernels(model, smallest=SMALLEST_FOR_MANY_ROWS if many_rows else None)


def _take_tokens_only(config: GenerationConfig | None) -> None:
    """Unsets, in place, how `generate` would compute the text, and outputs other than tokens."""
    if config is not None:
        for name in _WAYS:
            setattr(config, name, None)
        for name in _OUTPUTS:
            setattr(config, name, False)
