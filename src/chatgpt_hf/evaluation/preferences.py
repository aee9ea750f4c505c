"""How often pairs of answers are ranked right: by a model's scores, and by nothing but the length of the answers."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import context_length
from ..data.conversations import warn_of_keys
from ..data.preference_tokens import EncodedSides, encode_sides
from ..errors import DataError
from .figures import Figure, Measure, bootstrap
from .record import Evaluation
from .scoring import classifier_scores, negative_log_likelihoods

logger = logging.getLogger(__name__)

TASK = "preferences"


class PairScores(NamedTuple):
    """What a model thinks of both answers to each prompt.

    Attributes:
        scores: Of the chosen and the rejected answer, (pairs, 2); both NaN if they do not fit into the model's context.
        tokens: The number of tokens that a score sums up, (pairs, 2); None if it is no sum.
    """

    scores: np.ndarray
    tokens: np.ndarray | None = None

    @property
    def margins(self) -> np.ndarray:
        """How much higher the chosen answer's score is, (pairs,)."""
        return self.scores[:, 0] - self.scores[:, 1]


def pair_accuracy(margins: Sequence[float]) -> Figure:
    """The share of pairs with a positive margin, and its interval; a margin of 0 counts half.

    Args:
        margins: Score of the chosen answer minus that of the rejected one, (pairs,); at least one.
    """
    return bootstrap(accuracy_measure(margins))


def length_accuracy(train: Sequence[float], held_out: Sequence[float]) -> Figure:
    """The accuracy of a rule that sees only lengths: the longer answer wins, or the shorter one if that is more often right.

    Args:
        train: Length of the chosen answer minus that of the rejected one, for the pairs that decide between the two rules,
            (pairs,).
        held_out: The same for the pairs that are ranked, (pairs,); at least one.
    """
    sign = 1 if accuracy_measure(train).value >= 0.5 else -1
    return pair_accuracy([sign * difference for difference in held_out])


def accuracy_measure(margins: Sequence[float] | np.ndarray) -> Measure:
    """The measure of `pair_accuracy`; NaN counts half too."""
    signs = np.nan_to_num(np.sign(np.asarray(margins, dtype=float)))
    return Measure("mean", np.stack([(signs + 1) / 2, np.ones_like(signs)], axis=1))


def beside_length(accuracy: Measure, pairs: Dataset) -> dict[str, Measure]:
    """Measures that tell an accuracy from a preference for long answers.

    Args:
        accuracy: The `accuracy_measure` of some pairs.
        pairs: These pairs, a split of `read_preferences`.

    Returns:
        `length_accuracy`: how often the longer answer, in characters, is the better one. `accuracy_over_length`: how much higher
        the accuracy is, with a paired interval.
    """
    by_length = accuracy_measure(
        [said(chosen) - said(rejected) for chosen, rejected in zip(pairs["chosen"], pairs["rejected"], strict=True)]
    )
    both = np.concatenate([accuracy.statistics, by_length.statistics], axis=1)
    return {"length_accuracy": by_length, "accuracy_over_length": Measure("difference_of_means", both)}


def said(messages: Sequence[dict[str, Any]]) -> int:
    """How many characters the assistant says in an answer's messages."""
    return sum(len(message.get("content") or "") for message in messages if message["role"] == "assistant")


def likelihood_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> PairScores:
    """Returns the log-probabilities of both answers, in nats: of the tokens that `sft` would learn.

    A prompt that leaves no room for the longer answer loses its beginning.

    Args:
        model: A causal language model.
        pairs: A split of `read_preferences` of the kind `pairs`.
        batch_size: Answers at a time; None for up to 8, fewer if they are long.

    Raises:
        DataError: If a pair cannot be encoded; the message names the row.
        TokenizerError: If the tokenizer has no chat template.
    """
    encoded = _encoded(pairs, tokenizer, context_length(model))
    pieces = [
        ([*sides.prompt_ids, *ids], [*[0] * len(sides.prompt_ids), *mask])
        for sides in encoded
        for ids, mask in zip(sides.ids, sides.masks, strict=True)
        if sides.prompt_ids
    ]
    found = -negative_log_likelihoods(
        model, pieces, pad_token_id=tokenizer.pad_token_id, batch_size=batch_size, progress=progress
    )
    tokens = np.array([[sum(mask) for mask in sides.masks] for sides in encoded])
    return PairScores(_in_place(found, encoded), tokens)


def reward_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> PairScores:
    """Returns a reward model's scores of both answers. See `likelihood_scores`.

    Args:
        model: A sequence classifier with one output.
    """
    encoded = _encoded(pairs, tokenizer, context_length(model))
    rows = [[*sides.prompt_ids, *ids] for sides in encoded for ids in sides.ids if sides.prompt_ids]
    found = classifier_scores(model, rows, batch_size=batch_size, progress=progress)
    return PairScores(_in_place(found, encoded))


def evaluate_preferences(
    found: PairScores, pairs: Dataset, *, data: str = "", reference: PairScores | None = None
) -> Evaluation:
    """Measures how often the chosen answer of a pair has the higher score. Pairs that did not fit count as undecided, a half.

    Args:
        found: Scores of these pairs.
        pairs: A split of `read_preferences` of the kind `pairs`.
        data: Name of the pairs in the evaluation.
        reference: Scores by the model before its training on preferences.

    Returns:
        `accuracy`, of the scores, and the measures of `beside_length`. For scores that are sums also `accuracy_per_token`, of the
        mean score of a token, which does not favor short answers. `margin`: the mean difference of the scores. With a reference,
        `gain_accuracy` and `gain_margin`: how often the chosen answer gained more, and how much more, which is what DPO trains.

    Raises:
        DataError: If there are no pairs, or none fits.
    """
    margins = found.margins
    if np.isnan(margins).all():
        raise DataError(
            f"None of the {len(pairs)} pairs of answers can be scored: there are none, or all are too long."
        )
    measures = {"accuracy": accuracy_measure(margins)}
    if found.tokens is not None:
        measures["accuracy_per_token"] = accuracy_measure(PairScores(found.scores / found.tokens).margins)
    measures |= {**beside_length(measures["accuracy"], pairs), "margin": _mean(margins)}
    if reference is not None:
        gains = margins - reference.margins
        measures |= {"gain_accuracy": accuracy_measure(gains), "gain_margin": _mean(gains)}
    missing = int(np.isnan(margins).sum())
    settings = {"too_long": missing} if missing else {}
    return Evaluation(TASK, data, measures, pair_examples(pairs, margin=margins), settings)


def _mean(values: np.ndarray) -> Measure:
    """The mean of values, (pairs,), of which some may be NaN."""
    there = ~np.isnan(values)
    return Measure("mean_where_defined", np.stack([np.nan_to_num(values), there.astype(float)], axis=1))


def pair_examples(pairs: Dataset, **found: np.ndarray) -> list[dict[str, Any]]:
    """The examples of an evaluation on pairs.

    Args:
        **found: What the model thinks of each pair, (pairs,).
    """
    columns = [pairs[name][:] for name in ("prompt", "chosen", "rejected")]
    return [
        {"prompt": prompt, "reference": chosen, "rejected": rejected}
        | {name: None if np.isnan(values[row]) else float(values[row]) for name, values in found.items()}
        for row, (prompt, chosen, rejected) in enumerate(zip(*columns, strict=True))
    ]


def _encoded(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int) -> list[EncodedSides]:
    """Encodes pairs; those that do not fit into `limit` tokens have no prompt."""
    left_out: Counter[str] = Counter()
    encoded = []
    for row in pairs:
        try:
            sides = encode_sides(row["prompt"], [row["chosen"], row["rejected"]], row["tools"], tokenizer, left_out)
        except DataError as error:
            raise DataError(f"{row['place'][0].upper()}{row['place'][1:]}: {error}") from error
        # At least one token has to stand before an answer.
        room = max(0, limit - max(map(len, sides.ids)))
        encoded.append(sides._replace(prompt_ids=sides.prompt_ids[-room:] if room else []))
    warn_of_keys(left_out)
    if missing := sum(not sides.prompt_ids for sides in encoded):
        logger.warning(
            "%d of %d pairs do not fit into the model's context of %d and count as undecided.",
            missing,
            len(pairs),
            limit,
        )
    return encoded


def _in_place(found: np.ndarray, encoded: Sequence[EncodedSides]) -> np.ndarray:
    """Scores of the answers that fit, as (pairs, 2)."""
    scores = np.full((len(encoded), 2), np.nan)
    scores[[bool(sides.prompt_ids) for sides in encoded]] = found.reshape(-1, 2)
    return scores
