"""A model's surprise at each token of a text or an answer, and its likeliest alternatives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.mode import evaluating
from .passage import token_text


@dataclass(frozen=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token_id: Its id.
        text: Its text, from `token_text`.
        probability: The model's own probability.
    """

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TokenProbability(Candidate):
    """A token of an answer.

    Attributes:
        entropy: Entropy of the model's distribution at this position, in nats: the expected surprise.
        alternatives: The likeliest tokens at this position, likeliest first; the token itself may be one of them.
    """

    entropy: float
    alternatives: tuple[Candidate, ...]

    @property
    def surprise(self) -> float:
        """Minus the logarithm of its probability, in nats."""
        return -math.log(self.probability) if self.probability else math.inf


@torch.inference_mode()
def token_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    top_k: int = 5,
) -> list[TokenProbability]:
    """Computes the probability of each token of an answer, and its likeliest alternatives, in one forward pass.

    The probabilities are the model's own; sampling may have used others, because temperature, top-p and similar options
    change them.

    Args:
        prompt_ids: The tokens before the answer; at least one.
        top_k: Number of alternatives for each token.
    """
    if not answer_ids:
        return []
    # The prediction after the last token is not needed.
    ids = torch.tensor([[*prompt_ids, *answer_ids[:-1]]], device=model.device)
    with evaluating(model):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer_ids)).logits[0]
    log_probabilities = logits.float().log_softmax(-1)
    probabilities = log_probabilities.exp()
    # A logit of -inf has the probability 0, and 0 log 0 is 0.
    entropies = torch.special.entr(probabilities).sum(-1).tolist()
    answer = torch.tensor(answer_ids, device=probabilities.device)
    own = probabilities.gather(1, answer[:, None])[:, 0].tolist()
    likeliest = probabilities.topk(min(top_k, probabilities.shape[1]), dim=-1)
    return [
        TokenProbability(
            token_id,
            token_text(tokenizer, token_id),
            probability,
            entropy,
            tuple(Candidate(i, token_text(tokenizer, i), p) for i, p in zip(ids, values, strict=True)),
        )
        for token_id, probability, entropy, ids, values in zip(
            answer_ids, own, entropies, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
        )
    ]


def percent(probability: float) -> str:
    """Formats a probability like `25.0 %`."""
    if 0 < probability < 0.001:
        return "<0.1 %"
    return f"{probability:.1%}".replace("%", " %")
