"""What a model thought of each token of an answer: its probability there, and what else it might have said."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token_id: Its id.
        text: Its text, as `token_text` gives it.
        probability: Of the model itself.
    """

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TokenProbability(Candidate):
    """A token of an answer.

    Attributes:
        alternatives: The likeliest tokens at its place, likeliest first; the token itself may be among them.
    """

    alternatives: tuple[Candidate, ...]


@torch.inference_mode()
def token_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    top_k: int = 5,
) -> list[TokenProbability]:
    """The probability of each token of an answer, and the likeliest alternatives, in one forward pass.

    The probabilities are the model's own: those that sampling chose from may differ, since temperature, top-p and the
    like change them.

    Args:
        prompt_ids: What the model had seen before the answer; at least one token.
        top_k: How many alternatives for each token.
    """
    if not answer_ids:
        return []
    # What the last token leads to is not asked for.
    ids = torch.tensor([[*prompt_ids, *answer_ids[:-1]]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer_ids)).logits[0]
    probabilities = logits.float().softmax(-1)
    answer = torch.tensor(answer_ids, device=probabilities.device)
    own = probabilities.gather(1, answer[:, None])[:, 0].tolist()
    likeliest = probabilities.topk(min(top_k, probabilities.shape[1]), dim=-1)
    return [
        TokenProbability(
            token_id,
            token_text(tokenizer, token_id),
            probability,
            tuple(Candidate(i, token_text(tokenizer, i), p) for i, p in zip(ids, values, strict=True)),
        )
        for token_id, probability, ids, values in zip(
            answer_ids, own, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
        )
    ]


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token; one that is only a part of a character is shown as its bytes, `<F0 9F 98>`."""
    text = tokenizer.decode([token_id])
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        # Ids that the model's table has room for and the tokenizer does not use.
        return f"<{token_id}>"
    if "\ufffd" in text:
        alphabet = _byte_alphabet()
        if all(character in alphabet for character in token):
            return f"<{' '.join(f'{alphabet[character]:02X}' for character in token)}>"
        return token
    # SentencePiece: a token by itself loses the space it begins with.
    return " " + text if token.startswith("▁") and not text.startswith(" ") else text


@cache
def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character in which byte-level BPE writes its tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
