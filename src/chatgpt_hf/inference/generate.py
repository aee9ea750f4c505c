"""Continuing a text, token by token."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from ..checkpoints import check_tokenizer_fits, context_length
from ..errors import ConfigError
from ..tokenization_chatgpt import check_text, encode_prompts, load_tokenizer
from .compiling import compiled_prefix
from .loading import load_for_generation
from .parameters import generation_config_with, restrictions, sampling
from .speculation import make_speculation
from .streaming import Ending, stream_tokens


def stream_text(
    name_or_path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    seed: int | None = None,
    bad_words: Sequence[str] = (),
    watermark: bool = False,
    speculate: str | None = None,
    quantize: str | None = None,
    compile: bool = False,
    report: Callable[[str], object] = lambda sentence: None,
    **parameters: Any,
) -> Iterator[str]:
    """Yields the prompt, then its continuation in pieces of valid UTF-8.

    Args:
        bad_words: See `restrictions`.
        watermark: See `restrictions`.
        speculate: See `make_speculation`.
        quantize: See `load_for_generation`.
        compile: See `compiled_prefix`.
        report: Called with a sentence about `compile`, and at the end with the success of `speculate`.
        **parameters: Sampling parameters of `GenerationConfig`; a temperature of 0 means greedy.

    Raises:
        ConfigError: If the prompt is longer than the model's context, a bad word has no tokens, `speculate` is
            impossible (see `make_speculation`) or combined with `compile`, or the model cannot be quantized that way.
        DataError: If the prompt contains bytes that are not UTF-8.
        CheckpointError: If there is no model, or it is incomplete.
        TokenizerError: If there is no tokenizer, or it does not fit the model.
    """
    if compile and speculate is not None:
        raise ConfigError("--compile works only with one token per step: leave --speculate out.")
    model = load_for_generation(name_or_path, quantize)
    tokenizer = load_tokenizer(str(name_or_path))
    check_tokenizer_fits(model, tokenizer)
    check_text("--prompt", prompt)
    ids = encode_prompt(tokenizer, prompt)
    limit = context_length(model)
    if len(ids) >= limit:
        raise ConfigError(
            f"The prompt takes {len(ids)} tokens, but the model's context is {limit} (`max_position_embeddings`): "
            "shorten the prompt."
        )
    max_new_tokens = min(max_new_tokens, limit - len(ids))
    speculation = make_speculation(speculate, tokenizer, model, len(ids) + max_new_tokens)
    config = generation_config_with(
        model.generation_config,
        max_new_tokens=max_new_tokens,
        **speculation.generation,
        **sampling(parameters.pop("temperature", None)),
        **restrictions(tokenizer, bad_words, watermark),
        **parameters,
    )
    prefix = compiled_prefix(model.eval(), report) if compile else None
    if seed is not None:
        set_seed(seed)
    yield prompt
    ending = Ending()
    with speculation.counting(model):
        yield from stream_tokens(
            model.eval(), tokenizer, ids, config, prefix, ending=ending, assistant_model=speculation.assistant
        )
    if speculate is not None and speculation.steps:
        report(speculation.describe(len(ending.answer_ids)))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Encodes a prompt as the beginning of a document; see `encode_prompts`."""
    return encode_prompts(tokenizer, [prompt])[0]
