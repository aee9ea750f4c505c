"""Attention maps, their combination over all layers, and scores of heads for known functions."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..checkpoints import context_length
from ..errors import ConfigError, DataError
from ..evaluation.mode import evaluating
from ..extras import needed_by

with needed_by("The attention of a passage"):
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

Floats = npt.NDArray[np.float64]

# Most memory for the weights of one text. They grow with layers, heads and the square of the length: with 30 layers of 9
# heads, 1,000 tokens take 1 GB and 8,000 take 69 GB.
MAX_WEIGHTS_BYTES = 2**30
# Rows and length of the repeated tokens for the scores of heads.
HEAD_SCORE_ROWS, HEAD_SCORE_LENGTH = 8, 25
# scipy's maximum flow uses 32-bit integers; this number represents 1, the total flow into a position.
_UNIT = 2**30


@dataclass(frozen=True)
class AttentionMaps:
    """How much each position attends to each other position.

    Attributes:
        weights: (layer, head, query, key); each query's weights add up to 1.
        switched_from: The model's attention backend if it gives no weights and `eager` computed them instead, else None.
    """

    weights: npt.NDArray[np.float32]
    switched_from: str | None


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[str | None]:
    """Switches a model to eager attention, which returns its weights; yields the name of the model's other backend, or None.

    Raises:
        ConfigError: If the model cannot be switched.
    """
    own = model.config._attn_implementation
    if own == "eager":
        yield None
        return
    try:
        model.set_attn_implementation("eager")
        if model.config._attn_implementation != "eager":
            raise ValueError("it keeps the backend that it was loaded with")
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(
            f"{type(model).__name__} gives no attention weights with {own!r} attention and cannot be switched to eager "
            f"({error}): load it with attn_implementation='eager'."
        ) from error
    try:
        yield own
    finally:
        # Not `set_attn_implementation`: it looks for a Hub kernel if a name, like our own CPU backend's, contains "flash".
        model.config._attn_implementation = own


@torch.no_grad()
def attention_maps(model: PreTrainedModel, ids: torch.Tensor) -> AttentionMaps:
    """Returns the attention weights of one row of ids, (1, seq).

    Raises:
        ConfigError: If some layers give no weights, for example because they have no attention.
        DataError: If the weights would take more than `MAX_WEIGHTS_BYTES`.
    """
    config = model.config.get_text_config()
    maps = config.num_hidden_layers * (getattr(config, "num_attention_heads", None) or 0)
    if 4 * maps * ids.shape[1] ** 2 > MAX_WEIGHTS_BYTES:
        longest = math.isqrt(MAX_WEIGHTS_BYTES // (4 * maps))
        raise DataError(
            f"The attention weights of {ids.shape[1]} tokens do not fit into memory: give at most {longest} tokens."
        )
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
    """Returns `0.5 W + 0.5 I`, where `W` is the heads' mean (Abnar & Zuidema 2020, section 3): (layer, query, key)."""
    mean = weights.mean(axis=1, dtype=np.float64)
    return 0.5 * mean + 0.5 * np.eye(mean.shape[-1])


def attention_rollout(weights: npt.NDArray[np.float32]) -> Floats:
    """Returns each token's share in each position after each layer, if attention were all (Abnar & Zuidema 2020, eq. 1).

    `R(l) = A(l) R(l - 1)`, with `A` from `with_residual` and the identity matrix before the first layer.

    Args:
        weights: (layer, head, query, key).

    Returns:
        (layer, query, key); each row adds up to 1.
    """
    steps = with_residual(weights)
    for layer in range(1, len(steps)):
        steps[layer] = steps[layer] @ steps[layer - 1]
    return steps


def attention_flow(weights: npt.NDArray[np.float32], position: int = -1, *, progress: bool = False) -> Floats:
    """Returns the maximum flow from one position after the last layer to each token (Abnar & Zuidema 2020, section 3).

    The positions after each layer are the nodes of a network, and the entries of `with_residual` are the capacities of its
    edges. The flow to each token is computed separately, so they add up to more than 1.

    Args:
        weights: (layer, head, query, key).
        position: The start of the flow.

    Returns:
        (key,).

    Raises:
        ConfigError: If there is no such position.
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
    tokens = tqdm(range(length), desc="Attention flow", disable=not progress)
    flows = [maximum_flow(network, begin, token).flow_value for token in tokens]
    return np.array(flows) / _UNIT


@dataclass(frozen=True)
class HeadScores:
    """Scores of each head on repeated random tokens, each (layer, head), from 0 to 1.

    Attributes:
        previous_token: The mean weight on the previous position (Clark et al. 2019, section 3.1; Voita et al. 2019 call
            such heads positional).
        first_token: The mean weight on the first position (Vig & Belinkov 2019, section 5.2; Xiao et al. 2024 call it an
            attention sink).
        induction: The mean weight, within a repetition, on the positions right after the same token's earlier occurrences:
            the prefix matching score of Olsson et al. 2022, "In-context Learning and Induction Heads".
    """

    previous_token: Floats
    first_token: Floats
    induction: Floats


def repeated_tokens(
    vocabulary: Sequence[int], *, rows: int, length: int, repeats: int = 2, first: int | None = None, seed: int = 0
) -> torch.Tensor:
    """Returns rows of random ids, repeated `repeats` times: (rows, repeats · length), one more with a `first` token.

    The ids of a row are all different before the repetition, so that only the repetition tells what comes next.

    Raises:
        DataError: If the vocabulary is smaller than `length`.
    """
    if len(vocabulary) < length:
        raise DataError(
            f"length is {length}, but the vocabulary has only {len(vocabulary)} different tokens: lower the length."
        )
    generator = np.random.default_rng(seed)
    drawn = np.stack([generator.permutation(vocabulary)[:length] for _ in range(rows)])
    ids = torch.from_numpy(np.tile(drawn, (1, repeats)))
    return ids if first is None else torch.nn.functional.pad(ids, (1, 0), value=first)


def head_scores(
    model: PreTrainedModel,
    vocabulary: Sequence[int],
    *,
    rows: int = HEAD_SCORE_ROWS,
    length: int = HEAD_SCORE_LENGTH,
    first: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> HeadScores:
    """Returns the scores of all heads on `repeated_tokens`, with one repetition.

    Args:
        vocabulary: Ids to draw from; leave special tokens out.
        length: Tokens before the repetition; fewer if the model's context is too short.
        first: A token before them, such as bos.

    Raises:
        DataError: If the context has no room for four different tokens and their repetition.
    """
    limit = context_length(model)
    length = min(length, (limit - (first is not None)) // 2, len(vocabulary))
    if length < 4:
        raise DataError(
            f"A context of {limit} positions and {len(vocabulary)} tokens are too few to tell heads apart on repeated tokens."
        )
    sums = [np.zeros(()), np.zeros(()), np.zeros(())]
    repeated = repeated_tokens(vocabulary, rows=rows, length=length, first=first, seed=seed)
    for row in tqdm(repeated, desc="Scoring heads", disable=not progress):
        weights = attention_maps(model, row[None].to(model.device)).weights
        before = weights.shape[-1] - 2 * length
        queries = np.arange(before + length, weights.shape[-1])
        everywhere = np.arange(2, weights.shape[-1])
        for index, (at, keys) in enumerate(
            ((everywhere, everywhere - 1), (everywhere, np.zeros_like(everywhere)), (queries, queries - length + 1))
        ):
            sums[index] = sums[index] + weights[:, :, at, keys].mean(-1)
    return HeadScores(*(total / rows for total in sums))
