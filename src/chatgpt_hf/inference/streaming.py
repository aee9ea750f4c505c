"""Streams an answer from transformers' own `generate`."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from .cache import PrefixCache, growing_cache
from .filters import FilterChain, StopStrings, TextFilter


class Cancelled(StoppingCriteria):
    """Stops `generate` within one token once the flag is set."""

    def __init__(self, flag: Event) -> None:
        self.flag = flag

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids.new_full((input_ids.shape[0],), self.flag.is_set(), dtype=torch.bool)


@dataclass
class Ending:
    """How an answer ended; filled in during generation.

    Attributes:
        finish_reason: In OpenAI's terms: `stop`, `length` (max_new_tokens are used up) or `content_filter`; None while
            the answer continues, and if it was stopped or nobody read it to its end.
        prompt_ids, answer_ids: The model's input and output, including special tokens; no output if it abstained.
        confidence: How sure the model was of its greedy answer, if it was asked to abstain; see `Abstention`.
        abstained: True if the answer is the text of the abstention.
    """

    finish_reason: str | None = None
    prompt_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    confidence: float | None = None
    abstained: bool = False


def stream_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    config: GenerationConfig,
    prefix: PrefixCache | None = None,
    filters: Sequence[TextFilter] = (),
    ending: Ending | None = None,
    cancelled: Event | None = None,
    assistant_model: PreTrainedModel | None = None,
) -> Iterator[str]:
    """Runs `model.generate` in the background and yields its text as it arrives, in pieces of valid UTF-8.

    Leaving the iterator early stops the model within one token. The text ends before any of the config's
    `stop_strings`.

    Args:
        prompt: Token ids; the output does not repeat them.
        prefix: A cache that may know the beginning of the prompt; it keeps the rest.
        filters: Filters that the text passes through.
        ending: Filled in with how the text ended.
        cancelled: If another thread sets it, the text ends within one token, as if the model had ended it.
        assistant_model: A smaller model that guesses, passed to `generate`.
    """
    ending = ending or Ending()
    ending.prompt_ids = prompt
    config = copy.deepcopy(config)
    stop, config.stop_strings = config.stop_strings, None
    stops = [StopStrings([stop] if isinstance(stop, str) else stop)] if stop else []
    chain = FilterChain([*stops, *filters])
    ids = torch.tensor([prompt], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    cancelled = cancelled or Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            options = {
                "generation_config": config,
                "streamer": streamer,
                "assistant_model": assistant_model,
                "stopping_criteria": StoppingCriteriaList([Cancelled(cancelled)]),
            }
            if getattr(model.generation_config, "stop_strings", None):
                # `generate` takes the model's own where the config has none, and needs the tokenizer for them.
                options["tokenizer"] = tokenizer
            if prefix is not None:
                sequence = prefix.generate(**inputs, **options)
            else:
                sequence = model.generate(**inputs, **options, **growing_cache(model))
            ending.answer_ids = sequence[0, len(prompt) :].tolist()
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    stopped = False
    try:
        for piece in streamer:
            if shown := chain.feed(piece):
                yield shown
            if chain.finish_reason is not None:
                break
        else:
            thread.join()
            if failures:
                raise failures[0]
            stopped = cancelled.is_set()
            if shown := chain.finish():
                yield shown
    finally:
        cancelled.set()
        thread.join()
    used_up = config.max_new_tokens is not None and len(ending.answer_ids) >= config.max_new_tokens
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    by_itself = not used_up or ending.answer_ids[-1] in ends
    if chain.finish_reason is None and stopped:
        return
    ending.finish_reason = chain.finish_reason or ("stop" if by_itself else "length")
