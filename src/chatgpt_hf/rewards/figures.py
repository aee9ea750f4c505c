"""What several answers to each of some prompts are worth: mean reward, pass@k, clipped and different answers."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import ConfigError, DataError
from ..evaluation.figures import Measure
from ..evaluation.metrics import measures

# Of the metric `diversity`, which has more.
_OF_TEXTS = ("distinct_2", "rep_4", "length")


def reward_measure(values: np.ndarray) -> Measure:
    """The mean of the rewards of each prompt's answers, where there are some.

    Args:
        values: NaN where there is none, (prompts, samples).
    """
    there = ~np.isnan(values)
    counts = there.sum(1)
    means = np.where(there, values, 0.0).sum(1) / np.maximum(counts, 1)
    return Measure("mean", np.stack([means * (counts > 0), (counts > 0).astype(float)], axis=1))


def best_of(values: np.ndarray, k: int) -> np.ndarray:
    """The reward that the best of k answers has on average, for each prompt, (prompts,); NaN where no answer has one.

    With rewards of 0 and 1 it is the unbiased estimate of pass@k (Chen et al. 2021): the mean over all choices of k answers.

    Args:
        values: NaN where there is none, (prompts, samples).
        k: At least 1; of prompts that have fewer rewards, the best one counts.
    """
    return np.array([_best_of(sorted(row[~np.isnan(row)].tolist()), k) for row in values])


def _best_of(values: Sequence[float], k: int) -> float:
    count = len(values)
    k = min(k, count)
    if not count:
        return math.nan
    # The answer at this place is the best one if the others are chosen from those before it.
    ways = math.comb(count, k)
    return sum(value * (math.comb(place, k - 1) / ways) for place, value in enumerate(values))


def answer_measures(
    values: np.ndarray,
    clipped: Sequence[Sequence[bool]],
    texts: Sequence[Sequence[str]],
    *,
    ks: Sequence[int] | None = None,
    greedy: np.ndarray | None = None,
) -> dict[str, Measure]:
    """Measures of answers; each prompt is an example.

    Args:
        values: The rewards, NaN where there is none, (prompts, samples).
        clipped: For each answer, whether it was cut at the longest length.
        texts: The answers to each prompt.
        ks: Values of k in pass@k; the number of answers if not given, unless it is 1.
        greedy: The rewards of the likeliest answers, (prompts,).

    Returns:
        `reward`; `greedy_reward`; for each k `pass_at_k`, which is `best_of_k` if some reward is neither 0 nor 1; `clipped`;
        `distinct_answers`, the share of different texts among the answers to a prompt; and `distinct_2`, `rep_4` and `length` in
        words of the metric `diversity`.

    Raises:
        DataError: If no answer has a reward.
        ConfigError: If a k is below 1, or above the number of answers to some prompt.
    """
    if np.isnan(values).all():
        raise DataError(f"None of the answers to {len(texts)} prompts got a reward: look at some of them.")
    fewest = min(map(len, texts))
    check_ks(ks or (), fewest)
    rewards = [values] if greedy is None else [values, greedy]
    right_or_wrong = all(set(part[~np.isnan(part)].tolist()) <= {0.0, 1.0} for part in rewards)
    found = {"reward": reward_measure(values)}
    if greedy is not None:
        found["greedy_reward"] = reward_measure(greedy[:, None])
    for k in ([fewest] if fewest > 1 else []) if ks is None else ks:
        name = f"{'pass_at' if right_or_wrong else 'best_of'}_{k}"
        found[name] = reward_measure(best_of(values, k)[:, None])
    counts = [len(answers) for answers in texts]
    found["clipped"] = Measure("mean", np.array([[sum(row), len(row)] for row in clipped], dtype=float), False)
    if max(counts) > 1:
        different = [[len(set(answers)) / len(answers), 1.0] for answers in texts]
        found["distinct_answers"] = Measure("mean", np.array(different))
    of_texts = measures("diversity", [answer for answers in texts for answer in answers])
    begins = np.cumsum([0, *counts[:-1]])
    return found | {
        name: replace(of_texts[name], statistics=np.add.reduceat(of_texts[name].statistics, begins))
        for name in _OF_TEXTS
    }


def check_ks(ks: Sequence[int], samples: int) -> None:
    """Raises `ConfigError` if a k of pass@k is below 1, or above the number of answers to a prompt."""
    if wrong := [k for k in ks if not 1 <= k <= samples]:
        raise ConfigError(f"--k has {wrong[0]}: give 1 to {samples}, the number of answers to a prompt.")
