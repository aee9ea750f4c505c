"""What a model writes after many prompts, in batches that change nothing about it."""

import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ..checkpoints import context_length
from ..errors import DataError
from .mode import evaluating
from .padding import pad

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completion:
    """What came after one prompt.

    Attributes:
        ids: All that was generated before an end mark or, where a stop string ended it, with that string.
        text: `ids` without special tokens, up to the first stop string.
        ended: Whether an end mark or a stop string came before there was no more room.
    """

    ids: list[int]
    text: str
    ended: bool


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
    **generation: Any,
) -> list[Completion]:
    """Continues each prompt as far as `max_new_tokens` and the model's context allow.

    How prompts fall into batches does not change what greedy search writes: they are padded on the left, and only those with
    as much room share a batch. A prompt that leaves no room gets an empty completion that did not end, and a
    warning says how many.

    Args:
        prompts: Token ids, special tokens and all.
        desc: Of the progress bar.
        noun: What the warning calls the prompts.
        stop: Texts of which the first to be written ends the completion and is cut off; one that spans prompt and
            completion does not count.
        **generation: For `model.generate`; without any, the model's generation config decides.

    Returns:
        Completions in the order of the prompts.

    Raises:
        DataError: When a prompt has no token.
    """
    if empty := [index for index, prompt in enumerate(prompts) if not len(prompt)]:
        raise DataError(f"Prompt {empty[0]} has no token: begin it with the tokenizer's bos.")
    limit = context_length(model)
    if too_long := sum(len(prompt) >= limit for prompt in prompts):
        logger.warning("%d %s leave no room in the context of %d and count as unanswered.", too_long, noun, limit)
    eos = generation.get("eos_token_id", model.generation_config.eos_token_id)
    ends = set(eos if isinstance(eos, list) else [eos])
    completions = [Completion([], "", False)] * len(prompts)
    with evaluating(model), tqdm(total=len(prompts) - too_long, desc=desc, disable=not progress) as bar:
        for indices, room in _batches([len(prompt) for prompt in prompts], limit, max_new_tokens, batch_size):
            inputs = pad([prompts[index] for index in indices], side="left", pad_token_id=tokenizer.pad_token_id)
            width = inputs["input_ids"].shape[1]
            if stop:
                generation["stopping_criteria"] = StoppingCriteriaList([_Stop(tokenizer, width, stop)])
            output = model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                max_new_tokens=room,
                **generation,
            )
            for index, row in zip(indices, output[:, width:].tolist(), strict=True):
                completions[index] = _completion(tokenizer, row, ends, stop)
            bar.update(len(indices))
    return completions


def _batches(
    lengths: Sequence[int], limit: int, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Indices of prompts, short ones first, and how many tokens may follow each of them."""

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
    # A row that stopped before the others of its batch goes on with padding, or whatever the model said.
    length = bisect_left(range(len(ids)), True, key=lambda n: _holds(_decode(tokenizer, ids[:n]), stop))
    return Completion(ids[:length], text[: min(places)], True)


def _holds(text: str, stop: Sequence[str]) -> bool:
    return any(string in text for string in stop)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Stop(StoppingCriteria):
    """Ends rows that hold a stop string after the prompt; transformers' own `stop_strings` looks into the prompt too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int, stop: Sequence[str]) -> None:
        self.tokenizer, self.width, self.stop = tokenizer, width, stop
        # A token is at least a byte, and one more character may be unfinished.
        self.reach = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        recent = input_ids[:, max(self.width, input_ids.shape[1] - self.reach) :].tolist()
        found = [_holds(_decode(self.tokenizer, row), self.stop) for row in recent]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]
