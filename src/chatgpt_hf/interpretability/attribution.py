"""Which tokens an answer hangs on: gradient x input, integrated gradients, occlusion, by captum."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from ..errors import ConfigError, DataError
from ..evaluation.mode import evaluating
from ..extras import needed_by
from .anatomy import output_changed

METHODS = ("gradient_x_input", "integrated_gradients", "occlusion")
# Integrated gradients are taken with more and more steps until their sum is this near to what it has to be.
TOLERANCE = 0.005
_STEPS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Attribution:
    """How much each token of the context speaks for what came after it, in nats.

    Attributes:
        scores: (position,): positive where the token makes the answer likelier, zero from the answer's last token on.
        log_probability: Of the answer after its context.
        baseline_log_probability: Of the answer when every token of the context is the baseline token.
        steps: Of the integral; 0 for the other methods.
    """

    scores: npt.NDArray[np.float64]
    log_probability: float
    baseline_log_probability: float
    steps: int

    @property
    def error(self) -> float:
        """How far the scores' sum is from the difference of the two log-probabilities, as a share of that difference.

        Integrated gradients add up to it exactly but for their steps (Sundararajan et al. 2017, proposition 1); the other
        methods promise nothing of the kind.
        """
        difference = self.log_probability - self.baseline_log_probability
        return abs(float(self.scores.sum()) - difference) / max(abs(difference), 1e-12)


def attribute(
    model: PreTrainedModel,
    ids: Sequence[int],
    begin: int,
    method: str = "integrated_gradients",
    *,
    baseline_id: int,
) -> Attribution:
    """What the log-probability of `ids[begin:]` after `ids[:begin]` is due to, token by token.

    All is done on the output of the embedding, so that it works for any model. The score of a token is the sum over its
    embedding. Each token of an answer is also a part of the context of those after it.

    Args:
        ids: Context and answer; the answer may be one token, and need not be what the model would say.
        begin: The place of the answer's first token, 1 or more.
        method: One of `METHODS`. `gradient_x_input` is the gradient times the embedding (Shrikumar et al. 2017);
            `integrated_gradients` integrates it on the way from the baseline (Sundararajan et al. 2017), with as many steps as
            the sum needs to be right within `TOLERANCE`, but at most 1,024: `error` of the result says what is left, as of a
            model in half precision; `occlusion` is what is lost when the token alone is replaced by the
            baseline (Zeiler & Fergus 2014).
        baseline_id: Stands for nothing said, such as the eos token. A vector of zeros would be a bad baseline for a model
            with norms, which are at their steepest there.

    Raises:
        ConfigError: When captum is missing, or there is no such method.
        DataError: When `begin` leaves no context or no answer.
    """
    if method not in METHODS:
        raise ConfigError(f"There is no attribution method {method!r}; there are {', '.join(METHODS)}.")
    if not 1 <= begin < len(ids):
        raise DataError(
            f"begin is {begin} of {len(ids)} tokens: at least one token must come before the answer, and one be it."
        )
    captum = _captum()
    device = model.device
    context = torch.tensor([ids[:-1]], device=device)
    answer = torch.tensor(ids[begin:], device=device)
    embedding = model.get_input_embeddings()
    score = _scorer(model, context, answer)
    with evaluating(model), _frozen(model):
        with torch.no_grad():
            given = embedding(context)
            baseline = embedding(torch.full_like(context, baseline_id))
            log_probability, nothing = float(score(given)), float(score(baseline))
        steps = 0
        if method == "gradient_x_input":
            found = captum.InputXGradient(score).attribute(given.requires_grad_())
        elif method == "occlusion":
            places = torch.arange(context.shape[1], device=device)[None, :, None]
            found = captum.FeatureAblation(score).attribute(
                given, baseline, feature_mask=places, perturbations_per_eval=_rows(context)
            )
            # captum gives the whole difference to each number of an embedding.
            found = found[..., :1]
        else:
            integrated = captum.IntegratedGradients(score)
            for steps in _STEPS:
                found = integrated.attribute(given, baseline, n_steps=steps, internal_batch_size=_rows(context))
                if Attribution(_by_token(found), log_probability, nothing, steps).error <= TOLERANCE:
                    break
    return Attribution(_by_token(found), log_probability, nothing, steps)


def _by_token(found: torch.Tensor) -> npt.NDArray[np.float64]:
    # The answer's last token is the context of nothing.
    return np.append(found.detach()[0].double().sum(-1).cpu().numpy(), 0.0)


def _scorer(
    model: PreTrainedModel, context: torch.Tensor, answer: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """From embeddings (rows, seq, hidden) to the log-probability of the answer, (rows,).

    The embeddings are put in the place of the embedding's output, since not every model takes `inputs_embeds`: one with
    n-grams looks up ids, and those stay what they are.
    """

    def score(embeddings: torch.Tensor) -> torch.Tensor:
        rows = context.expand(len(embeddings), -1)
        with output_changed(model.get_input_embeddings(), lambda *_: embeddings):
            logits = model(input_ids=rows, use_cache=False, logits_to_keep=len(answer)).logits
        logs = logits[:, -len(answer) :].float().log_softmax(-1)
        return logs.gather(2, answer.expand(len(rows), -1)[..., None])[..., 0].sum(-1)

    return score


def _rows(context: torch.Tensor) -> int:
    """Rows at a time: about two thousand tokens."""
    return max(1, 2048 // context.shape[1])


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Without gradients of the weights, which nobody asks for, while the block runs."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _captum() -> Any:
    with needed_by("Token attribution"):
        import captum.attr
    return captum.attr
