"""Continues many prompts, in batches that do not change the results."""

import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, takewhile
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..checkpoints import context_length
from ..errors import DataError
from ..generation_settings import check_mode
from .mode import evaluating
from .padding import pad
from .sharing import share_of

logger = logging.getLogger(__name__)

# Settings for `generate` that always take the model's likeliest token: without a model's own sampling and penalties.
PLAIN_GREEDY: dict[str, Any] = {
    **{"do_sample": False, "num_beams": 1, "guidance_scale": 1.0},
    **{"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    # Takes precedence over `min_length`.
    "min_new_tokens": 0,
}


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt.

    Attributes:
        ids: The generated tokens up to the end mark, without it, or up to a stop string, including it.
        text: `ids` without special tokens, up to the first stop string.
        ended: True if an end mark or a stop string came before the room was used up.
        confidence: Mean log-probability of the greedy tokens with the end mark, if it was asked for; see
            `GreedyConfidence`.
    """

    ids: list[int]
    text: str
    ended: bool
    confidence: float | None = None


class GreedyConfidence(LogitsProcessor):
    """Changes nothing, but records how likely the likeliest token of each step is, which greedy search then takes.

    With `PLAIN_GREEDY`, these are the model's own probabilities.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Records a step; called by `generate` with the scores of the next token, (rows, vocab)."""
        self._steps.append(scores.float().log_softmax(-1).amax(-1))
        return scores

    def mean(self, row: int, length: int) -> float:
        """Mean log-probability, in nats, of the first `length` generated tokens of a row; length is at least 1."""
        return sum(step[row].item() for step in self._steps[:length]) / length


@torch.inference_mode()
def generate_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: bool,
    desc: str,
    noun: str = "prompts",
    stop: Sequence[str] = (),
    confidence: bool = False,
    **generation: Any,
) -> list[Completion]:
    """Continues each prompt as far as `max_new_tokens` and the model's context allow.

    The division into batches does not change the output of greedy search: prompts are padded on the left, and a batch has
    only prompts with the same room. A prompt that leaves no room gets an empty completion that did not end, and a warning
    gives their number.

    Args:
        prompts: Token ids, including special tokens.
        desc: Text of the progress bar.
        noun: The warning's word for the prompts.
        stop: Stop strings. The first one that appears ends the completion and is cut off; one that begins in the prompt
            does not count.
        confidence: Record how likely the answers are; for greedy search.
        **generation: Options of `model.generate`; without any, the model's generation config decides.

    Returns:
        Completions in the order of the prompts.

    Raises:
        DataError: If a prompt has no token.
        ConfigError: If the model's generation config asks for what cannot be done here; see `check_mode`.
    """
    own = model.generation_config
    check_mode(own)
    stop = [*stop, *([own.stop_strings] if isinstance(own.stop_strings, str) else own.stop_strings or [])]
    if empty := [index for index, prompt in enumerate(prompts) if not len(prompt)]:
        raise DataError(f"Prompt {empty[0]} has no token: begin it with the tokenizer's bos.")
    limit = context_length(model)
    if too_long := sum(len(prompt) >= limit for prompt in prompts):
        logger.warning("%d %s leave no room in the context of %d and count as unanswered.", too_long, noun, limit)
    eos = generation.get("eos_token_id", own.eos_token_id)
    ends = set(eos if isinstance(eos, list) else [eos])
    # What follows the end of a row is computed too. transformers takes the first end mark, which the model need not have.
    vocab_size = model.config.get_text_config().vocab_size
    fillers = (own.pad_token_id, tokenizer.pad_token_id, *ends)
    filler = next((token for token in fillers if token is not None and 0 <= token < vocab_size), 0)
    completions = [Completion([], "", False)] * len(prompts)
    batches = list(_batches([len(prompt) for prompt in prompts], limit, max_new_tokens, batch_size))
    # Other searches draw random numbers, one batch after the other.
    share = share_of(model) if generation.get("do_sample") is False else None
    if share is not None:
        batches = share.of(batches)
    # In tokens that may have to be written: a batch of long answers takes minutes.
    whole = sum(len(indices) * room for indices, room in batches)
    bar = tqdm(total=whole, desc=desc, unit="token", unit_scale=True, disable=not progress)
    with evaluating(model), bar:
        for indices, room in batches:
            inputs = pad([prompts[index] for index in indices], side="left", pad_token_id=tokenizer.pad_token_id)
            width = inputs["input_ids"].shape[1]
            done = bar.n + len(indices) * room
            criteria: list[StoppingCriteria] = [_Count(bar)]
            if stop:
                criteria.append(_Stop(tokenizer, width, stop))
            recorder = GreedyConfidence()
            output = model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                max_new_tokens=room,
                logits_processor=LogitsProcessorList([recorder] if confidence else []),
                stopping_criteria=StoppingCriteriaList(criteria),
                pad_token_id=filler,
                # `_Stop` does it; and guesses, which change no text, are made for single rows only.
                **dict.fromkeys(("stop_strings", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")),
                **generation,
            )
            for place, (index, row) in enumerate(zip(indices, output[:, width:].tolist(), strict=True)):
                done_row = _completion(tokenizer, row, ends, stop)
                if confidence:
                    # With the end mark, if that is what ended it.
                    length = len(done_row.ids)
                    length += length < len(row) and row[length] in ends
                    done_row = replace(done_row, confidence=recorder.mean(place, length))
                completions[index] = done_row
            # All may have ended early.
            bar.update(done - bar.n)
    if share is not None:
        computed = [index for indices, _ in batches for index in indices]
        for found in share.gather([[index, asdict(completions[index])] for index in computed]):
            for index, fields in found:
                completions[index] = Completion(**fields)
    return completions


def _batches(
    lengths: Sequence[int], limit: int, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Yields indices of prompts, short ones first, and the number of tokens that may follow each of them."""

    def room(index: int) -> int:
        return min(max_new_tokens, limit - lengths[index])

    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for left, group in groupby(order, key=room):
        indices = list(group)
        for begin in range(0, len(indices) if left > 0 else 0, batch_size):
            yield indices[begin : begin + batch_size], left


def _completion(
    tokenizer: PreTrainedTokenizerBase, row: list[int], ends: set[int | None], stop: Sequence[str]
) -> Completion:
    ids = list(takewhile(lambda token: token not in ends, row))
    ended = len(ids) < len(row)
    text = _decode(tokenizer, ids)
    if not (places := [place for place in map(text.find, stop) if place >= 0]):
        return Completion(ids, text, ended)
    # A row that stopped before the others of its batch continues with padding, or with more of the model's output.
    length = bisect_left(range(len(ids)), True, key=lambda n: _holds(_decode(tokenizer, ids[:n]), stop))
    return Completion(ids[:length], text[: min(places)], True)


def _holds(text: str, stop: Sequence[str]) -> bool:
    return any(string in text for string in stop)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Count(StoppingCriteria):
    """Ends nothing, but counts the tokens of a batch in a progress bar."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.bar.update(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


class _Stop(StoppingCriteria):
    """Ends rows with a stop string after the prompt; transformers' own `stop_strings` looks into the prompt too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int, stop: Sequence[str]) -> None:
        self.tokenizer, self.width, self.stop = tokenizer, width, stop
        # A token has at least one byte, and the last character may be unfinished.
        self.reach = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        recent = input_ids[:, max(self.width, input_ids.shape[1] - self.reach) :].tolist()
        found = [_holds(_decode(self.tokenizer, row), self.stop) for row in recent]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]
