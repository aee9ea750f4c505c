"""Sampling parameters: fields of `GenerationConfig`, checked before generation."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase, WatermarkingConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import ConfigError
from ..generation_settings import check_mode


def generation_config_with(config: GenerationConfig, **generation: Any) -> GenerationConfig:
    """Returns a copy of a generation config with changes.

    Raises:
        ConfigError: If `GenerationConfig` has no field of a name, or a value is invalid.
    """
    config = GenerationConfig.from_dict(config.to_dict())
    unknown = [name for name in generation if not hasattr(config, name)]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is not a generation parameter; GenerationConfig has no such field.")
    try:
        config.update(**{name: value for name, value in generation.items() if value is not None})
        config.validate()
    except ValueError as error:
        raise ConfigError(f"The generation parameters cannot be used: {error}") from error
    for name, (allowed, text) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not allowed(value):
            source = (
                "" if generation.get(name) is not None else f" It comes from the model's {GENERATION_CONFIG_NAME}."
            )
            raise ConfigError(f"The generation parameter {name} is {value}; it must be {text}.{source}")
    check_mode(config)
    if config.temperature is not None:
        config.temperature = float(config.temperature)  # transformers refuses a whole number
    return config


# The penalty divides and multiplies logits: far outside this range they overflow, and sampling fails.
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0


# transformers checks these only during generation, in a background thread, and some (top_p) not even then.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: value > 0, "above 0; to always take the likeliest token, set do_sample to False"),
    "top_k": (lambda value: value >= 0 and int(value) == value, "a whole number, 0 for no limit"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "repetition_penalty": (
        lambda value: MIN_PENALTY <= value <= MAX_PENALTY,
        f"between {MIN_PENALTY} and {MAX_PENALTY:.0f}, where 1 changes nothing",
    ),
    "num_beams": (lambda value: value == 1, "1: beam search cannot be streamed"),
}


# Below this, float32 logits overflow, and clients mean 0 anyway.
MIN_TEMPERATURE = 1e-3


def sampling(temperature: float | None) -> dict[str, Any]:
    """Translates a temperature to generation parameters: None keeps the model's own; 0 and almost 0 mean greedy."""
    if temperature is None:
        return {}
    if 0 <= temperature < MIN_TEMPERATURE:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature}


def restrictions(tokenizer: PreTrainedTokenizerBase, bad_words: Sequence[str], watermark: bool) -> dict[str, Any]:
    """Returns generation parameters that ban words and watermark the text.

    Args:
        bad_words: See `bad_words_ids`.
        watermark: Prefer some tokens, as transformers' `WatermarkingConfig` does by default, so that its
            `WatermarkDetector` recognizes the text.
    """
    parameters: dict[str, Any] = {}
    if bad_words:
        parameters["bad_words_ids"] = bad_words_ids(tokenizer, bad_words)
    if watermark:
        parameters["watermarking_config"] = WatermarkingConfig()
    return parameters


def bad_words_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Encodes words for `bad_words_ids`, with and without a leading space, as written and in three casings.

    The model never generates these sequences of tokens, not even at the beginning of a longer word. It may still spell
    a word with other tokens; moderation catches that.

    Raises:
        ConfigError: If a word has no tokens.
    """
    found: list[list[int]] = []
    for word in words:
        casings = dict.fromkeys([word, word.lower(), word.upper(), word.capitalize()])
        spellings = [space + casing for casing in casings for space in ("", " ")] if word.strip() else []
        ids = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in spellings]
        if not all(ids) or not ids:
            raise ConfigError(f"The bad word {word!r} has no tokens; leave it out.")
        found += [sequence for sequence in ids if sequence not in found]
    return found
