"""Sampling parameters: fields of `GenerationConfig`, checked before anything is generated."""

from collections.abc import Callable
from typing import Any

from transformers import GenerationConfig

from ..errors import ConfigError


def generation_config_with(config: GenerationConfig, **generation: Any) -> GenerationConfig:
    """A generation config with changes.

    Raises:
        ConfigError: When a name is no field of `GenerationConfig` or a value is refused.
    """
    config = GenerationConfig.from_dict(config.to_dict())
    unknown = [name for name in generation if not hasattr(config, name)]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no generation parameter; GenerationConfig has no such field.")
    try:
        config.update(**{name: value for name, value in generation.items() if value is not None})
        if config.max_new_tokens is None and "max_length" not in generation:
            config.max_new_tokens = 256
        config.validate()
    except ValueError as error:
        raise ConfigError(f"The generation parameters cannot be used: {error}") from error
    for name, (allowed, text) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not allowed(value):
            raise ConfigError(f"The generation parameter {name} is {value}; it must be {text}.")
    if config.temperature is not None:
        config.temperature = float(config.temperature)  # transformers refuses a whole number
    return config


# transformers looks at these only while it generates, in the background, and some (top_p) not even then.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: value > 0, "above 0; for the likeliest token each time set do_sample to False"),
    "top_k": (lambda value: value >= 0 and int(value) == value, "a whole number, 0 for no limit"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "repetition_penalty": (lambda value: value > 0, "above 0"),
    "num_beams": (lambda value: value == 1, "1: beam search cannot be streamed"),
}


# Below it the logits of float32 overflow, and what clients mean by it is 0.
MIN_TEMPERATURE = 1e-3


def sampling(temperature: float | None) -> dict[str, Any]:
    """A temperature as generation parameters: None leaves the model's own, 0 and what is next to it mean greedy."""
    if temperature is None:
        return {}
    if 0 <= temperature < MIN_TEMPERATURE:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature}
