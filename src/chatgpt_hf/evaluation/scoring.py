"""The likelihood of given tokens under a model, which measures language modeling, completions and choices."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization_chatgpt import encode_prompts, encode_texts
from .mode import evaluating
from .padding import pad
from .sharing import Share, share_of

# Float32 logits that exist at a time; the cross-entropy holds about three copies. The logits of 8 rows of 8,192 tokens
# with a vocabulary of 49,152 would be 13 GB.
LOGITS_BYTES = 128 * 2**20
# Rows and tokens at a time if no batch size is given. Larger batches are no faster on a CPU.
BATCH_ROWS, BATCH_TOKENS = 8, 4096


@torch.inference_mode()
def negative_log_likelihoods(
    model: PreTrainedModel,
    pieces: Sequence[tuple[Sequence[int], int | Sequence[int]]],
    *,
    pad_token_id: int | None,
    batch_size: int | None = None,
    desc: str = "Scoring",
    progress: bool = True,
) -> np.ndarray:
    """Returns the negative log-likelihood of each piece in nats, (pieces,).

    It sums over the tokens that count, each predicted from the tokens before it. Memory does not grow with length times
    vocabulary: if the logits of a batch are large, the head is applied to a part of the positions at a time.

    Args:
        pieces: Pairs of token ids, at most as many as the model's context, and what counts: all tokens from a position on,
            at least 1, or those where a mask of the same length is 1.
        pad_token_id: Fills short rows; it is masked, so it may be any id.
        batch_size: Rows at a time; None for up to 8, fewer if they are long.
    """
    nats = np.zeros(len(pieces))
    rows = [ids for ids, _ in pieces]
    share, computed = share_of(model), list[int]()
    with evaluating(model):
        for indices, inputs in _padded(model, rows, pad_token_id, batch_size, desc, progress, share):
            computed += indices
            labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
            for row, index in zip(labels, indices, strict=True):
                ids, counted = pieces[index]
                if isinstance(counted, int):
                    row[:counted] = -100
                else:
                    row[: len(ids)][torch.tensor(counted, device=row.device) == 0] = -100
            nats[indices] = _losses(model, inputs, labels[:, 1:]).double().sum(1).cpu().numpy()
    if share is not None:
        for indices, found in share.gather([computed, nats[computed].tolist()]):
            nats[indices] = found
    return nats


@torch.inference_mode()
def next_log_probs(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
    *,
    pad_token_id: int | None,
    batch_size: int | None = None,
    desc: str = "Scoring",
    progress: bool = True,
) -> np.ndarray:
    """Returns how likely each of some tokens is as the one that follows a row: log-probabilities in nats, (rows, tokens).

    Args:
        rows: Token ids, at least one and at most as many as the model's context.
        tokens: For each row the same number of tokens, (rows, tokens).
        pad_token_id, batch_size: See `negative_log_likelihoods`.
    """
    found = np.zeros(np.shape(tokens))
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    keeps = "logits_to_keep" in inspect.signature(inner.forward).parameters
    with evaluating(model):
        for indices, inputs in _padded(model, rows, pad_token_id, batch_size, desc, progress):
            kept, places = (inputs["attention_mask"].sum(1) - 1).unique(return_inverse=True)
            logits = model(**inputs, use_cache=False, **({"logits_to_keep": kept} if keeps else {})).logits
            last = logits[torch.arange(len(indices), device=logits.device), places if keeps else kept[places]]
            chosen = torch.tensor([list(tokens[index]) for index in indices], device=last.device)
            found[indices] = last.float().log_softmax(-1).gather(-1, chosen).cpu().numpy()
    return found


@torch.inference_mode()
def classifier_scores(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int | None = None,
    desc: str = "Scoring",
    progress: bool = True,
) -> np.ndarray:
    """Returns the score of each row by a sequence classifier with one output, (rows,).

    Args:
        rows: Token ids, at least one and at most as many as the model's context.
        batch_size: See `negative_log_likelihoods`.
    """
    scores = np.zeros(len(rows))
    with evaluating(model):
        # It finds the end of a row by this token.
        for indices, inputs in _padded(model, rows, model.config.pad_token_id, batch_size, desc, progress):
            scores[indices] = model(**inputs).logits.squeeze(-1).float().cpu().numpy()
    return scores


def _padded(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    pad_token_id: int | None,
    batch_size: int | None,
    desc: str,
    progress: bool,
    share: Share | None = None,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yields the indices of some rows, long rows first, and their inputs on the model's device, padded on the right.

    Args:
        share: Yields only the batches of this process.
    """
    # Batches of similarly long rows need the least padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    lengths = [len(rows[index]) for index in order]
    batches = list(_batches(lengths, batch_size))
    if share is not None:
        batches = share.of(batches)
    # Counted in tokens, because batches of short rows take less time.
    bar = tqdm(
        total=sum(sum(lengths[batch]) for batch in batches),
        desc=desc,
        unit="token",
        unit_scale=True,
        disable=not progress,
    )
    with bar:
        for batch in batches:
            indices = order[batch]
            inputs = pad([rows[index] for index in indices], side="right", pad_token_id=pad_token_id)
            yield indices, {name: value.to(model.device) for name, value in inputs.items()}
            bar.update(sum(lengths[batch]))


def _batches(lengths: Sequence[int], batch_size: int | None) -> Iterator[slice]:
    """Divides rows, longest first, into batches of `batch_size`, or of what memory allows."""
    begin = 0
    while begin < len(lengths):
        rows = batch_size or max(1, min(BATCH_ROWS, BATCH_TOKENS // max(1, lengths[begin])))
        yield slice(begin, begin + rows)
        begin += rows


def _losses(model: PreTrainedModel, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of each target, (rows, seq - 1), zero where the target is -100.

    Args:
        inputs: `input_ids` and `attention_mask`, each (rows, seq).
        targets: The ids that follow each position but the last, (rows, seq - 1).
    """
    vocab_size = model.config.get_text_config().vocab_size
    positions = max(1, LOGITS_BYTES // (4 * vocab_size))
    head = _Head.of(model, inputs) if targets.numel() > positions else None
    if head is None:
        return _cross_entropy(model(**inputs, use_cache=False).logits[:, :-1], targets)
    counted = targets != -100
    hidden = head.hidden[:, :-1][counted]
    losses = torch.zeros(targets.shape, device=targets.device)
    losses[counted] = torch.cat(
        [
            _cross_entropy(head.logits(some), ids)
            for some, ids in zip(hidden.split(positions), targets[counted].split(positions), strict=True)
        ]
    )
    return losses


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view(targets.shape)


class _Head:
    """Applies all that follows a model's body, for some positions at a time: head, soft capping, scaling.

    It is the model's own forward, in which the body returns the given hidden states instead of computing them.

    Attributes:
        hidden: The body's hidden states, (rows, seq, hidden).
    """

    def __init__(self, model: PreTrainedModel, body: nn.Module, output: Any) -> None:
        self._model, self._body, self._output = model, body, output
        self.hidden: torch.Tensor = output.last_hidden_state

    @classmethod
    def of(cls, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> "_Head | None":
        """Runs the body; returns None if the model is not a body with a head that reads its hidden states."""
        # A PEFT model's own forward only prepares the call of the model inside, whose layers hold the adapters.
        inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        body = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
        if body is inner or "logits_to_keep" not in inspect.signature(inner.forward).parameters:
            return None
        outputs: list[Any] = []
        handle = body.register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            last = model(**inputs, use_cache=False, logits_to_keep=1).logits
        finally:
            handle.remove()
        hidden = getattr(outputs[0], "last_hidden_state", None) if len(outputs) == 1 else None
        if hidden is None or hidden.shape[:2] != inputs["input_ids"].shape:
            return None
        head = cls(inner, body, outputs[0])
        again = head.logits(hidden[:, -1])
        close = torch.allclose(again.float(), last[:, -1].float(), rtol=1e-2, atol=1e-2, equal_nan=True)
        return head if close else None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits (positions, vocab) of some hidden states, (positions, hidden)."""
        output = copy.copy(self._output)
        output.last_hidden_state = hidden[None]
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with _returning(self._body, output):
            return self._model(input_ids=ids, use_cache=False).logits[0]


@contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[None]:
    """Lets a module return an output without computing anything while the block runs."""
    # accelerate also puts a forward on modules that it places.
    own = vars(module).get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def continuation(
    tokenizer: PreTrainedTokenizerBase, context: str, text: str, *, max_length: int
) -> tuple[list[int], int]:
    """Returns a piece for `negative_log_likelihoods`: a context, after bos as in `encode_texts`, and the text that counts.

    Context and text are encoded together, and split at the number of tokens that the context has by itself, like in
    lm-evaluation-harness. A piece that is too long loses its beginning.
    """
    # White space at the end of the context belongs to the next token.
    space = len(context) - len(context.rstrip())
    if space:
        context, text = context[:-space], context[-space:] + text
    before, whole = encode_texts(tokenizer, [context, context + text])
    if not before:
        # Something has to stand before the first token that counts.
        (before,) = encode_prompts(tokenizer, [""])
        whole = before + whole
    counted = len(whole) - len(before)
    ids = whole[-max_length:]
    return ids, max(1, len(ids) - counted)
