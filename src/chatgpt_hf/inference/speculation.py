"""Several tokens a step: guesses that the model checks at once, so that greedy ids stay what they are (Leviathan et al. 2023)."""

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

# Tokens that prompt lookup guesses at a time.
LOOKUP_TOKENS = 10


@dataclass
class Speculation:
    """Where the guesses come from, and what they were worth.

    Attributes:
        generation: Fields of `GenerationConfig`.
        assistant: The smaller model that guesses; None for the model's own layers, and for what follows the same tokens in
            the text so far.
        steps: Of the model, since `counting` began.
        guesses: That it checked in them.
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
            # Fewer while its own first layers guess.
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
        """What the guesses were worth for so many tokens: a step makes those that were right, and one more."""
        right = tokens - self.steps
        share = f", {right} of {self.guesses} guesses were right" if self.guesses else ""
        return f"{tokens} tokens in {self.steps} steps: {tokens / self.steps:.2f} a step{share}"


def make_speculation(
    speculate: str | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, length: int
) -> Speculation:
    """Guesses for a model.

    Args:
        speculate: `auto` looks them up in the text so far (Saxena 2023); a number has as many of the model's own first layers
            make them (Elhoushi et al. 2024); else the folder or Hub id of a smaller model. None guesses nothing.
        tokenizer: The model's.
        model: That checks them.
        length: Tokens of the text when it is as long as it may become.

    Raises:
        ConfigError: If the smaller model has another tokenizer or a context that is too short, or the model not more layers
            than that, or no way to leave them out.
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
            f"--speculate {speculate}: its tokenizer is another than the model's, so it cannot guess for it."
        )
    assistant = load_for_generation(speculate)
    limit = context_length(assistant)
    if length > limit:
        raise ConfigError(
            f"--speculate {speculate}: its context is {limit} tokens, and the text may become {length} long: lower "
            "max_new_tokens, or name another."
        )
    return Speculation(assistant=assistant)


@torch.no_grad()
def _check_early_exit(model: PreTrainedModel, wanted: int) -> None:
    """Raises `ConfigError` where the first layers alone give no token: `generate` lowers `num_hidden_layers` for them."""
    layers = getattr(model.config, "num_hidden_layers", 0)
    if not 1 <= wanted < layers:
        raise ConfigError(
            f"--speculate {wanted}: of the model's {layers} layers some can guess for it, not none or all."
        )
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
            f"--speculate {wanted}: {type(model).__name__} runs all its layers whatever its config says, so the first cannot "
            "guess for it: look guesses up (auto), or name a smaller model."
        )
