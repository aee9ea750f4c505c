"""What a model's own answers are worth, before and after a training: rewards, pass@k, clipped and different answers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.figures import bootstrap, paired_difference
from ..inference.sampler import Sample, sample_completions
from ..inference.tools import Tools
from ..rewards import Reward, total_rewards
from ..rewards.figures import best_of, reward_measure


@dataclass(frozen=True)
class MeasuredAnswers:
    """Answers to some prompts and their rewards.

    Attributes:
        sampled: The reward of each sampled answer, NaN where there is none, (prompts, samples).
        greedy: The reward of the likeliest answer, (prompts,).
        clipped: 1 for each sampled answer without an end mark, (prompts, samples).
        distinct: The share of different texts among the samples of a prompt, (prompts,).
        sampled_texts, greedy_texts: The answers.
        texts: Each prompt, and on the next line its greedy answer.
        calls: The turns of each sampled answer that called tools, (prompts, samples); None for a model without tools.
    """

    sampled: np.ndarray
    greedy: np.ndarray
    clipped: np.ndarray
    distinct: np.ndarray
    sampled_texts: list[list[str]]
    greedy_texts: list[str]
    texts: list[str]
    calls: np.ndarray | None = None

    def is_right_or_wrong(self) -> bool:
        """True if every reward is 0 or 1: then the mean of the best of k answers is pass@k (Chen et al. 2021)."""
        return set(self.sampled[~np.isnan(self.sampled)].tolist()) <= {0.0, 1.0}

    def figures(self, best: str = "best_of") -> dict[str, float]:
        """The figures by name: means over prompts, each reward with a 95 % interval.

        Args:
            best: Name of the mean of the best of k answers, without the number k.
        """
        found: dict[str, float] = {}
        for name, values in (("reward", self.sampled), ("greedy_reward", self.greedy[:, None])):
            figure = bootstrap(reward_measure(values))
            found |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        highest = best_of(self.sampled, self.sampled.shape[1])
        found[f"{best}_{self.sampled.shape[1]}"] = float(np.where(np.isfinite(highest), highest, 0.0).mean())
        if self.calls is not None:
            found["tool_calls"] = float(self.calls.mean())
        return {**found, "clipped": float(self.clipped.mean()), "distinct_answers": float(self.distinct.mean())}

    def gain(self, before: "MeasuredAnswers") -> dict[str, float]:
        """How much the mean reward has grown since, on the same prompts, with a 95 % interval and the p-value of no change."""
        difference = paired_difference(reward_measure(before.sampled), reward_measure(self.sampled))
        return {
            "reward_gain": difference.value,
            "reward_gain_low": difference.low,
            "reward_gain_high": difference.high,
            "reward_gain_p": difference.p_value,
        }


def measure_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    prompt_ids: Sequence[list[int]],
    rewards: Sequence[Reward],
    *,
    samples: int,
    ends: Collection[int],
    seed: int,
    toolbox: Tools | None = None,
    **sampling: Any,
) -> MeasuredAnswers:
    """Lets a model answer prompts greedily and by sampling; the random numbers of the caller stay as they are.

    Args:
        rows: With `prompt` and the columns that the rewards read.
        prompt_ids: Token ids of each prompt.
        samples: Sampled answers to each prompt.
        ends: Token ids that end an answer.
        toolbox: Answers the calls in the model's answers, if it has tools.
        **sampling: `max_new_tokens`, `temperature`, `top_p` and others of `sample_completions`.
    """
    generator = torch.Generator().manual_seed(seed)
    shared: dict[str, Any] = {"end_ids": ends, "generator": generator, "replying": toolbox}
    sampled = sample_completions(model, prompt_ids, samples=samples, **shared, **sampling)
    likeliest = sample_completions(
        model, prompt_ids, samples=1, **shared, **{**sampling, "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    )
    texts = [[_text(tokenizer, sample) for sample in answers] for answers in sampled]
    values = np.array(_rewards(rows, rewards, sampled, texts, toolbox), dtype=float)
    greedy_texts = [[_text(tokenizer, sample) for sample in answers] for answers in likeliest]
    greedy = np.array(_rewards(rows, rewards, likeliest, greedy_texts, toolbox), dtype=float)[:, 0]
    asked = tokenizer.batch_decode(list(prompt_ids), skip_special_tokens=True)
    return MeasuredAnswers(
        sampled=values,
        greedy=greedy,
        clipped=np.array([[not sample.ended for sample in answers] for answers in sampled], dtype=float),
        distinct=np.array([len(set(answers)) / len(answers) for answers in texts]),
        sampled_texts=texts,
        greedy_texts=[text for (text,) in greedy_texts],
        texts=[f"{question.strip()}\n{answer}" for question, (answer,) in zip(asked, greedy_texts, strict=True)],
        calls=None if toolbox is None else np.array([[len(each.replies) for each in answers] for answers in sampled]),
    )


def _rewards(
    rows: Dataset,
    rewards: Sequence[Reward],
    answers: Sequence[Sequence[Sample]],
    texts: Sequence[Sequence[str]],
    toolbox: Tools | None,
) -> list[list[float | None]]:
    """The rewards of the answers to each prompt."""
    count = len(answers[0])
    # As TRL calls the functions: messages for messages.
    completions = [[{"role": "assistant", "content": text}] for group in texts for text in group]
    if toolbox is not None:
        completions = [toolbox.messages(sample) for group in answers for sample in group]
    columns = {name: [cell for cell in rows[name] for _ in range(count)] for name in rows.column_names}
    prompts = columns.pop("prompt")
    ids = [sample.ids for group in answers for sample in group]
    found = total_rewards(rewards, prompts, completions, ids, **columns)
    return [found[begin : begin + count] for begin in range(0, len(found), count)]


def _text(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    return str(tokenizer.decode(sample.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
