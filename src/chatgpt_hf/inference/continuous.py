"""transformers' continuous batching: what it can do with a model, and how large its pages are."""

import math
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from ..errors import ConfigError
from .cpu.attention import use_cpu_attention

# Positions in a page of keys and values.
PAGE = 32
# Parameters that it does not apply, with the values that change nothing.
_IGNORED = {"repetition_penalty": 1.0, "min_p": 0.0, "bad_words_ids": None, "watermarking_config": None}


def check_continuous_batching(model: PreTrainedModel, config: GenerationConfig, otherwise: str) -> None:
    """Refuses what would be ignored, or computed wrongly.

    Args:
        model: To be batched.
        config: Its generation parameters.
        otherwise: For the message: how to do without continuous batching.

    Raises:
        ConfigError: Naming the parameter or the field.
    """
    ignored = [name for name, neutral in _IGNORED.items() if getattr(config, name) not in (None, neutral)]
    if ignored:
        other = ", or with --repetition_penalty 1" if ignored == ["repetition_penalty"] else ""
        raise ConfigError(f"Continuous batching cannot apply {', '.join(ignored)}: {otherwise}{other}.")
    if getattr(model.config, "conv_kernel_size", None) or getattr(model.config, "ngram_vocab_sizes", None):
        raise ConfigError(
            "Continuous batching keeps keys and values alone, and a model with convolutions or n-grams needs more of the "
            f"past: {otherwise}."
        )


def prepare_batching(model: PreTrainedModel, context: int, max_concurrent: int) -> dict[str, Any]:
    """Fields of `ContinuousBatchingConfig` for so many requests of so many positions at a time.

    Elsewhere than on an NVIDIA GPU the model attends request by request from now on.
    """
    if model.device.type == "cuda":
        return {}
    use_cpu_attention(model)
    # On a CPU transformers would take most of the machine's memory.
    pages = math.ceil(min(context, 4096) / PAGE) + 1
    return {"page_size": PAGE, "num_blocks": max_concurrent * pages, "max_batch_tokens": max(512, context)}
