"""What a model thought of each token of a text or an answer: how surprised it was, and what else it might have said."""

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
        entropy: Of the model's distribution at its place, in nats: how much surprise it expected.
        alternatives: The likeliest tokens at its place, likeliest first; the token itself may be among them.
    """

    entropy: float
    alternatives: tuple[Candidate, ...]

    @property
    def surprise(self) -> float:
        """In nats: minus the logarithm of its probability."""
        return -math.log(self.probability) if self.probability else math.inf


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
    """A probability for people, `25.0 %`."""
    if 0 < probability < 0.001:
        return "<0.1 %"
    return f"{probability:.1%}".replace("%", " %")
