"""Estimates how long the parts of an explanation will take, from the time of one forward pass."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..checkpoints import context_length
from ..errors import ConfigError
from ..evaluation.mode import evaluating
from .ablation import all_parts
from .anatomy import anatomy
from .attention_maps import HEAD_SCORE_LENGTH, HEAD_SCORE_ROWS
from .attribution import STEPS
from .lens import LENS_POSITIONS, LENS_STEPS

# Tokens of the forward pass that is timed.
_TIMED_TOKENS = 64
# A pass back through frozen weights costs about what the forward pass costs.
_WITH_GRADIENT = 2


class Duration(NamedTuple):
    """Seconds that a part takes, at least and at most."""

    least: float
    most: float


def estimate(
    model: PreTrainedModel,
    tokens: int,
    *,
    lens_tokens: int,
    ablation_tokens: int,
    parts: Collection[str],
) -> dict[str, Duration]:
    """Estimates how long each part takes, by timing one forward pass and one pass through the head.

    Args:
        tokens: Length of the passage.
        lens_tokens: Tokens that the tuned lens learns from.
        ablation_tokens: Tokens on which the effect of each removed part is measured.
        parts: The parts that will be computed; of the others nothing is said.

    Returns:
        By part, in the order of the computation. Integrated gradients take the number of steps that their sum needs, so the
        attribution may take as long as its first try or as all of them. A part that does not work with the model is missing.
    """
    try:
        layers = anatomy(model).num_layers
        removals = len(all_parts(model))
        token, head = _seconds_per_token(model)
    except ConfigError:
        # The explanation itself says which parts do not work with such a model.
        return {}
    gradients = [tokens * steps * _WITH_GRADIENT * token for steps in (STEPS[0], sum(STEPS))]
    others = (tokens + _WITH_GRADIENT) * tokens * token
    found = {
        "attention": _exactly(tokens * token),
        "lens": _exactly(2 * tokens * token + layers * tokens * head),
        "attribution": Duration(*(others + seconds for seconds in gradients)),
        "heads": _exactly(HEAD_SCORE_ROWS * 2 * HEAD_SCORE_LENGTH * token),
        "tuned_lens": _exactly(
            lens_tokens * token + LENS_STEPS * LENS_POSITIONS * layers * (1 + _WITH_GRADIENT) * head
        ),
        "ablation": _exactly((1 + removals) * ablation_tokens * token),
    }
    return {part: duration for part, duration in found.items() if part in parts}


def _exactly(seconds: float) -> Duration:
    return Duration(seconds, seconds)


@torch.inference_mode()
def _seconds_per_token(model: PreTrainedModel) -> tuple[float, float]:
    """Returns the seconds that a token takes in a forward pass, and in the last norm and the head only."""
    length = min(_TIMED_TOKENS, context_length(model))
    parts = anatomy(model)
    ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    hidden = torch.zeros(1, length, model.config.get_text_config().hidden_size, dtype=model.dtype, device=model.device)

    def timed(call: Callable[[], torch.Tensor]) -> float:
        # The first call prepares kernels and memory; reading a value waits for an accelerator.
        call().sum().item()
        begun = time.perf_counter()
        call().sum().item()
        return (time.perf_counter() - begun) / length

    with evaluating(model):
        whole = timed(lambda: model(input_ids=ids, use_cache=False).logits)
        return whole, timed(lambda: parts.unembed(hidden))


def sentence(durations: Mapping[str, Duration]) -> str:
    """Says what an explanation will take, and which part to leave out to save the most."""
    if not durations:
        return "How long this takes is not known for a model like this."
    total = _between(sum(each.least for each in durations.values()), sum(each.most for each in durations.values()))
    said = [
        f"{part.replace('_', ' ')} {_between(*duration)}" for part, duration in durations.items() if duration.most >= 1
    ]
    if len(said) < 2:
        # Not worth a choice.
        return f"This takes {total}."
    slowest = max(durations, key=lambda part: durations[part].most)
    return f"This takes {total}: {', '.join(said)}. Parts can be left out: --without {slowest}."


def _between(least: float, most: float) -> str:
    low, high = _rounded(least), _rounded(most)
    return f"about {high}" if low == high else f"{low} to {high}"


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
