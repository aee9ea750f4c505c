"""A model that is to answer, in the form in which it does so fastest on this machine."""

from pathlib import Path

from transformers import PreTrainedModel

from ..checkpoints import load_for_inference
from .cpu.packed_linear import use_cpu_kernels
from .quantization import quantize_model


def load_for_generation(name_or_path: str | Path, quantize: str | None = None) -> PreTrainedModel:
    """A causal language model on the machine's accelerator, or with the CPU's kernels; it can answer and not learn.

    Args:
        name_or_path: Folder or Hub id.
        quantize: As `quantize_model` takes it; None leaves the weights as they are stored.

    Raises:
        CheckpointError: If there is no model, or it is not whole.
        ConfigError: If it cannot be quantized so.
    """
    model = load_for_inference(name_or_path)
    if quantize is not None:
        quantize_model(model, quantize)
    return use_cpu_kernels(model)
