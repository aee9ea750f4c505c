"""Ablation: how much a model's loss grows without a head, a feed-forward network or a layer."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import ConfigError, DataError
from ..evaluation.figures import Measure, paired_differences
from ..evaluation.mode import evaluating
from ..evaluation.scoring import negative_log_likelihoods
from .anatomy import Anatomy, anatomy, output_changed

KINDS = ("head", "mlp", "layer")


@dataclass(frozen=True, order=True)
class Part:
    """A part that can be removed.

    Attributes:
        kind: `head`, `mlp` or `layer`.
        head: Number of the head; None for other kinds.
    """

    kind: str
    layer: int
    head: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}" if self.head is None else f"{self.kind} {self.layer}.{self.head}"


@dataclass(frozen=True)
class AblationEffects:
    """How a model's loss changes without some of its parts, on the same texts.

    Attributes:
        ablations: The parts that each ablation removes together.
        loss: Loss of the whole model, in nats per token.
        differences: Loss without the parts minus the whole model's loss, (ablation,).
        low, high: 95 % confidence interval of the difference, each (ablation,), by the paired bootstrap over texts
            (Koehn 2004).
    """

    ablations: tuple[tuple[Part, ...], ...]
    loss: float
    differences: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def all_parts(model: PreTrainedModel, kinds: Sequence[str] = KINDS) -> list[Part]:
    """Returns every part of the given kinds, from the lowest layer up."""
    parts = anatomy(model)
    found = []
    for layer in range(parts.num_layers):
        for kind in kinds:
            heads = range(parts.num_heads) if kind == "head" else (None,)
            found += [Part(kind, layer, head) for head in heads]
    return found


@contextmanager
def removed(
    model: PreTrainedModel, parts: Sequence[Part], means: "dict[Part, torch.Tensor] | None" = None
) -> Iterator[None]:
    """Removes some parts of a model while the block runs.

    A removed head or feed-forward network adds zero to the residual stream; a removed layer passes its input on.

    Args:
        means: Contributions to use instead of zero, from `mean_contributions`.

    Raises:
        ConfigError: If there is no such part.
    """
    body = anatomy(model)
    with ExitStack() as stack:
        for part in parts:
            mean = None if means is None else means[part]
            stack.enter_context(_removed(body, part, mean))
        yield


@contextmanager
def _removed(body: Anatomy, part: Part, mean: torch.Tensor | None) -> Iterator[None]:
    module = _module(body, part)
    constant = 0.0 if mean is None else mean
    if part.kind == "mlp":
        with output_changed(module, lambda _, output: torch.zeros_like(output) + constant):
            yield
    elif part.kind == "layer":
        with output_changed(module, lambda given, _: given + constant):
            yield
    else:
        place = _place(body, part)

        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            heads = args[0].clone()
            heads[..., place] = constant
            return (heads, *args[1:])

        handle = module.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _module(body: Anatomy, part: Part) -> nn.Module:
    """Returns the module of a part; for a head, the matrix that reads it."""
    body.check_layer(part.layer)
    if part.kind == "layer" and part.head is None:
        return body.layers[part.layer]
    if part.kind == "mlp" and part.head is None:
        return body.mlp(part.layer)
    if part.kind == "head" and part.head is not None:
        body.check_head(part.head)
        return body.output_projection(part.layer)
    raise ConfigError(
        f"{part.kind!r} with head {part.head} is not a part that can be removed; choose from {', '.join(KINDS)}."
    )


def _place(body: Anatomy, part: Part) -> slice:
    begin = (part.head or 0) * body.head_dim
    return slice(begin, begin + body.head_dim)


@torch.no_grad()
def mean_contributions(
    model: PreTrainedModel, parts: Sequence[Part], rows: Sequence[Sequence[int]]
) -> dict[Part, torch.Tensor]:
    """Returns each part's mean contribution over all positions of rows of ids (Wang et al. 2023, section 2.2).

    For a head it is the mean input of the output matrix, (head_dim,); for other parts (hidden,).
    """
    body = anatomy(model)
    sums: dict[Part, torch.Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for part in parts:

            def keep(given: torch.Tensor, output: torch.Tensor, part: Part = part) -> torch.Tensor:
                added = {
                    "mlp": lambda: output,
                    "layer": lambda: output - given,
                    "head": lambda: given[..., _place(body, part)],
                }
                total = added[part.kind]().flatten(0, -2).double().sum(0)
                sums[part] = sums[part] + total if part in sums else total
                return output

            stack.enter_context(output_changed(_module(body, part), keep))
        for row in rows:
            model(input_ids=torch.tensor([list(row)], device=model.device), use_cache=False)
    count = sum(map(len, rows))
    return {part: (total / count).to(model.dtype) for part, total in sums.items()}


def ablation_effects(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    ablations: Sequence[Sequence[Part]],
    *,
    how: str = "zero",
    begin: int = 1,
    pad_token_id: int | None = None,
    progress: bool = False,
) -> AblationEffects:
    """Measures the loss without some parts, for several sets of parts.

    Args:
        rows: Ids of texts, none longer than the model's context; the error bars are over them.
        ablations: The sets of parts; each set is removed together.
        how: `zero`, or `mean` for each part's mean over the rows (`mean_contributions`).
        begin: The position of the first token that counts.

    Raises:
        ConfigError: If there is no such part, or `how` is unknown.
        DataError: If there are fewer than two rows, or one has no token that counts.
    """
    if how not in ("zero", "mean"):
        raise ConfigError(f"how is {how!r}, but must be zero or mean: the value that replaces a part.")
    if len(rows) < 2 or min(map(len, rows)) <= begin:
        raise DataError(f"Error bars need two or more texts with more than {begin} tokens each.")
    pieces = [(row, begin) for row in rows]
    tokens = np.array([len(row) - begin for row in rows])

    def measure() -> Measure:
        nats = negative_log_likelihoods(model, pieces, pad_token_id=pad_token_id, progress=False)
        return Measure("mean", np.stack([nats, tokens], axis=1), higher_is_better=False)

    # Each part once, in order.
    parts = list(dict.fromkeys(part for ablation in ablations for part in ablation))
    means = mean_contributions(model, parts, rows) if how == "mean" else None
    whole = measure()
    without = []
    for ablation in tqdm(ablations, desc="Removing parts", disable=not progress):
        with removed(model, ablation, means):
            without.append(measure())
    found = np.array([difference[:3] for difference in paired_differences([whole] * len(without), without)])
    differences, low, high = found.reshape(-1, 3).T
    return AblationEffects(tuple(map(tuple, ablations)), whole.value, differences, low, high)
