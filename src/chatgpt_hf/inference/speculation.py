"""Several tokens a step: guesses that the model checks at once, so that greedy ids stay what they are (Leviathan et al. 2023)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        assistant: The smaller model that guesses; None for what follows the same tokens in the text so far.
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

        def count(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
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


def make_speculation(speculate: str | None, tokenizer: PreTrainedTokenizerBase) -> Speculation:
    """`auto` looks guesses up in the text so far (Saxena 2023); else the folder or Hub id of a smaller model.

    Raises:
        ConfigError: When the smaller model has another tokenizer.
    """
    if speculate is None:
        return Speculation()
    if speculate == "auto":
        return Speculation({"prompt_lookup_num_tokens": LOOKUP_TOKENS})
    if load_tokenizer(speculate).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"--speculate {speculate}: its tokenizer is another than the model's, so it cannot guess for it."
        )
    return Speculation(assistant=load_for_generation(speculate))
