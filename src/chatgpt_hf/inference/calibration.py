"""Behind `chatgpt-hf calibrate`: the threshold below which a model abstains, and what it costs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import check_tokenizer_fits, context_length
from ..data.conversations import read_conversations
from ..data.sources import parse_sources
from ..errors import CheckpointError, ConfigError, DataError, TokenizerError
from ..evaluation.answers import ends_with_an_answer, last_questions
from ..evaluation.figures import Figure, Measure, bootstrap
from ..evaluation.generation import PLAIN_GREEDY, generate_completions
from ..files import read_json
from ..stored import ABSTENTION_NAME
from ..tokenization_chatgpt import load_tokenizer
from .abstention import DEFAULT_TEXT, JUDGED_TOKENS, LEAST, Abstention, load_abstention, save_abstention
from .loading import load_for_generation

# Fewer right answers say too little about the least confident of them.
FEWEST = 20
# More than the confidences of the same answer differ, alone and in batches.
_ROUNDING = 1e-3
_COUNTS = ("known_questions", "right", "unknown_questions", "unknown_right")


@dataclass(frozen=True)
class Judged:
    """A model's answers to questions whose right answers are known.

    Attributes:
        confidence: How sure it was of each greedy answer, (questions,).
        right: Whether the answer is the reference, word for word, (questions,).
    """

    confidence: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it costs.

    Attributes:
        abstention: The threshold with its text.
        counts: Numbers of questions and right answers.
        figures: `right_given`: share of right answers to known questions that are still given. `wrong_given`: the same of
            wrong ones. `invented_given`: the same of wrong answers to unknown questions. `auroc`: how often a right answer
            is more confident than a wrong one, of the unknown questions if there are any. A figure without examples is
            left out.
    """

    abstention: Abstention
    counts: dict[str, int]
    figures: dict[str, Figure] = field(default_factory=dict)


def calibrate(
    folder: str | Path,
    known: str | Sequence[str],
    unknown: str | Sequence[str] | None = None,
    *,
    keep: float = 0.95,
    text: str = DEFAULT_TEXT,
    limit: int = 1000,
    max_new_tokens: int = JUDGED_TOKENS,
    batch_size: int = 32,
    encoding: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Chooses the threshold that keeps a share of a model's right answers, and writes it into the model's folder.

    Args:
        folder: Folder of a chat model or adapter.
        known: Conversations whose last answer the model should know: anything that `sft` reads as `--dataset`. Of a source
            with its own held-out part, only the other part is used.
        unknown: Conversations whose last answer it cannot know. Of a source with its own held-out part, that part is used.
            They do not change the threshold; they measure what it is good for.
        keep: Share of the right answers to keep.
        text: What the model says when it abstains.
        limit: At most this many conversations of each kind, chosen at random.
        max_new_tokens: Answers are judged by at most this many tokens.
        encoding: Encoding of the files; UTF-8 if not given.
        seed: Seed of the choice.

    Raises:
        ConfigError: If an argument cannot be used.
        CheckpointError: If there is no folder with a model.
        DataError: If the conversations cannot be read, or fewer than `FEWEST` answers are right.
        TokenizerError: If the tokenizer has no chat template.
    """
    folder = Path(folder)
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep is {keep}: give the share of right answers to keep, above 0 and at most 1.")
    if limit < FEWEST:
        raise ConfigError(f"--limit is {limit}: a threshold needs at least {FEWEST} right answers.")
    # Checks both before anything is computed.
    Abstention(0, text, max_new_tokens)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder: the calibration is written beside the weights. Download the model first, with "
            "`chatgpt-hf pull`."
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None:
        raise TokenizerError(
            f"{folder} has no chat template: this is a base model, and its texts are no answers to judge."
        )
    rows = [_sampled(known, "known", "train", limit, encoding, seed)]
    if unknown is not None:
        rows.append(_sampled(unknown, "unknown", "test", limit, encoding, seed))
    model = load_for_generation(folder)
    check_tokenizer_fits(model, tokenizer)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
    judged = [
        judge(model, tokenizer, *part, desc=f"Answering {name} questions", **options)
        for name, part in zip(("known", "unknown"), rows, strict=False)
    ]
    found = choose_threshold(*judged, keep=keep, text=text, max_new_tokens=max_new_tokens)
    record = {
        "known": known,
        "unknown": unknown,
        "keep": keep,
        "limit": limit,
        "seed": seed,
        **found.counts,
        "figures": {name: list(figure) for name, figure in found.figures.items()},
    }
    save_abstention(found.abstention, folder, tokenizer, record)
    return found


def load_calibration(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> Calibration:
    """Reads what `calibrate` wrote into a model's folder.

    Raises:
        ConfigError: If there is none, or it was made for other weights or another chat template.
        CheckpointError: If it cannot be read.
    """
    abstention = load_abstention(folder, tokenizer)
    file = Path(folder) / ABSTENTION_NAME
    made: Any = read_json(file).get("calibration")
    try:
        figures = {
            name: Figure(float(value), float(low), float(high)) for name, (value, low, high) in made["figures"].items()
        }
        counts = {name: int(made[name]) for name in _COUNTS if name in made}
        found = {*figures, *counts} >= {"right_given", "right"}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        found = False
    if not found:
        raise CheckpointError(
            f"{file}: calibration does not hold the figures that `chatgpt-hf calibrate` writes: run it again."
        )
    return Calibration(abstention, counts, figures)


def judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, Any]]],
    tools: Sequence[list[dict[str, Any]] | None] | None = None,
    *,
    max_new_tokens: int = JUDGED_TOKENS,
    batch_size: int = 32,
    progress: bool = True,
    desc: str = "Answering",
) -> Judged:
    """Answers each conversation's last question greedily; see `Abstention.draft`, which gives one answer the same confidence.

    Args:
        conversations: They end with the assistant's answer.
        tools: The tools of each, as JSON schemas.

    Raises:
        DataError: If a question leaves no room for an answer.
    """
    prompts = last_questions(tokenizer, conversations, tools)
    limit = context_length(model)
    if long := [number for number, prompt in enumerate(prompts, start=1) if len(prompt) >= limit]:
        raise DataError(f"Question {long[0]} fills the model's context of {limit} tokens: leave it out.")
    completions = generate_completions(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        desc=desc,
        confidence=True,
        **PLAIN_GREEDY,
    )
    references = [messages[-1]["content"].strip() for messages in conversations]
    return Judged(
        np.array([completion.confidence for completion in completions], dtype=float),
        np.array([done.text.strip() == text for done, text in zip(completions, references, strict=True)], dtype=bool),
    )


def choose_threshold(
    known: Judged,
    unknown: Judged | None = None,
    *,
    keep: float = 0.95,
    text: str = DEFAULT_TEXT,
    max_new_tokens: int = JUDGED_TOKENS,
) -> Calibration:
    """Chooses the largest threshold that keeps a share of the right answers to known questions.

    Args:
        known, unknown: See `calibrate`.
        keep: Share of the right answers to keep.
        text, max_new_tokens: See `Abstention`.

    Raises:
        DataError: If fewer than `FEWEST` answers are right.
    """
    right = np.sort(known.confidence[known.right])
    if len(right) < FEWEST:
        raise DataError(
            f"Only {len(right)} of {len(known.right)} answers to --known are right, word for word, and a threshold needs at "
            f"least {FEWEST}: give more questions that the model answers exactly, or choose a threshold by hand (--abstain -0.5)."
        )
    dropped = int((1 - keep) * len(right) + 1e-9)
    # Between two answers; and below the one to keep by more than rounding, which differs from batch to batch: the one before it
    # may answer the same question.
    between = (right[dropped - 1] + right[dropped]) / 2 if dropped else right[dropped]
    abstention = Abstention(max(LEAST, float(min(between, right[dropped] - _ROUNDING))), text, max_new_tokens)
    counts = {"known_questions": len(known.right), "right": len(right)}
    wrong = known.confidence[~known.right]
    figures = {"right_given": _share_given(right, abstention), "wrong_given": _share_given(wrong, abstention)}
    if unknown is not None:
        wrong = unknown.confidence[~unknown.right]
        counts |= {"unknown_questions": len(unknown.right), "unknown_right": int(unknown.right.sum())}
        figures["invented_given"] = _share_given(wrong, abstention)
    figures["auroc"] = auroc(right, wrong) if len(wrong) else None
    return Calibration(abstention, counts, {name: figure for name, figure in figures.items() if figure is not None})


def _share_given(confidence: np.ndarray, abstention: Abstention) -> Figure | None:
    return share(confidence >= abstention.threshold) if len(confidence) else None


def share(true: np.ndarray) -> Figure:
    """The share of true values, (examples,), and its 95 % interval by the bootstrap."""
    return bootstrap(Measure("mean", np.stack([true, np.ones(len(true))], axis=1)))


def auroc(right: np.ndarray, wrong: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """How often a right answer is more confident than a wrong one, ties counting half: the area under the ROC curve.

    Args:
        right, wrong: Confidences, each (examples,) and not empty.

    Returns:
        The area and its 95 % interval by the bootstrap, which draws from both kinds separately.
    """
    generator = np.random.default_rng(seed)
    drawn = [_area(generator.choice(right, len(right)), generator.choice(wrong, len(wrong))) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(_area(right, wrong), float(low), float(high))


def _area(right: np.ndarray, wrong: np.ndarray) -> float:
    wrong = np.sort(wrong)
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.mean() / (2 * len(wrong)))


def _sampled(
    dataset: str | Sequence[str], option: str, part: str, limit: int, encoding: str | None, seed: int
) -> tuple[list[Any], list[Any]]:
    """Conversations of a source that end with an answer, at most `limit` of them, and their tools.

    Args:
        part: The split to take, where a source has it.
    """
    splits = read_conversations(parse_sources(dataset, encoding=encoding, field=option)).splits
    rows: Dataset = splits[part] if part in splits else splits["train"]
    found = [index for index, messages in enumerate(rows["messages"]) if ends_with_an_answer(messages)]
    if not found:
        raise DataError(f"--{option} has no conversation that ends with an answer.")
    if len(found) > limit:
        found = sorted(random.Random(seed).sample(found, limit))
    chosen = rows.select(found)
    return list(chosen["messages"]), list(chosen["tools"])
