"""The logit lens and the tuned lens: a model's prediction if it stopped after each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import ConfigError, DataError
from ..evaluation.mode import evaluating
from .anatomy import Anatomy, anatomy, residual_streams

# Steps of a tuned lens' training, and positions in each.
LENS_STEPS, LENS_POSITIONS = 100, 64


@dataclass(frozen=True)
class Lens:
    """Predictions of the next token after each layer; layer 0 is the embeddings, the last layer is the model itself.

    Attributes:
        top_ids: (layer, position, k), likeliest first.
        top_probabilities: (layer, position, k).
        targets: (position,): the actual next token; at the last position the model's own choice.
        probabilities: Probability of the target, (layer, position).
        ranks: Rank of the target, (layer, position); 1 is the likeliest.
        divergences: KL(model, layer) in nats, (layer, position).
    """

    top_ids: npt.NDArray[np.int64]
    top_probabilities: npt.NDArray[np.float64]
    targets: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.int64]
    divergences: npt.NDArray[np.float64]


class TunedLens(nn.Module):
    """A translator for each layer but the last, `h + A h + b` (Belrose et al. 2023, equation 8), initially the identity.

    Args:
        num_layers: Number of the model's layers, and of translators: the embeddings have one, the last layer does not.
    """

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.translators = nn.ModuleList([nn.Linear(hidden_size, hidden_size) for _ in range(num_layers)])
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: torch.Tensor, layer: int) -> torch.Tensor:
        """Translates the residual stream (..., hidden) after `layer` layers to that of the last layer."""
        if layer == len(self.translators):
            return hidden
        return hidden + self.translators[layer](hidden)


@torch.no_grad()
def look_through(
    model: PreTrainedModel,
    ids: torch.Tensor,
    *,
    tuned: TunedLens | None = None,
    top_k: int = 5,
    progress: bool = False,
) -> Lens:
    """Applies the model's last norm and head to the residual stream after each layer: the logit lens (nostalgebraist 2020).

    Args:
        ids: (1, seq).
        tuned: Translators to apply first, for the tuned lens.

    Raises:
        ConfigError: If the lens at the last layer does not give the model's own logits, because there is more than a norm and
            a head in between.
    """
    parts = anatomy(model)
    streams = residual_streams(parts, ids)
    check_last_layer(parts, streams[-1], ids)
    own = parts.unembed(streams[-1][0]).log_softmax(-1)
    targets = torch.cat([ids[0, 1:], own[-1:].argmax(-1)])
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Lens.__annotations__ if name != "targets"}
    for layer, stream in enumerate(tqdm(streams, desc="Looking at layers", disable=not progress)):
        hidden = stream[0] if tuned is None else tuned(stream[0].float(), layer).to(stream.dtype)
        logs = parts.unembed(hidden).log_softmax(-1)
        top = logs.topk(min(top_k, logs.shape[-1]), dim=-1)
        target = logs.gather(1, targets[:, None])
        columns["top_ids"].append(top.indices.cpu().numpy())
        columns["top_probabilities"].append(top.values.double().exp().cpu().numpy())
        columns["probabilities"].append(target[:, 0].double().exp().cpu().numpy())
        columns["ranks"].append((logs > target).sum(-1).cpu().numpy() + 1)
        columns["divergences"].append(_divergence(own, logs).double().cpu().numpy())
    return Lens(targets=targets.cpu().numpy(), **{name: np.stack(values) for name, values in columns.items()})


@torch.no_grad()
def check_last_layer(parts: Anatomy, last: torch.Tensor, ids: torch.Tensor) -> None:
    """Raises `ConfigError` unless norm and head turn the last residual stream into the model's logits."""
    with evaluating(parts.model):
        logits = parts.model(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(parts.unembed(last), logits, rtol=1e-2, atol=1e-3 * logits.abs().max().item()):
        raise ConfigError(
            f"{type(parts.model).__name__} has more than a norm and a head between its last layer and its logits, so a lens "
            "does not work."
        )


def train_tuned_lens(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    steps: int = LENS_STEPS,
    positions_per_step: int = LENS_POSITIONS,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> TunedLens:
    """Trains the translators to match the model's predictions, by KL(model, layer) (Belrose et al. 2023, equation 9).

    Uses Adam instead of the paper's SGD, so that the learning rate does not depend on the model's scale.

    Args:
        rows: Ids of the training texts, none longer than the model's context.
        positions_per_step: Positions per step, drawn from all rows.

    Raises:
        DataError: If there is no row, or an empty one.
        ConfigError: See `look_through`.
    """
    if not rows or not all(rows):
        raise DataError("A tuned lens needs one or more training texts, none of them empty.")
    parts = anatomy(model)
    collected: list[torch.Tensor] = []
    for row in tqdm(rows, desc="Reading for the tuned lens", disable=not progress):
        ids = torch.tensor([list(row)], device=model.device)
        streams = residual_streams(parts, ids)
        if not collected:
            check_last_layer(parts, streams[-1], ids)
        collected.append(torch.cat(streams))
    hidden = torch.cat(collected, dim=1)  # (layer, position, hidden)
    lens = TunedLens(parts.num_layers, hidden.shape[-1]).to(model.device)
    optimizer = torch.optim.Adam(lens.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="Training the tuned lens", disable=not progress):
        chosen = torch.randint(hidden.shape[1], (positions_per_step,), generator=generator).to(model.device)
        with torch.no_grad():
            own = parts.unembed(hidden[-1, chosen]).log_softmax(-1)
        # One layer at a time: the logits of all layers would take the most memory.
        for layer, translator in enumerate(lens.translators):
            logs = parts.unembed(lens(hidden[layer, chosen].float(), layer).to(hidden.dtype)).log_softmax(-1)
            parameters = list(translator.parameters())
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(_divergence(own, logs).mean(), parameters), strict=True
            ):
                parameter.grad = gradient
        optimizer.step()
        schedule.step()
    return lens.eval()


def _divergence(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Returns KL(own, other) in nats over the last dimension of log-probabilities (..., vocab)."""
    terms = nn.functional.kl_div(other, own, log_target=True, reduction="none")
    # A token with probability 0 in both would give 0 times (infinity minus infinity), but 0 log 0 is 0.
    return terms.masked_fill(own.isneginf(), 0.0).sum(-1)
