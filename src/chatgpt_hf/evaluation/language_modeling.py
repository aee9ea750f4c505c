"""How well a model predicts text: negative log-likelihood, and bits per byte, which no tokenizer can flatter."""

import lzma
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..tokenization_chatgpt import encode_documents
from .padding import pad


@dataclass(frozen=True)
class LanguageModelingResult:
    """Sums over a corpus; nats, tokens and bytes."""

    negative_log_likelihood: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.negative_log_likelihood / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token, so only comparable between models with the same tokenizer."""
        return math.exp(self.negative_log_likelihood / self.tokens)

    def as_dict(self) -> dict[str, float]:
        return {"bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity, "tokens": self.tokens}


def windows(length: int, size: int, stride: int) -> list[tuple[int, int, int]]:
    """Windows `(start, end, first_scored)` over `length` tokens, in which each token but the first is scored once.

    The first window scores all it can; each later one begins `stride` further and scores what is new, so that a scored
    token has at least `size - stride` tokens before it.
    """
    result = [(0, min(size, length), 1)]
    while result[-1][1] < length:
        previous_end = result[-1][1]
        end = min(previous_end + stride, length)
        result.append((end - size, end, previous_end))
    return result


@torch.inference_mode()
def evaluate_language_modeling(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    batch_size: int = 8,
    stride: int | None = None,
    progress: bool = True,
) -> LanguageModelingResult:
    """Scores documents, each from bos to eos, in windows of the model's context.

    Args:
        stride: New tokens per window of a document that is longer than the context; half the context when None.

    Raises:
        DataError: When there is no text.
        ConfigError: When `stride` is below 1 or not below the context.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise DataError("There is no held-out text to evaluate on.")
    size = model.config.max_position_embeddings
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride < max(size, 2):
        raise ConfigError(
            f"stride is {stride} and the model's context {size}: give 1 to {size - 1}, so that every token is predicted "
            "from something."
        )
    documents = encode_documents(tokenizer, texts)
    pieces: list[tuple[list[int], int]] = []
    for ids in documents:
        for start, end, first_scored in windows(len(ids), size, stride):
            pieces.append((ids[start:end], first_scored - start))
    # Rows of one length waste the least padding.
    pieces.sort(key=lambda piece: len(piece[0]), reverse=True)
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for begin in tqdm(range(0, len(pieces), batch_size), desc="Scoring held-out text", disable=not progress):
        batch = pieces[begin : begin + batch_size]
        rows = pad([ids for ids, _ in batch], side="right", pad_token_id=tokenizer.pad_token_id)
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        for row, (_, first_scored) in zip(labels, batch, strict=True):
            row[:first_scored] = -100
        count = int((labels != -100).sum())
        inputs: dict[str, Any] = {name: value.to(model.device) for name, value in rows.items()}
        output = model(**inputs, use_cache=False)
        shifted = labels[:, 1:].to(model.device)
        loss = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1).float(), shifted.flatten(), ignore_index=-100, reduction="sum"
        )
        total += loss.item()
        tokens += count
    model.train(was_training)
    return LanguageModelingResult(total, tokens, sum(len(text.encode()) for text in texts))


def xz_bits_per_byte(train: Iterable[str], held_out: Iterable[str]) -> float:
    """What `xz -9e` needs for the held-out text when it has seen the training text: the bar a model has to beat."""

    def size(texts: list[str]) -> int:
        return len(lzma.compress("\n\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME))

    seen, new = list(train), list(held_out)
    return 8 * (size(seen + new) - size(seen)) / sum(len(text.encode()) for text in new)
