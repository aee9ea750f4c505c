"""Where a model looks: attention maps, what they come to over all layers, and which heads do something known."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from ..checkpoints import context_length
from ..errors import ConfigError, DataError
from ..evaluation.mode import evaluating
from ..extras import needed_by

with needed_by("The attention of a passage"):
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

Floats = npt.NDArray[np.float64]

# scipy's maximum flow counts in 32-bit integers; into one position flows 1 in all, which is this many.
_UNIT = 2**30


@dataclass(frozen=True)
class AttentionMaps:
    """How much each position takes from each.

    Attributes:
        weights: (layer, head, query, key); each query's weights add up to 1.
        switched_from: The attention backend that gives no weights, in whose place `eager` computed them; None where the
            model's own backend did.
    """

    weights: npt.NDArray[np.float32]
    switched_from: str | None


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[str | None]:
    """Runs a model with the one attention backend that gives its weights; yields the name of the model's own if another.

    Raises:
        ConfigError: When the model cannot be switched.
    """
    own = model.config._attn_implementation
    if own == "eager":
        yield None
        return
    try:
        model.set_attn_implementation("eager")
        if model.config._attn_implementation != "eager":
            raise ValueError("it keeps the one that it was loaded with")
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(
            f"{type(model).__name__} gives no attention weights with {own!r} attention and cannot be switched to eager "
            f"({error}): load it with attn_implementation='eager'."
        ) from error
    try:
        yield own
    finally:
        # Not `set_attn_implementation`, which takes a name with "flash" in it, as our own for a CPU, for a kernel of the Hub.
        model.config._attn_implementation = own


@torch.no_grad()
def attention_maps(model: PreTrainedModel, ids: torch.Tensor) -> AttentionMaps:
    """The attention weights of one row of ids, (1, seq).

    Raises:
        ConfigError: When the model gives no weights for each layer, as one without attention.
    """
    with evaluating(model), eager_attention(model) as switched_from:
        outputs = model(input_ids=ids, output_attentions=True, use_cache=False)
    found = [weights for weights in getattr(outputs, "attentions", None) or () if weights is not None]
    if not found or len(found) != model.config.get_text_config().num_hidden_layers:
        raise ConfigError(
            f"{type(model).__name__} gives attention weights for {len(found)} of its "
            f"{model.config.get_text_config().num_hidden_layers} layers: attention cannot be shown."
        )
    return AttentionMaps(torch.cat(found).float().cpu().numpy(), switched_from)


def with_residual(weights: npt.NDArray[np.float32]) -> Floats:
    """`0.5 W + 0.5 I` with the heads' mean as `W` (Abnar & Zuidema 2020, section 3): (layer, query, key)."""
    mean = weights.mean(axis=1, dtype=np.float64)
    return 0.5 * mean + 0.5 * np.eye(mean.shape[-1])


def attention_rollout(weights: npt.NDArray[np.float32]) -> Floats:
    """How much each position has of each token after each layer, if attention were all (Abnar & Zuidema 2020, equation 1).

    `R(l) = A(l) R(l - 1)`, with `A` from `with_residual` and the unit matrix before the first layer.

    Args:
        weights: (layer, head, query, key).

    Returns:
        (layer, query, key); each row adds up to 1.
    """
    steps = with_residual(weights)
    for layer in range(1, len(steps)):
        steps[layer] = steps[layer] @ steps[layer - 1]
    return steps


def attention_flow(weights: npt.NDArray[np.float32], position: int = -1) -> Floats:
    """How much can flow from one position after the last layer to each token (Abnar & Zuidema 2020, section 3).

    The positions after each layer are the nodes of a network, and the entries of `with_residual` the capacities of its
    edges; a token's share is the maximum flow to it. Flows to different tokens are computed apart and add up to more than 1.

    Args:
        weights: (layer, head, query, key).
        position: Where the flow begins.

    Returns:
        (key,).

    Raises:
        ConfigError: When there is no such position.
    """
    steps = with_residual(weights)
    layers, length, _ = steps.shape
    if not -length <= position < length:
        raise ConfigError(f"There is no position {position}: the text's {length} tokens are 0 to {length - 1}.")
    layer, query, key = np.nonzero(steps)
    # Node `l * length + i` is position `i` after `l` layers.
    capacities = np.floor(steps[layer, query, key] * _UNIT).astype(np.int32)
    size = (layers + 1) * length
    network = csr_array((capacities, ((layer + 1) * length + query, layer * length + key)), shape=(size, size))
    begin = layers * length + position % length
    flows = [maximum_flow(network, begin, token).flow_value for token in range(length)]
    return np.array(flows) / _UNIT


@dataclass(frozen=True)
class HeadScores:
    """What each head does on random tokens that come again, (layer, head) each, from 0 to 1.

    Attributes:
        previous_token: The mean weight on the position just before (Clark et al. 2019, section 3.1; Voita et al. 2019 call
            such heads positional).
        first_token: The mean weight on the first position (Vig & Belinkov 2019, section 5.2; Xiao et al. 2024 call it an
            attention sink).
        induction: The mean weight, within a repetition, on the positions just after the same token's earlier occurrences:
            the prefix matching score of Olsson et al. 2022, "In-context Learning and Induction Heads".
    """

    previous_token: Floats
    first_token: Floats
    induction: Floats


def repeated_tokens(
    vocabulary: Sequence[int], *, rows: int, length: int, repeats: int = 2, first: int | None = None, seed: int = 0
) -> torch.Tensor:
    """Rows of random ids that come `repeats` times over: (rows, repeats · length), one more with a `first` token.

    Within a row no id occurs twice before the repetition, so that only the repetition says what comes next.

    Raises:
        DataError: When the vocabulary is smaller than `length`.
    """
    if len(vocabulary) < length:
        raise DataError(
            f"{length} different tokens are wanted and the vocabulary has {len(vocabulary)}: lower the length."
        )
    generator = np.random.default_rng(seed)
    drawn = np.stack([generator.permutation(vocabulary)[:length] for _ in range(rows)])
    ids = torch.from_numpy(np.tile(drawn, (1, repeats)))
    return ids if first is None else torch.nn.functional.pad(ids, (1, 0), value=first)


def head_scores(
    model: PreTrainedModel,
    vocabulary: Sequence[int],
    *,
    rows: int = 8,
    length: int = 25,
    first: int | None = None,
    seed: int = 0,
) -> HeadScores:
    """The scores of all heads on `repeated_tokens`, each token seen twice.

    Args:
        vocabulary: Ids to draw from; leave special tokens out.
        length: Tokens before they come again; fewer where the model's context ends before.
        first: A token before them, such as bos.

    Raises:
        DataError: When the context has no room for four different tokens that come again.
    """
    limit = context_length(model)
    length = min(length, (limit - (first is not None)) // 2, len(vocabulary))
    if length < 4:
        raise DataError(
            f"A context of {limit} positions and {len(vocabulary)} tokens are too few to tell heads apart on tokens that come again."
        )
    sums = [np.zeros(()), np.zeros(()), np.zeros(())]
    for row in repeated_tokens(vocabulary, rows=rows, length=length, first=first, seed=seed):
        weights = attention_maps(model, row[None].to(model.device)).weights
        before = weights.shape[-1] - 2 * length
        queries = np.arange(before + length, weights.shape[-1])
        everywhere = np.arange(2, weights.shape[-1])
        for index, (at, keys) in enumerate(
            ((everywhere, everywhere - 1), (everywhere, np.zeros_like(everywhere)), (queries, queries - length + 1))
        ):
            sums[index] = sums[index] + weights[:, :, at, keys].mean(-1)
    return HeadScores(*(total / rows for total in sums))
