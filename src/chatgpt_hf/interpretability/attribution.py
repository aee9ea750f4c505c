"""Attributes an answer to the tokens before it: gradient x input, integrated gradients or occlusion, by captum."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import ConfigError, DataError
from ..evaluation.mode import evaluating
from ..extras import needed_by
from .anatomy import output_changed

METHODS = ("gradient_x_input", "integrated_gradients", "occlusion")
# The number of steps of integrated gradients grows until the relative error of their sum is at most this.
TOLERANCE = 0.005
STEPS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Attribution:
    """How much each token of the context contributes to the answer's log-probability, in nats.

    Attributes:
        scores: (position,): positive if the token makes the answer likelier, zero for the answer's last token.
        log_probability: Log-probability of the answer after its context.
        baseline_log_probability: Log-probability of the answer if every token of the context is the baseline token.
        steps: Steps of the integral; 0 for the other methods.
    """

    scores: npt.NDArray[np.float64]
    log_probability: float
    baseline_log_probability: float
    steps: int

    @property
    def error(self) -> float:
        """The relative error of the scores' sum, compared with the difference of the two log-probabilities.

        With enough steps, integrated gradients add up to this difference (Sundararajan et al. 2017, proposition 1); the other
        methods have no such guarantee.
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
    progress: bool = False,
) -> Attribution:
    """Attributes the log-probability of `ids[begin:]` after `ids[:begin]` to single tokens.

    Works on the output of the embedding, so it works for any model. The score of a token is the sum over its embedding. Each
    token of an answer also belongs to the context of those after it.

    Args:
        ids: Context and answer; the answer may be a single token, and need not be the model's own.
        begin: The position of the answer's first token, at least 1.
        method: One of `METHODS`. `gradient_x_input` is the gradient times the embedding (Shrikumar et al. 2017).
            `integrated_gradients` integrates it on the path from the baseline (Sundararajan et al. 2017), with as many steps
            as the sum needs to be right within `TOLERANCE`, but at most 1,024; `error` of the result is the remaining error,
            for example of a model in half precision. `occlusion` is the drop in log-probability if only this token is
            replaced by the baseline (Zeiler & Fergus 2014).
        baseline_id: A token that stands for missing input, such as eos. A vector of zeros would be a bad baseline for a model
            with norms, which are steepest there.
        progress: Show a progress bar; integrated gradients begin it again when they need more steps.

    Raises:
        ConfigError: If captum is missing, or there is no such method.
        DataError: If `begin` leaves no context or no answer.
    """
    if method not in METHODS:
        raise ConfigError(f"There is no attribution method {method!r}; choose one of {', '.join(METHODS)}.")
    if not 1 <= begin < len(ids):
        raise DataError(
            f"begin is {begin} of {len(ids)} tokens: the context and the answer need at least one token each."
        )
    captum = _captum()
    device = model.device
    context = torch.tensor([ids[:-1]], device=device)
    answer = torch.tensor(ids[begin:], device=device)
    embedding = model.get_input_embeddings()
    bar = tqdm(desc=method.replace("_", " ").capitalize(), unit="row", disable=not progress)
    score = _scorer(model, context, answer, bar)
    with evaluating(model), _frozen(model), bar:
        with torch.no_grad():
            given = embedding(context)
            baseline = embedding(torch.full_like(context, baseline_id))
            log_probability, nothing = float(score(given)), float(score(baseline))
        steps = 0
        if method == "gradient_x_input":
            bar.reset(1)
            found = captum.InputXGradient(score).attribute(given.requires_grad_())
        elif method == "occlusion":
            # The whole context, and without each token.
            bar.reset(1 + context.shape[1])
            places = torch.arange(context.shape[1], device=device)[None, :, None]
            found = captum.FeatureAblation(score).attribute(
                given, baseline, feature_mask=places, perturbations_per_eval=_rows(context)
            )
            # captum assigns the whole difference to each element of an embedding.
            found = found[..., :1]
        else:
            integrated = captum.IntegratedGradients(score)
            for steps in STEPS:
                bar.reset(steps)
                found = integrated.attribute(given, baseline, n_steps=steps, internal_batch_size=_rows(context))
                if Attribution(_by_token(found), log_probability, nothing, steps).error <= TOLERANCE:
                    break
    return Attribution(_by_token(found), log_probability, nothing, steps)


def _by_token(found: torch.Tensor) -> npt.NDArray[np.float64]:
    # No token comes after the answer's last one, so it has no score.
    return np.append(found.detach()[0].double().sum(-1).cpu().numpy(), 0.0)


def _scorer(
    model: PreTrainedModel, context: torch.Tensor, answer: torch.Tensor, bar: tqdm
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function from embeddings (rows, seq, hidden) to the log-probability of the answer, (rows,).

    It counts the rows in a progress bar.

    It replaces the output of the embedding, because not every model takes `inputs_embeds`: a model with n-grams looks up
    ids, which stay the same.
    """

    def score(embeddings: torch.Tensor) -> torch.Tensor:
        rows = context.expand(len(embeddings), -1)
        with output_changed(model.get_input_embeddings(), lambda *_: embeddings):
            logits = model(input_ids=rows, use_cache=False, logits_to_keep=len(answer)).logits
        bar.update(len(rows))
        logs = logits[:, -len(answer) :].float().log_softmax(-1)
        return logs.gather(2, answer.expand(len(rows), -1)[..., None])[..., 0].sum(-1)

    return score


def _rows(context: torch.Tensor) -> int:
    """Returns the batch size in rows, for about two thousand tokens."""
    return max(1, 2048 // context.shape[1])


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Turns off the weights' gradients, which are not needed, while the block runs."""
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
