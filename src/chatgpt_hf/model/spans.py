"""Answers that are spans of a text: windows of tokens over long contexts, and the way back from logits to text.

This file travels with a saved model, beside `pipelines.py`: it imports numpy, transformers and its neighbour alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase


class SpanError(ValueError):
    """Questions, contexts, logits or a tokenizer from which no answers can be read."""


class Window(NamedTuple):
    """A question with as much of its context as fits.

    Attributes:
        input_ids: The bos token, the question, a line feed, tokens of the context.
        offsets: For each token its first character in the context and the one after its last; None if it is not of the
            context. Tokens that are parts of a character have the offsets of all of it.
    """

    input_ids: list[int]
    offsets: list[tuple[int, int] | None]


def context_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 384,
    stride: int = 128,
) -> list[list[Window]]:
    """Questions in front of their contexts; a context that does not fit is cut into windows that overlap.

    Args:
        tokenizer: A fast one, with a bos or cls token, which is put first: "no answer" is answered there.
        max_length: Tokens in a window.
        stride: Tokens of the context that a window has in common with the one before.

    Returns:
        The windows of each question.

    Raises:
        SpanError: If the tokenizer gives no offsets or has no such token, or a question leaves no room for a context.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    if not tokenizer.is_fast or first is None:
        raise SpanError("Question answering needs a fast tokenizer with a bos token: use one with a tokenizer.json.")
    options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    # SQuAD asks several questions about each context.
    distinct = list(dict.fromkeys(contexts))
    encoded = tokenizer(distinct, return_offsets_mapping=True, **options) if distinct else {}
    by_context = {
        text: (ids, offsets)
        for text, ids, offsets in zip(
            distinct, encoded.get("input_ids", []), encoded.get("offset_mapping", []), strict=True
        )
    }
    prefixes = (
        tokenizer([f"{question.strip()}\n" for question in questions], **options)["input_ids"] if distinct else []
    )
    found = []
    for question, context, prefix in zip(questions, contexts, prefixes, strict=True):
        ids, offsets = by_context[context]
        room = max_length - 1 - len(prefix)
        if room < 1 or (room <= stride and len(ids) > room):
            raise SpanError(
                f"The question {question!r:.80} has {len(prefix)} tokens, which of max_length {max_length} leaves no room for a "
                f"context cut at a stride of {stride}: raise max_length or shorten it."
            )
        starts = range(0, max(1, len(ids) - stride), room - stride) if len(ids) > room else (0,)
        found.append(
            [
                Window(
                    [first, *prefix, *ids[start : start + room]],
                    [*[None] * (1 + len(prefix)), *map(tuple, offsets[start : start + room])],
                )
                for start in starts
            ]
        )
    return found


def answer_positions(window: Window, start: int, end: int) -> tuple[int, int]:
    """The first and the last token of the characters `start` to `end` of a context; 0 and 0 if a window lacks any of them."""
    inside = [(index, offset) for index, offset in enumerate(window.offsets) if offset is not None]
    if not inside or inside[0][1][0] > start or inside[-1][1][1] < end:
        return 0, 0
    first = next(index for index, offset in inside if offset[1] > start)
    last = next(index for index, offset in reversed(inside) if offset[0] < end)
    return first, last


class Answer(NamedTuple):
    """A span of a context.

    Attributes:
        text: What it says; empty if the answer is that there is none.
        score: Its share of the probability of the `n_best` best, between 0 and 1.
        start: Its first character in the context; 0 if there is none.
        end: The character after its last.
    """

    text: str
    score: float
    start: int
    end: int


def best_answers(
    features: Sequence[Mapping[str, Any]],
    start_logits: Sequence[npt.ArrayLike],
    end_logits: Sequence[npt.ArrayLike],
    contexts: Mapping[str, str],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    allow_no_answer: bool = False,
) -> dict[str, list[Answer]]:
    """The spans that logits say are the answers, best first.

    Devlin et al. 2019, section 4.2 and 4.3: the sum of the logits of first and last token, over all windows; no answer has the
    sum at token 0, in the window where it is least.

    Args:
        features: Windows, each with `example_id` and its offsets as `offset_mapping`.
        start_logits: One array for each feature, of at least its length; what is beyond it is padding on the right.
        end_logits: Likewise.
        contexts: By the id of the question.
        n_best: How many spans to give for each question, and how many first and last tokens of each window to combine.
        max_answer_length: Tokens that a span may have.
        allow_no_answer: Whether a text that does not say is an answer, as in SQuAD's version 2.

    Returns:
        For each question in `contexts` at least one answer, an empty one if no span is possible.

    Raises:
        SpanError: If there are not as many logits as features.
    """
    if not len(features) == len(start_logits) == len(end_logits):
        raise SpanError(
            f"There are {len(features)} features, {len(start_logits)} start logits and {len(end_logits)} end logits."
        )
    spans: dict[str, dict[tuple[int, int], float]] = {identity: {} for identity in contexts}
    none: dict[str, float] = {}
    for feature, starts, ends in zip(features, start_logits, end_logits, strict=True):
        identity, offsets = feature["example_id"], feature["offset_mapping"]
        start_scores, end_scores = (np.asarray(logits, float)[: len(offsets)] for logits in (starts, ends))
        none[identity] = min(none.get(identity, np.inf), float(start_scores[0] + end_scores[0]))
        inside = np.array([index for index, offset in enumerate(offsets) if offset is not None], int)
        best_starts, best_ends = (inside[np.argsort(-x[inside])[:n_best]] for x in (start_scores, end_scores))
        for first in best_starts:
            for last in best_ends:
                if first <= last < first + max_answer_length:
                    span = (offsets[first][0], offsets[last][1])
                    score = float(start_scores[first] + end_scores[last])
                    spans[identity][span] = max(score, spans[identity].get(span, -np.inf))
    return {
        identity: _ranked(found, contexts[identity], none.get(identity) if allow_no_answer else None, n_best)
        for identity, found in spans.items()
    }


def _ranked(spans: Mapping[tuple[int, int], float], context: str, none: float | None, n_best: int) -> list[Answer]:
    candidates = [(score, start, end) for (start, end), score in spans.items() if context[start:end].strip()]
    if none is not None or not candidates:
        candidates.append((none or 0.0, 0, 0))
    candidates = sorted(candidates, reverse=True)[:n_best]
    weights = np.exp(np.array([score for score, _, _ in candidates]) - candidates[0][0])
    answers: dict[str, Answer] = {}
    for (_, start, end), weight in zip(candidates, weights / weights.sum(), strict=True):
        text = context[start:end].strip()
        # Spans that differ in white space alone are one answer.
        start += context[start:end].find(text)
        before = answers.get(f"{start}:{text}")
        score = float(weight) + (before.score if before else 0.0)
        answers[f"{start}:{text}"] = Answer(text, score, start, start + len(text))
    return sorted(answers.values(), key=lambda answer: -answer.score)
