"""Answers to prompts, by a model or from a file: what they are worth to rewards, and to a judge beside other answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .chat_templates import encode_chat_prompt
from .checkpoints import check_tokenizer_fits, context_length, end_marks
from .data.conversations import InvalidRows, conversation_key
from .data.messages import is_empty
from .data.prompts import ANSWER, read_prompts
from .data.sources import parse_sources
from .errors import DataError
from .evaluation.judge import evaluate_wins, log_odds
from .evaluation.record import Evaluation
from .inference.loading import load_for_generation, load_language_model
from .inference.sampler import sample_completions
from .rewards import Reward, check_columns
from .rewards.answers import texts_of
from .rewards.base import RESERVED
from .rewards.figures import answer_measures, check_ks
from .rewards.models import is_reward_model, model_reward
from .rewards.pairs import read_samples, sample_groups, sample_rewards
from .tokenization_chatgpt import load_tokenizer
from .training.grpo_figures import measure_answers

TASK = "answers"


@dataclass(frozen=True)
class Answers:
    """Answers to some prompts.

    Attributes:
        rows: For each prompt `prompt`, its messages; `place`; and the other columns of the file.
        shown: The answer to each prompt that is read by a judge: the likeliest one, or the first in a file.
        rewarded: The evaluation of all answers by rewards; None without rewards.
    """

    rows: list[dict[str, Any]]
    shown: list[str]
    rewarded: Evaluation | None = None


def answer_prompts(
    name_or_path: str,
    rows: Dataset,
    rewards: Sequence[Reward] = (),
    *,
    samples: int = 8,
    ks: Sequence[int] | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    skip_invalid: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> Answers:
    """Lets a chat model answer prompts: greedily, and with rewards also by sampling, as `grpo` does before and after a training.

    Nothing is taken from the model's generation config but the end marks. An answer without one gets no reward; see `Reward`.

    Args:
        rows: The result of `read_questions`.
        rewards: The result of `load_rewards`.
        samples: Sampled answers to each prompt.
        ks: Values of k in pass@k; see `answer_measures`.
        skip_invalid: Leave out prompts that the chat template refuses, or that leave no room for an answer.
        batch_size: Answers at a time.

    Raises:
        DataError: If a prompt cannot be used, or no answer gets a reward.
        ConfigError: If a parameter is out of range, or a reward fails.
    """
    # Before the work.
    check_ks(ks or (), samples)
    model, tokenizer, kept, prompt_ids = _ready(name_or_path, rows["prompt"], rows["place"], skip_invalid)
    rows, ends = rows.select(kept), end_marks(model, tokenizer)
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if not rewards:
        return Answers(list(rows), _greedy(model, tokenizer, prompt_ids, **sampling))
    for reward in rewards:
        reward.ends = ends
    found = measure_answers(
        model,
        tokenizer,
        rows.remove_columns("place"),
        prompt_ids,
        rewards,
        samples=samples,
        ends=ends,
        seed=seed,
        temperature=temperature,
        **sampling,
    )
    measures = answer_measures(found.sampled, found.clipped.tolist(), found.sampled_texts, ks=ks, greedy=found.greedy)
    examples = [
        {"prompt": row["prompt"], **_right(row), "greedy": greedy, "answers": texts, "rewards": _numbers(values)}
        for row, greedy, texts, values in zip(
            rows, found.greedy_texts, found.sampled_texts, found.sampled, strict=True
        )
    ]
    settings = {"samples": samples, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    return Answers(list(rows), found.greedy_texts, Evaluation(TASK, "", measures, examples, settings))


def greedy_answers(name_or_path: str, to: Answers, *, max_new_tokens: int = 128, batch_size: int = 64) -> list[str]:
    """Lets another model answer the same prompts, greedily.

    Raises:
        DataError: If it cannot answer one of them.
    """
    prompts, places = ([row[name] for row in to.rows] for name in ("prompt", "place"))
    model, tokenizer, _, prompt_ids = _ready(name_or_path, prompts, places, skip_invalid=False)
    return _greedy(model, tokenizer, prompt_ids, max_new_tokens=max_new_tokens, batch_size=batch_size)


def read_answers(
    file: str,
    rewards: Sequence[Reward] = (),
    *,
    ks: Sequence[int] | None = None,
    named: Mapping[str, str] | None = None,
    encoding: str | None = None,
    limit: int | None = None,
) -> Answers:
    """Reads answers that a model gave before, as `chatgpt-hf generate --prompts` writes them, with one or several to each prompt.

    Args:
        rewards: The result of `load_rewards`.
        ks: Values of k in pass@k; see `answer_measures`.
        named: Columns that the user named, by `prompt` and `answer`.
        encoding: Encoding of the file, UTF-8 if not given.
        limit: The number of prompts; all if not given.

    Raises:
        DataError: If a row is no answer, or no answer gets a reward.
        ConfigError: If a reward fails.
    """
    rows = read_samples(parse_sources(file, encoding=encoding, field="answers"), named=named)
    # In the order of the prompts and samples: `generate` writes an answer when it is finished.
    rows.sort(key=lambda row: (_whole(row.get("line")), _whole(row.get("sample"))))
    groups = sample_groups(rows)[:limit]
    rows = [rows[number] for numbers in groups for number in numbers]
    ends = np.cumsum([len(numbers) for numbers in groups]).tolist()
    groups = [list(range(end - len(numbers), end)) for numbers, end in zip(groups, ends, strict=True)]
    first = [rows[numbers[0]] for numbers in groups]
    shown = [row["completion"] for row in first]
    if not rewards:
        return Answers(first, shown)
    totals = sample_rewards(rewards, rows, groups)
    values = np.full((len(groups), max(map(len, groups))), np.nan)
    for place, numbers in enumerate(groups):
        values[place, : len(numbers)] = np.array([totals[number] for number in numbers], dtype=float)
    texts = [[rows[number]["completion"] for number in numbers] for numbers in groups]
    clipped = [[rows[number].get("finish_reason") == "length" for number in numbers] for numbers in groups]
    examples = [
        {"prompt": row["prompt"], **_right(row), "answers": said, "rewards": _numbers(found[: len(said)])}
        for row, said, found in zip(first, texts, values, strict=True)
    ]
    measures = answer_measures(values, clipped, texts, ks=ks)
    return Answers(first, shown, Evaluation(TASK, "", measures, examples))


def read_questions(
    file: str,
    rewards: Sequence[Reward] = (),
    *,
    named: Mapping[str, str] | None = None,
    encoding: str | None = None,
    skip_invalid: bool = False,
    limit: int | None = None,
) -> Dataset:
    """Reads prompts with what rewards read of them: `prompt`, `place`, and the other columns.

    Raises:
        DataError: If a row has no prompt, or lacks what a reward reads.
    """
    sources = parse_sources(file, encoding=encoding, field="prompts")
    read = read_prompts(sources, skip_invalid=skip_invalid, named=named, reserved=RESERVED).splits
    rows = concatenate_datasets(list(read.values()))
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    check_columns(rewards, rows.remove_columns("place"), ["", *rows["place"]].__getitem__)
    for reward in rewards:
        reward.check()
    return rows


def judged(answers: Answers, others: Sequence[str], judge: str, *, batch_size: int | None = None) -> Evaluation:
    """Asks a judge whether answers are better than others to the same prompts.

    Args:
        others: See `references`, `matching` and `greedy_answers`.
        judge: Folder or Hub id of a chat model, which is asked in both orders; or of a reward model, whose scores decide.

    Raises:
        DataError: If nothing can be judged.
    """
    prompts = [row["prompt"] for row in answers.rows]
    if is_reward_model(judge):
        reward = model_reward(judge, **({} if batch_size is None else {"batch_size": batch_size}))
        # An empty answer has no score, and is worse than all that have one.
        ones, theirs = (
            np.array([-np.inf if score is None else score for score in reward(prompts, texts)])
            for texts in (answers.shown, others)
        )
        found = ((ones > theirs) * 1.0 - (ones < theirs))[:, None]
    else:
        model, tokenizer = load_language_model(judge), load_tokenizer(judge)
        check_tokenizer_fits(model, tokenizer)
        found = log_odds(model, tokenizer, prompts, answers.shown, others, batch_size=batch_size)
    return evaluate_wins(found, prompts, answers.shown, others)


def references(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the right answers to prompts: the first text in the column `answer`, or what ends a conversation.

    Args:
        rows: The rows of `Answers`, or of `read_questions`.

    Raises:
        DataError: If a prompt has none.
    """
    found = []
    for row in rows:
        texts = texts_of(row.get(ANSWER))
        if not texts or is_empty(texts[0]):
            place = row["place"][:1].upper() + row["place"][1:]
            raise DataError(
                f"{place} has no answer to compare with: give --against another model or its answers, or name the column with "
                "--answer_column."
            )
        found.append(texts[0])
    return found


def matching(rows: Iterable[Mapping[str, Any]], others: Answers) -> list[str]:
    """Returns the other answers to the same prompts, in their order.

    Args:
        rows: See `references`.

    Raises:
        DataError: If a prompt was not answered.
    """
    by_prompt: dict[str, list[str]] = {}
    for answered, text in zip(others.rows, others.shown, strict=True):
        by_prompt.setdefault(conversation_key(answered["prompt"]), []).append(text)
    found = []
    for row in rows:
        texts = by_prompt.get(conversation_key(row["prompt"]))
        if not texts:
            asked = row["prompt"][-1]["content"]
            raise DataError(f"--against has no answer to the prompt {asked!r:.80}: let it answer the same prompts.")
        # Rows with the same prompt are in the same order.
        found.append(texts.pop(0) if len(texts) > 1 else texts[0])
    return found


def _ready(
    name_or_path: str, prompts: Sequence[Any], places: Sequence[str], skip_invalid: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int], list[list[int]]]:
    """Loads a model and encodes prompts for it; returns which of them it can answer, and their tokens."""
    model, tokenizer = load_for_generation(name_or_path, many_rows=True), load_tokenizer(name_or_path)
    check_tokenizer_fits(model, tokenizer)
    invalid, context = InvalidRows(skip_invalid), context_length(model)
    kept, prompt_ids = [], []
    for index, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        try:
            ids = encode_chat_prompt(tokenizer, prompt)
            if len(ids) >= context:
                raise DataError(f"its prompt takes {len(ids)} tokens, and the model's context is {context}")
        except DataError as error:
            invalid.add(place, error)
            continue
        kept.append(index)
        prompt_ids.append(ids)
    invalid.warn("prompts")
    if not kept:
        raise DataError(f"None of the {len(prompts)} prompts can be answered.")
    return model, tokenizer, kept, prompt_ids


def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[list[int]], **sampling: Any
) -> list[str]:
    found = sample_completions(
        model,
        prompt_ids,
        end_ids=end_marks(model, tokenizer),
        # Nothing is drawn that matters.
        generator=torch.Generator(),
        temperature=0.0,
        **sampling,
    )
    return tokenizer.batch_decode(
        [sample.ids for (sample,) in found], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def _right(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison checks besides the prompt."""
    return {} if row.get(ANSWER) is None else {"reference": row[ANSWER]}


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _whole(number: Any) -> int:
    """The number; 0 for what is none, as in files of other programs."""
    return number if isinstance(number, int) else 0
