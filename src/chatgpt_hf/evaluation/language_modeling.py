"""Evaluates how well a model predicts text: negative log-likelihood, and bits per byte (independent of tokenizers)."""

import lzma
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import context_length
from ..errors import ConfigError, DataError
from ..tokenization_chatgpt import encode_texts
from .figures import Measure
from .scoring import negative_log_likelihoods

# Longest window if none is chosen, in tokens: attention over the 131,072 positions that a config may promise would take
# hours. Perplexity is commonly reported with 2,048.
DEFAULT_WINDOW = 2048


@dataclass(frozen=True)
class LanguageModelingResult:
    """Nats, tokens and bytes of each document in a corpus, each of shape (documents,)."""

    nats: np.ndarray
    document_tokens: np.ndarray
    document_bytes: np.ndarray

    @property
    def negative_log_likelihood(self) -> float:
        return float(self.nats.sum())

    @property
    def tokens(self) -> int:
        return int(self.document_tokens.sum())

    @property
    def bytes(self) -> int:
        return int(self.document_bytes.sum())

    @property
    def bits_per_byte(self) -> float:
        return self.negative_log_likelihood / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token, so it can only be compared between models with the same tokenizer."""
        return math.exp(self.negative_log_likelihood / self.tokens)

    def as_dict(self) -> dict[str, float]:
        return {"bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity, "tokens": self.tokens}

    def measures(self) -> dict[str, Measure]:
        """Returns the figures with each document's contribution."""
        by_token = np.stack([self.nats, self.document_tokens], axis=1)
        by_byte = np.stack([self.nats, self.document_bytes], axis=1)
        return {
            "bits_per_byte": Measure("bits", by_byte, higher_is_better=False),
            "perplexity": Measure("perplexity", by_token, higher_is_better=False),
            "nats_per_token": Measure("mean", by_token, higher_is_better=False),
            "nats_per_byte": Measure("mean", by_byte, higher_is_better=False),
        }


def scoring_windows(length: int, size: int, stride: int) -> list[tuple[int, int, int]]:
    """Returns windows `(start, end, first_scored)` over `length` tokens that score each token but the first once.

    The first window scores all its tokens but the first; each later one begins `stride` further and scores the new tokens.
    So a token in a later window has at least `size - stride` tokens before it. This is the recipe of transformers' documentation ("Perplexity of fixed-length
    models"), whose last window is shorter too.
    """
    result = [(0, min(size, length), 1)]
    while result[-1][1] < length:
        start, previous_end, _ = result[-1]
        result.append((start + stride, min(previous_end + stride, length), previous_end))
    return result


def window_and_stride(model: PreTrainedModel, window: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """Returns the window and stride for `scoring_windows`, in tokens.

    Args:
        window: None for the model's context, but at most `DEFAULT_WINDOW`.
        stride: None for half the window.

    Raises:
        ConfigError: If `window` is below 2 or above the model's context, or `stride` is below 1 or not below the window.
    """
    context = context_length(model)
    size = min(context, DEFAULT_WINDOW) if window is None else window
    if window is not None and not 2 <= window <= context:
        raise ConfigError(f"window is {window} and the model's context {context}: give 2 to {context} tokens.")
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride < max(size, 2):
        what = "the model's context" if window is None and size == context else "the window"
        raise ConfigError(
            f"stride is {stride} and {what} {size}: give 1 to {size - 1}, so that every token has a token before it."
        )
    return size, stride


def evaluate_language_modeling(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    progress: bool = True,
) -> LanguageModelingResult:
    """Scores documents, with bos and eos where the tokenizer has them (`document_marks`), in overlapping windows.

    Args:
        batch_size: Windows at a time; None for up to 8, fewer if they are long.
        window: Tokens that the model sees at a time; None for its context, but at most `DEFAULT_WINDOW`.
        stride: New tokens per window for documents longer than the window; None for half the window.

    Raises:
        DataError: If there is no text.
        ConfigError: See `window_and_stride`.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise DataError("There is no held-out text to evaluate on.")
    size, stride = window_and_stride(model, window, stride)
    documents = encode_texts(tokenizer, texts, with_end=True)
    pieces: list[tuple[list[int], int]] = []
    owners: list[int] = []
    for owner, ids in enumerate(documents):
        for start, end, first_scored in scoring_windows(len(ids), size, stride):
            pieces.append((ids[start:end], first_scored - start))
            owners.append(owner)
    nats = negative_log_likelihoods(
        model,
        pieces,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        desc="Scoring held-out text",
        progress=progress,
    )
    return LanguageModelingResult(
        np.bincount(owners, nats, minlength=len(documents)),
        # A document's first token is not scored: no token before it could predict it.
        np.array([len(ids) - 1 for ids in documents]),
        np.array([len(text.encode()) for text in texts]),
    )


def xz_bits_per_byte(train: Iterable[str], held_out: Iterable[str]) -> float:
    """Returns how many bits per byte `xz -9e` needs for held-out text after the training text: the bar for a model."""

    def size(texts: list[str]) -> int:
        return len(lzma.compress("\n\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME))

    seen, new = list(train), list(held_out)
    return 8 * (size(seen + new) - size(seen)) / sum(len(text.encode()) for text in new)
