"""Turns sampled answers into training data: rewards rank the answers to each prompt, and pairs or the best ones are kept."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..data.conversations import conversation_key
from ..data.messages import Message, is_empty
from ..data.prompts import read_prompts
from ..data.sources import CorpusSource
from ..errors import DataError, OutputError
from ..files import make_folder, write_atomically
from .base import GIVEN, Reward, total_rewards
from .loading import check_columns

KINDS = ("pairs", "sft")
# Columns that belong to one answer, as `chatgpt-hf generate --samples` writes them; the others belong to the prompt.
_OF_AN_ANSWER = ("line", "sample", "completion", "finish_reason", "completion_ids", "mean_log_prob", "tool_messages")


@dataclass(frozen=True)
class Answer:
    """A sampled answer.

    Attributes:
        text: What it says.
        reward: The sum of all rewards.
        whole: False if it was cut at the longest length.
    """

    text: str
    reward: float
    whole: bool = True


@dataclass(frozen=True)
class Made:
    """Rows made from samples.

    Attributes:
        rows: Rows for `dpo` and `reward` (`prompt`, `chosen`, `rejected`, `margin`) or for `sft` (`messages`).
        prompts, answers: How many were read.
        mean_reward: The mean of all answers.
        without: Prompts that gave no row, by reason.
        notes: What else was done, with counts.
    """

    rows: list[dict[str, Any]]
    prompts: int
    answers: int
    mean_reward: float
    without: Counter[str]
    notes: Counter[str]


def make_rows(
    sources: Sequence[CorpusSource],
    rewards: Sequence[Reward],
    *,
    kind: str = "pairs",
    per_prompt: int = 1,
    min_margin: float = 0.0,
    min_reward: float | None = None,
    named: Mapping[str, str] | None = None,
) -> Made:
    """Reads samples and makes rows of them.

    Equal answers to a prompt count once, empty ones not at all. An answer that was cut (its `finish_reason` is `length`) is never
    chosen, and gets the least reward of its prompt. Of answers with the same reward, the one that was drawn first comes first.

    Args:
        sources: The result of `parse_sources`. A row is an answer: a prompt in any form that `grpo` reads, `completion`, and what
            the rewards read; as `chatgpt-hf generate --samples` writes them.
        rewards: The result of `load_rewards`, without end marks.
        kind: `pairs`, the best answer against the worst; or `sft`, the best answers.
        per_prompt: The most rows for each prompt. The second pair is of the second best and the second worst answer, and so on.
        min_margin: The least difference of the rewards in a pair. Equal rewards never make one.
        min_reward: The least reward of an answer that is chosen; any if not given.
        named: Columns that the user named, by `prompt` and `answer`.

    Raises:
        DataError: If a row is no sample or cannot be used by a reward, all answers got the same reward, or there are no rows to
            make; the message says why.
        ConfigError: If a reward fails.
    """
    rows = read_samples(sources, named=named)
    if all(row.get("finish_reason") == "length" for row in rows):
        raise DataError(
            f"All {len(rows)} answers were cut at their longest length, so none can be chosen: sample again with a larger "
            "--max_new_tokens."
        )
    groups = sample_groups(rows)
    totals = sample_rewards(rewards, rows, groups)
    scored = [total for total in totals if total is not None]
    # Rows that are kept for a least reward need no others to compare with.
    if len(set(scored)) < 2 and (kind == "pairs" or min_reward is None):
        what = f"the reward {scored[0]:g}" if scored else "no reward"
        raise DataError(
            f"All {len(rows)} answers got {what}, so none is better than another: look at some of them, and at "
            f"{', '.join(reward.name for reward in rewards)}."
        )
    made = Made([], len(groups), len(rows), sum(scored) / max(1, len(scored)), Counter(), Counter())
    for numbers in groups:
        answers = _answers([(rows[number], totals[number]) for number in numbers], made.notes)
        prompt = rows[numbers[0]]["prompt"]
        if kind == "pairs":
            _add_pairs(made, prompt, answers, per_prompt, min_margin, min_reward)
        else:
            _add_best(made, prompt, answers, per_prompt, min_reward)
    if not made.rows:
        reasons = "; ".join(f"{count} {reason}" for reason, count in made.without.most_common())
        raise DataError(f"None of the {made.prompts} prompts gave a row: {reasons}.")
    return made


def read_samples(sources: Sequence[CorpusSource], *, named: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Returns the sampled answers in some files, as `make_rows` reads them: `prompt`, `completion`, and the other columns.

    Raises:
        DataError: If a row is no sample.
    """
    rows = [row for split in read_prompts(sources, named=named).splits.values() for row in split]
    for row in rows:
        _check_sample(row)
    return rows


def sample_rewards(
    rewards: Sequence[Reward], rows: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[int]]
) -> list[float | None]:
    """Returns the sum of the rewards of each sample, None where there is none; a cut one gets the least of its prompt.

    Args:
        rewards: The result of `load_rewards`, without end marks.
        rows: The result of `read_samples`.
        groups: The result of `sample_groups`.

    Raises:
        DataError: If a row cannot be used by a reward.
        ConfigError: If a reward fails.
    """
    check_columns(rewards, rows, lambda number: rows[number - 1]["place"])
    for reward in rewards:
        reward.check()
    totals = _totals(rewards, rows)
    for numbers in groups:
        whole = [number for number in numbers if rows[number].get("finish_reason") != "length"]
        values = [total for number in whole if (total := totals[number]) is not None]
        least = min([sum(reward.weight * reward.least for reward in rewards), *values])
        for number in set(numbers) - set(whole):
            totals[number] = least
    return totals


def check_new(output: str | Path) -> Path:
    """Returns the path of a file to write; raises `OutputError` if it exists."""
    file = Path(output)
    if file.exists():
        raise OutputError(f"{file} exists: name another --output, or delete it.")
    return file


def write_rows(made: Made, output: str | Path) -> None:
    """Writes the rows to a new jsonl file.

    Raises:
        OutputError: If the file exists, or cannot be written.
    """
    file = check_new(output)
    make_folder(file.parent)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows)
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _check_sample(row: Mapping[str, Any]) -> None:
    """Raises `DataError` if a row is no answer to a prompt."""
    ids, place = row.get("completion_ids"), row["place"][:1].upper() + row["place"][1:]
    if not isinstance(row.get("completion"), str):
        raise DataError(
            f"{place} has no completion: give answers as `chatgpt-hf generate --prompts FILE --samples N` writes them."
        )
    if ids is not None and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise DataError(f"{place}: completion_ids is {ids!r:.80}: give a list of token ids, or leave the column out.")
    if row.get("tool_messages"):
        raise DataError(
            f"{place} calls tools before it answers, and rows made of it would leave the calls out: sample without --tools, or train "
            "with `chatgpt-hf grpo --tools`."
        )


def sample_groups(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Returns the numbers of the rows with the same prompt and the same columns that belong to it, in the order of the file."""

    def key(number: int) -> str:
        own = {name: cell for name, cell in rows[number].items() if name not in (*_OF_AN_ANSWER, "prompt", "place")}
        return conversation_key(rows[number]["prompt"]) + json.dumps(own, sort_keys=True)

    together = [list(numbers) for _, numbers in groupby(sorted(range(len(rows)), key=key), key)]
    return sorted(together)


def _totals(rewards: Sequence[Reward], rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    own = (*GIVEN, "prompt", "completion", "place")
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in own}
    ids: list[Any] = [row.get("completion_ids") for row in rows]
    return total_rewards(
        rewards,
        [row["prompt"] for row in rows],
        # As in a training on conversations.
        [[{"role": "assistant", "content": row["completion"]}] for row in rows],
        None if any(cell is None for cell in ids) else ids,
        **columns,
    )


def _answers(rows: Sequence[tuple[Mapping[str, Any], float | None]], notes: Counter[str]) -> list[Answer]:
    """The different answers to a prompt, the best first, from rows and their rewards."""
    found: dict[str, Answer] = {}
    for row, total in rows:
        text = row["completion"].strip()
        if is_empty(text):
            notes["answers were empty and left out"] += 1
        elif total is None:
            notes["answers got no reward and were left out"] += 1
        elif text in found:
            notes["answers were the same as another and left out"] += 1
        else:
            found[text] = Answer(text, total, row.get("finish_reason") != "length")
    return sorted(found.values(), key=lambda answer: (-answer.reward, not answer.whole))


def _add_pairs(
    made: Made,
    prompt: list[Message],
    answers: Sequence[Answer],
    per_prompt: int,
    min_margin: float,
    min_reward: float | None,
) -> None:
    """Adds pairs of the answers to a prompt, or counts why there are none."""
    before = len(made.rows)
    for better, worse in zip(answers[: len(answers) // 2][:per_prompt], reversed(answers), strict=False):
        margin = better.reward - worse.reward
        if margin > 0 and margin >= min_margin and _may_be_chosen(better, min_reward):
            made.rows.append(
                {"prompt": prompt, "chosen": better.text, "rejected": worse.text, "margin": round(margin, 6)}
            )
    if len(made.rows) == before:
        made.without[_reason(answers, min_margin, min_reward)] += 1


def _add_best(
    made: Made, prompt: list[Message], answers: Sequence[Answer], per_prompt: int, min_reward: float | None
) -> None:
    """Adds the best answers to a prompt, or counts why there are none."""
    best = [answer for answer in answers if _may_be_chosen(answer, min_reward)][:per_prompt]
    made.rows.extend({"messages": [*prompt, {"role": "assistant", "content": answer.text}]} for answer in best)
    if not best:
        made.without[_reason(answers, 0.0, min_reward)] += 1


def _may_be_chosen(answer: Answer, min_reward: float | None) -> bool:
    return answer.whole and (min_reward is None or answer.reward >= min_reward)


def _reason(answers: Sequence[Answer], min_margin: float, min_reward: float | None) -> str:
    """Why a prompt gave no row."""
    tests: list[tuple[Callable[[], bool], str]] = [
        (lambda: not answers, "without an answer"),
        (lambda: not any(answer.whole for answer in answers), "whose answers were all cut"),
        (lambda: len(answers) == 1 and _may_be_chosen(answers[0], min_reward), "with one different answer only"),
        (
            lambda: not any(_may_be_chosen(answer, min_reward) for answer in answers),
            f"whose best answer got less than the reward {min_reward}",
        ),
        (lambda: answers[0].reward == answers[-1].reward, "whose answers all got the same reward"),
    ]
    reason = next((reason for holds, reason in tests if holds()), None)
    return reason or f"whose rewards differ by less than {min_margin:g}"
