"""Speculative decoding (Leviathan et al. 2023): the model checks several guesses per step; greedy ids do not change."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import context_length
from ..errors import ConfigError
from ..tokenization_chatgpt import load_tokenizer
from .loading import load_for_generation

# Tokens that prompt lookup guesses per step.
LOOKUP_TOKENS = 10


@dataclass
class Speculation:
    """The source of the guesses, and their success.

    Attributes:
        generation: Fields of `GenerationConfig`.
        assistant: The smaller model that guesses; None if the model's own layers guess, or guesses are looked up in
            the text so far.
        steps: Steps of the model since `counting` began.
        guesses: Guesses that it checked in these steps.
    """

    generation: dict[str, Any] = field(default_factory=dict)
    assistant: PreTrainedModel | None = None
    steps: int = 0
    guesses: int = 0

    @contextmanager
    def counting(self, model: PreTrainedModel) -> Iterator[None]:
        """Counts the model's steps while the block runs."""
        config = model.config.get_text_config()
        layers = getattr(config, "num_hidden_layers", None)

        def count(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            # The model has fewer layers while its own first layers guess.
            if getattr(config, "num_hidden_layers", None) != layers:
                return
            self.steps += 1
            # One logit for each guess, and one for the token after them.
            self.guesses += kwargs.get("logits_to_keep", 1) - 1

        handle = model.register_forward_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def describe(self, tokens: int) -> str:
        """Describes the success of the guesses: each step adds the right guesses and one more token."""
        right = tokens - self.steps
        share = f", {right} of {self.guesses} guesses were right" if self.guesses else ""
        return f"{tokens} tokens in {self.steps} steps: {tokens / self.steps:.2f} per step{share}"


def make_speculation(
    speculate: str | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, length: int
) -> Speculation:
    """Prepares guesses for a model.

    Args:
        speculate: `auto` looks guesses up in the text so far (Saxena 2023); a number is how many of the model's own
            first layers guess (Elhoushi et al. 2024); anything else is the folder or Hub id of a smaller model. None
            disables it.
        tokenizer: The model's tokenizer.
        model: The model that checks the guesses.
        length: Maximum length of the whole text, in tokens.

    Raises:
        ConfigError: If the smaller model has another tokenizer or too short a context, or the number is not below the
            model's number of layers, or the model cannot skip layers.
    """
    if speculate is None:
        return Speculation()
    if speculate == "auto":
        return Speculation({"prompt_lookup_num_tokens": LOOKUP_TOKENS})
    if speculate.isdecimal():
        _check_early_exit(model, int(speculate))
        return Speculation({"assistant_early_exit": int(speculate)})
    if load_tokenizer(speculate).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"--speculate {speculate}: its tokenizer differs from the model's, so it cannot guess for the model."
        )
    assistant = load_for_generation(speculate)
    limit = context_length(assistant)
    if length > limit:
        raise ConfigError(
            f"--speculate {speculate}: its context is {limit} tokens, but the text may become {length} long: lower "
            "max_new_tokens, or name another model."
        )
    return Speculation(assistant=assistant)


@torch.no_grad()
def _check_early_exit(model: PreTrainedModel, wanted: int) -> None:
    """Raises `ConfigError` if the model cannot run only its first layers: `generate` lowers `num_hidden_layers`."""
    layers = getattr(model.config, "num_hidden_layers", 0)
    if not 1 <= wanted < layers:
        raise ConfigError(f"--speculate {wanted}: give at least 1 layer, and fewer than the model's {layers}.")
    model.config.num_hidden_layers = wanted
    try:
        states = model(
            torch.zeros(1, 1, dtype=torch.long, device=model.device), output_hidden_states=True
        ).hidden_states
        obeyed = len(states) == wanted + 1
    except (IndexError, RuntimeError):
        obeyed = False
    finally:
        model.config.num_hidden_layers = layers
    if not obeyed:
        raise ConfigError(
            f"--speculate {wanted}: {type(model).__name__} always runs all its layers, so its first layers cannot guess: use "
            "auto, or name a smaller model."
        )
