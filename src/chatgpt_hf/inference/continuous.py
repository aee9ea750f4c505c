"""Checks and settings for transformers' continuous batching."""

import math
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import ConfigError
from .cpu.attention import use_cpu_attention

# Positions per page of keys and values.
PAGE = 32
# Generation parameters that continuous batching ignores, with their neutral values.
# (It drops them, or computes them from the tokens of one step, which belong to different texts.)
_IGNORED: dict[str, Any] = {
    **{"repetition_penalty": 1.0, "min_p": 0.0, "guidance_scale": 1.0, "max_time": None},
    **{"encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0},
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "watermarking_config", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
}


def check_continuous_batching(
    model: PreTrainedModel, config: GenerationConfig, otherwise: str, *, ends_at_strings: bool = False
) -> None:
    """Raises if continuous batching would ignore a parameter or compute wrong results.

    Args:
        model: The model to batch.
        config: Its generation parameters.
        otherwise: How to avoid continuous batching, for the message.
        ends_at_strings: The caller itself ends texts at `stop_strings`.

    Raises:
        ConfigError: The message names the parameter or field.
    """
    ignored = [name for name, neutral in _IGNORED.items() if getattr(config, name) not in (None, neutral)]
    if config.stop_strings and not ends_at_strings:
        ignored.append("stop_strings")
    if ignored:
        named = []
        for name in ignored:
            value = getattr(config, name)
            own = getattr(model.generation_config, name) == value
            named.append(f"{name} ({value}, from the model's {GENERATION_CONFIG_NAME})" if own else name)
        other = ", or give --repetition_penalty 1, which switches it off" if ignored == ["repetition_penalty"] else ""
        raise ConfigError(f"Continuous batching cannot apply {', '.join(named)}: {otherwise}{other}.")
    if getattr(model.config, "conv_kernel_size", None) or getattr(model.config, "ngram_vocab_sizes", None):
        raise ConfigError(
            "Continuous batching keeps only keys and values, but a model with convolutions or n-grams needs more state: "
            f"{otherwise}."
        )


def prepare_batching(model: PreTrainedModel, context: int, max_concurrent: int) -> dict[str, Any]:
    """Returns fields of `ContinuousBatchingConfig` for `max_concurrent` requests of `context` positions each.

    Except on an NVIDIA GPU, also switches the model to attention request by request.
    """
    if model.device.type == "cuda":
        return {}
    use_cpu_attention(model)
    # On a CPU transformers would take most of the machine's memory.
    pages = math.ceil(min(context, 4096) / PAGE) + 1
    return {"page_size": PAGE, "num_blocks": max_concurrent * pages, "max_batch_tokens": max(512, context)}
