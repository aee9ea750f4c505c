"""The likelihood of given tokens under a model, which measures language modeling, completions and choices."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization_chatgpt import encode_prompts, encode_texts
from .mode import evaluating
from .padding import pad


@torch.inference_mode()
def negative_log_likelihoods(
    model: PreTrainedModel,
    pieces: Sequence[tuple[Sequence[int], int]],
    *,
    pad_token_id: int | None,
    batch_size: int = 8,
    desc: str = "Scoring",
    progress: bool = True,
) -> np.ndarray:
    """Returns the negative log-likelihood of each piece in nats, (pieces,).

    It sums over the tokens from the given position on, each predicted from the tokens before it.

    Args:
        pieces: Pairs of token ids, at most as many as the model's context, and the position of the first token that
            counts, at least 1.
        pad_token_id: Fills short rows; it is masked, so it may be any id.
    """
    # Batches of similarly long rows need the least padding.
    order = sorted(range(len(pieces)), key=lambda index: len(pieces[index][0]), reverse=True)
    nats = np.zeros(len(pieces))
    with evaluating(model):
        for begin in tqdm(range(0, len(order), batch_size), desc=desc, disable=not progress):
            indices = order[begin : begin + batch_size]
            rows = pad([pieces[index][0] for index in indices], side="right", pad_token_id=pad_token_id)
            labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
            for row, index in zip(labels, indices, strict=True):
                row[: pieces[index][1]] = -100
            inputs = {name: value.to(model.device) for name, value in rows.items()}
            logits = model(**inputs, use_cache=False).logits
            shifted = labels[:, 1:].to(model.device)
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), shifted.flatten(), ignore_index=-100, reduction="none"
            )
            nats[indices] = losses.view(shifted.shape).double().sum(1).cpu().numpy()
    return nats


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
