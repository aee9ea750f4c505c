"""Settings of a generation_config.json that cannot be obeyed: transformers looks at most of them only while it generates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from .errors import CheckpointError, ConfigError, one_line
from .files import read_json

# More beams than anybody uses: each has keys and values for the whole text.
_MOST_BEAMS = 1000


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _from(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: _is_whole(value) and value >= least, f"a whole number of at least {least}"


_NUMBER = (_is_number, "a number")
_BEAMS = (lambda value: _is_whole(value) and 1 <= value <= _MOST_BEAMS, f"a whole number from 1 to {_MOST_BEAMS}")
_ID = (lambda value: _is_whole(value) or (_are_ids(value) and bool(value)), "a number of a token, or a list of them")
_IDS = (_are_ids, "a list of token ids")
_TRUTH = (lambda value: isinstance(value, bool), "true or false")
_TEXT = (lambda value: isinstance(value, str), "a text")
_OBJECT = (lambda value: isinstance(value, dict), "an object")
# What the settings have to be. The limits are transformers' own, where it has any.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"), _NUMBER),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "penalty_alpha"), _NUMBER),
    **dict.fromkeys(("guidance_scale", "diversity_penalty", "max_time"), _NUMBER),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_ensemble_weight"), _NUMBER),
    **dict.fromkeys(("max_length", "max_new_tokens", "max_cache_len", "prefill_chunk_size"), _from(1)),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit"), _from(1)),
    **dict.fromkeys(
        ("num_assistant_tokens", "assistant_lookbehind", "target_lookbehind", "num_beam_groups"), _from(1)
    ),
    **dict.fromkeys(("min_length", "min_new_tokens", "top_k"), _from(0)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _from(0)),
    **dict.fromkeys(("num_beams", "num_return_sequences"), _BEAMS),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), _ID),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), _ID),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _IDS),
    **dict.fromkeys(
        ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "token_healing"), _TRUTH
    ),
    **dict.fromkeys(("is_assistant", "use_mtp", "disable_compile", "low_memory", "return_dict_in_generate"), _TRUTH),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), _TRUTH),
    **dict.fromkeys(("cache_implementation", "num_assistant_tokens_schedule", "speculation_type"), _TEXT),
    **dict.fromkeys(("cache_config", "watermarking_config"), _OBJECT),
    "bad_words_ids": (
        lambda value: isinstance(value, list) and bool(value) and all(map(_are_ids, value)),
        "a list of lists of token ids",
    ),
    "exponential_decay_length_penalty": (
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
        "a list of a token's index and a factor",
    ),
    "stop_strings": (
        lambda value: all(isinstance(text, str) and text for text in (value if isinstance(value, list) else [value])),
        "a text or a list of texts, none of them empty",
    ),
}
# What changes the scores of tokens: these settings are tried, because transformers checks them one by one, each in another way.
_APPLIED = (
    *("sequence_bias", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "watermarking_config"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "guidance_scale"),
    *(
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "encoder_repetition_penalty",
        "is_assistant",
        "token_healing",
    ),
)
# What transformers does with its own code.
_MODES = ("greedy_search", "sample", "assisted_generation", "beam_search", "beam_sample")
# The settings that ask for another way.
_ASKING = {
    "contrastive_search": ("penalty_alpha",),
    "dola_generation": ("dola_layers",),
    "group_beam_search": ("num_beam_groups",),
    "constrained_beam_search": ("constraints", "force_words_ids"),
}


def check_settings(folder: Path) -> None:
    """Raises `CheckpointError` for a setting that is not of its kind: transformers compares and computes with it much later.

    Older models have their settings in config.json.
    """
    file = folder / GENERATION_CONFIG_NAME
    whole = file.is_file()
    settings = read_json(file if whole else folder / CONFIG_NAME)
    for name, (allowed, wanted) in _KINDS.items():
        value = settings.get(name)
        if value is not None and not allowed(value):
            raise CheckpointError(
                f"{file if whole else folder / CONFIG_NAME}: {name} is {value!r:.100}, which is not {wanted}."
            )
    if not whole:
        return
    for name in settings:
        # Would replace a method of the object.
        if hasattr(GenerationConfig, name):
            raise CheckpointError(f"{file}: {name:.100} is no setting. Delete it.")
    try:
        GenerationConfig.from_dict(settings)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise CheckpointError(f"{file} cannot be used: {one_line(error)[:500]}") from error


def check_applied(config: GenerationConfig, vocab_size: int, source: str | Path) -> None:
    """Raises `ConfigError` for a setting that transformers cannot apply to a model with so many tokens.

    Tries each of them on a model with next to no weights.

    Args:
        config: The settings of a model that was loaded.
        source: Folder or Hub id of the model, for the message.
    """
    where = Path(source) / GENERATION_CONFIG_NAME
    if config.pad_token_id is not None and config.pad_token_id >= vocab_size:
        raise ConfigError(
            f"{where}: pad_token_id is {config.pad_token_id}, and the model has only {vocab_size:,} tokens. Write the id of one, or null."
        )
    chosen = {name: value for name in _APPLIED if (value := getattr(config, name, None)) is not None}
    if not chosen:
        return
    common = {"do_sample": config.do_sample, "eos_token_id": config.eos_token_id, "max_new_tokens": 2}
    with torch.random.fork_rng(devices=[]):
        model = _tiny_model(vocab_size)
        for name, value in chosen.items():
            # Else the penalty would begin behind the two tokens.
            tried = [0, value[1]] if name == "exponential_decay_length_penalty" else value
            try:
                model.generate(
                    torch.zeros((1, 1), dtype=torch.long),
                    generation_config=GenerationConfig(**common, **{name: tried}),
                )
            # What transformers and torch raise at values that they do not expect.
            except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
                raise ConfigError(
                    f"{where}: {name} is {value!s:.100}, which cannot be applied to a model with {vocab_size:,} tokens: "
                    f"{one_line(error)[:300]}"
                ) from error


def _tiny_model(vocab_size: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=8,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def check_mode(config: GenerationConfig) -> None:
    """Raises `ConfigError` if settings ask for a way to generate that is code from the Hub, or for several texts at once."""
    mode = config.get_generation_mode().value
    if mode not in _MODES:
        asking = next((name for name in _ASKING.get(mode, ()) if getattr(config, name, None) is not None), None)
        raise ConfigError(
            f"The generation parameters, with those of the model's {GENERATION_CONFIG_NAME}, ask for {mode.replace('_', ' ')}, which "
            f"is code from the Hub. Delete {asking or 'what asks for it'} there."
        )
    if (config.num_return_sequences or 1) > 1:
        raise ConfigError(
            f"The generation parameter num_return_sequences is {config.num_return_sequences}, and here each text is continued once: "
            f"give 1, or delete it in the model's {GENERATION_CONFIG_NAME}."
        )
