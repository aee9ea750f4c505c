"""A chat model as a judge: which of two answers is better, asked with the answers in both orders."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import context_length
from ..data.preference_tokens import encode_sides
from ..errors import DataError
from .figures import Measure
from .preferences import accuracy_measure, beside_length, pair_examples
from .record import Evaluation
from .scoring import next_log_probs

logger = logging.getLogger(__name__)

TASK = "judge"
LETTERS = ("A", "B")
# What the judge is asked.
REQUEST = """\
Which of two answers to the last message of the user is better: more correct, more helpful, more honest? An answer is not better because it is longer.

{conversation}

[Answer A]
{first}

[Answer B]
{second}

Reply with one letter: A or B."""


def log_odds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[dict[str, Any]]],
    ones: Sequence[str],
    others: Sequence[str],
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Asks a judge which of two answers to each prompt is better; what counts is how likely each letter is as its reply.

    Args:
        model: A causal language model, the judge.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Messages.
        ones: An answer to each.
        others: Another answer to each.
        batch_size: Requests at a time; None for up to 8, fewer if they are long.

    Returns:
        ln p(the one) - ln p(the other), (pairs, 2): with the one in the first place, then in the second. NaN if a request does
        not fit into the judge's context; a warning counts them.

    Raises:
        TokenizerError: If the tokenizer has no chat template.
    """
    limit, rows, letters, fits = context_length(model), [], [], []
    for messages, one, other in zip(prompts, ones, others, strict=True):
        asked = [_request(tokenizer, messages, *both) for both in ((one, other), (other, one))]
        fits.append(all(len(ids) <= limit for ids, _ in asked))
        if fits[-1]:
            rows += [ids for ids, _ in asked]
            letters += [pair for _, pair in asked]
    found = np.full((len(fits), 2), np.nan)
    if missing := len(fits) - sum(fits):
        logger.warning(
            "%d of %d pairs of answers do not fit into the judge's context of %d and count as undecided.",
            missing,
            len(fits),
            limit,
        )
    if rows:
        log_probs = next_log_probs(
            model,
            rows,
            letters,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=batch_size,
            desc="Judging",
            progress=progress,
        )
        # In the second request the one stands in the second place.
        found[fits] = (log_probs[:, 0] - log_probs[:, 1]).reshape(-1, 2) * [1, -1]
    return found


def evaluate_judge(found: np.ndarray, pairs: Dataset, *, data: str = "") -> Evaluation:
    """Measures how often a judge agrees with the labels of pairs.

    Args:
        found: What `log_odds` returns for the chosen and the rejected answers.
        pairs: A split of `read_preferences` of the kind `pairs`.
        data: Name of the pairs in the evaluation.

    Returns:
        `agreement`, `disagreement` and `undecided`: the shares of pairs in which the judge prefers the chosen answer in both orders,
        the rejected one in both, or neither. `accuracy`: the agreement and half of what is undecided; beside it the measures of
        `beside_length`. `accuracy_of_both_orders`: that of the sum of both log-odds, in which a preference for a place cancels out.
        `first_place`: how often the judge prefers the answer that stands first; 0.5 if the place does not matter.

    Raises:
        DataError: If nothing could be judged.
    """
    _check(found)
    accuracy = accuracy_measure(verdicts(found))
    measures = {
        "accuracy": accuracy,
        "agreement": _share(verdicts(found) > 0),
        "disagreement": _share(verdicts(found) < 0, higher_is_better=False),
        **_of_places(found),
        "accuracy_of_both_orders": accuracy_measure(found.sum(1)),
        **beside_length(accuracy, pairs),
    }
    return Evaluation(
        TASK, data, measures, pair_examples(pairs, first=found[:, 0], second=found[:, 1]), _settings(found)
    )


def evaluate_wins(
    found: np.ndarray,
    prompts: Sequence[Sequence[dict[str, Any]]],
    ones: Sequence[str],
    others: Sequence[str],
    *,
    data: str = "",
) -> Evaluation:
    """Measures how often a judge finds a model's answers better than others.

    Args:
        found: What `log_odds` returns; or the differences of the scores by a reward model, (pairs, 1).
        prompts: See `log_odds`.
        ones: The model's answers.
        others: The other answers.
        data: Name of the prompts in the evaluation.

    Returns:
        `wins` and `losses`: the shares of answers that are better, or worse, in both orders; `undecided`: the rest. `win_rate`: the
        wins and half of what is undecided. `first_place`: see `evaluate_judge`; not for a reward model. `longer`: how often the
        model's answer has more characters, equal ones counted half: a judge that prefers long answers prefers these.

    Raises:
        DataError: If nothing could be judged.
    """
    _check(found)
    decided = verdicts(found)
    measures = {
        "win_rate": accuracy_measure(decided),
        "wins": _share(decided > 0),
        "losses": _share(decided < 0, higher_is_better=False),
        **(_of_places(found) if found.shape[1] > 1 else {"undecided": _share(decided == 0, higher_is_better=False)}),
        "longer": accuracy_measure([len(one) - len(other) for one, other in zip(ones, others, strict=True)]),
    }
    examples = [
        {"prompt": list(prompt), "answer": one, "other": other, "verdict": int(verdict)}
        for prompt, one, other, verdict in zip(prompts, ones, others, decided, strict=True)
    ]
    return Evaluation(TASK, data, measures, examples, _settings(found))


def verdicts(found: np.ndarray) -> np.ndarray:
    """1 where the one is preferred in all orders, -1 where the other is, 0 elsewhere, (pairs,).

    Args:
        found: The result of `log_odds`, (pairs, orders).
    """
    signs = np.nan_to_num(np.sign(found))
    return np.where((signs == signs[:, :1]).all(1), signs[:, 0], 0.0)


def _settings(found: np.ndarray) -> dict[str, Any]:
    """What the judge was asked, and how many pairs it could not read."""
    asked = {"request": REQUEST} if found.shape[1] > 1 else {}
    missing = int(np.isnan(found).any(1).sum())
    return {**asked, "too_long": missing} if missing else asked


def _of_places(found: np.ndarray) -> dict[str, Measure]:
    judged = ~np.isnan(found).any(1)
    # The one is first in the first order, the other in the second.
    first = np.nan_to_num(np.sign(found) * [1, -1])
    places = np.stack([((first + 1) / 2).mean(1) * judged, judged], axis=1)
    return {
        "undecided": _share(verdicts(found) == 0, higher_is_better=False),
        "first_place": Measure("mean_where_defined", places),
    }


def _share(true: np.ndarray, *, higher_is_better: bool = True) -> Measure:
    return Measure("mean", np.stack([true, np.ones(len(true))], axis=1), higher_is_better)


def _check(found: np.ndarray) -> None:
    if not len(found) or np.isnan(found).any(1).all():
        raise DataError(
            f"None of the {len(found)} pairs of answers can be judged: there are none, or all are longer than the judge's context."
        )


def _request(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], first: str, second: str
) -> tuple[list[int], tuple[int, int]]:
    """The tokens before the judge's letter, and the tokens of the two letters."""
    parts = [f"[{str(message['role']).title()}]\n{message.get('content') or ''}" for message in messages]
    text = REQUEST.format(conversation="\n\n".join(parts), first=first.strip(), second=second.strip())
    replies = [[{"role": "assistant", "content": letter}] for letter in LETTERS]
    sides = encode_sides([{"role": "user", "content": text}], replies, None, tokenizer)
    # A tokenizer may begin both with the same token, such as a space.
    same = next(place for place, (a, b) in enumerate(zip(*sides.ids, strict=False)) if a != b)
    return [*sides.prompt_ids, *sides.ids[0][:same]], (sides.ids[0][same], sides.ids[1][same])
