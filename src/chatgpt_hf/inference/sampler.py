"""Samples several answers to each of many prompts, with the log-probabilities that a training computes for them."""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..checkpoints import context_length
from ..errors import CheckpointError, ConfigError, DataError
from ..evaluation.mode import evaluating
from ..evaluation.padding import pad
from ..model.modeling_chatgpt import CACHE_NAME
from .cache import GrowingCache, keeps_keys_and_values
from .parameters import generation_config_with, sampling

# Rows that have ended are computed until at most this share of the batch is left: to take rows out, the whole cache is copied.
_LEFT = 0.75


@dataclass(frozen=True)
class Reply:
    """What somebody else says within a sample, such as the result of a tool.

    Attributes:
        ids: Tokens that the model reads before it continues. If there are none, the sample is cut before its end mark.
        messages: The turn of the model's and the reply to it, as messages.
        begin: Index of the first of these tokens in the sample.
    """

    ids: list[int]
    messages: list[dict[str, Any]]
    begin: int = 0


# Takes the ids of a turn, with its end mark, and the number of replies before; None if the answer has ended.
Replying = Callable[[list[int], int], Reply | None]


@dataclass(frozen=True)
class Sample:
    """One sampled answer.

    Attributes:
        ids: The generated tokens, with the end mark, and those of replies.
        log_probs: The natural logarithm of the probability of each, after the division by the temperature and before
            `top_k`, `top_p` and `min_p`: what a training computes from the same tokens. With temperature 0 that of temperature 1.
            0 for the tokens of replies.
        ended: True if the last token is an end mark; False if the room was used up.
        replies: What was put in between the model's turns.
    """

    ids: list[int]
    log_probs: list[float]
    ended: bool
    replies: list[Reply] = field(default_factory=list)

    @property
    def tool_mask(self) -> list[int]:
        """0 for the tokens of replies, 1 for those of the model; (seq,)."""
        mask = [1] * len(self.ids)
        for reply in self.replies:
            mask[reply.begin : reply.begin + len(reply.ids)] = [0] * len(reply.ids)
        return mask


def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new_tokens: int,
    end_ids: Collection[int],
    generator: torch.Generator | Sequence[torch.Generator],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    batch_size: int = 256,
    replying: Replying | None = None,
) -> list[list[Sample]]:
    """Samples answers to each prompt, as far as `max_new_tokens` and the model's context allow.

    A prompt is computed once for all its samples, and rows that have ended leave the batch. Nothing is taken from the model's
    generation config: no penalty, no filter, no end mark. All random numbers are drawn at the beginning, so the division
    into batches does not change the samples, except where two sums of the same numbers in another order decide.

    To generate from a model in training on a CPU, pass its `packed_copy`: it takes less than half of the time.

    Args:
        model: A causal language model with keys and values. It computes in evaluation mode, and keeps its mode.
        prompts: Token ids, including special tokens. Equal prompts are computed once for each.
        samples: Answers to each prompt.
        max_new_tokens: Most tokens of an answer, with those of replies.
        end_ids: Tokens that end an answer; may be empty.
        generator: On the CPU; the only source of randomness. Or one for each prompt: then a prompt's samples do not depend
            on the other prompts.
        temperature: Divides the logits. 0 takes the most likely token.
        top_k: Sample only from the k most likely tokens; 0 for all.
        top_p: Sample only from the most likely tokens with this total probability.
        min_p: Sample only from tokens whose probability is at least this share of the most likely token's.
        batch_size: Rows that are computed at once.
        replying: Called when a row ends, such as `Tools`. If there is a reply, the row reads it and goes on. A reply that leaves no
            room for another token is none: the row is cut before its end mark.

    Returns:
        For each prompt, its samples.

    Raises:
        ConfigError: If a parameter is out of range, or the model keeps another state than keys and values.
        DataError: If a prompt is empty or leaves no room in the context.
        CheckpointError: If the model's logits are not numbers.
    """
    found: list[list[Sample]] = [[] for _ in prompts]
    settings = _Settings(temperature, top_k, top_p, min_p)
    model = _language_model(model)
    if samples < 1 or max_new_tokens < 1 or batch_size < 1:
        raise ConfigError("samples, max_new_tokens and batch_size must be at least 1.")
    context = context_length(model)
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise DataError(f"Prompt {index} has {len(prompt)} tokens: 1 to {context - 1} are possible.")
    # The answer to a prompt of any length.
    room = min(max_new_tokens, context - 1)
    generators = [generator] * len(prompts) if isinstance(generator, torch.Generator) else generator
    draws = [torch.rand(samples, room, generator=own, dtype=torch.float64) for own in generators]
    for indices, begin, end in _batches([len(prompt) for prompt in prompts], samples, batch_size):
        rows = _sample_batch(
            model,
            [prompts[index] for index in indices],
            torch.cat([draws[index][begin:end] for index in indices]),
            [min(room, context - len(prompts[index])) for index in indices for _ in range(begin, end)],
            settings,
            torch.tensor(sorted(end_ids), dtype=torch.long, device=model.device),
            replying,
        )
        for index in indices:
            found[index] += [next(rows) for _ in range(begin, end)]
    return found


class _Settings:
    """Checked sampling parameters."""

    def __init__(self, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
        neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        given = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        # transformers warns of any filter without sampling, even of one that keeps all tokens.
        filters = {name: value for name, value in given.items() if value != neutral[name]}
        config = generation_config_with(GenerationConfig(), **sampling(temperature), **filters)
        self.greedy = not config.do_sample
        self.temperature = 1.0 if self.greedy else temperature
        self.filters = LogitsProcessorList()
        if not self.greedy and top_k:
            self.filters.append(TopKLogitsWarper(top_k))
        if not self.greedy and top_p < 1:
            self.filters.append(TopPLogitsWarper(top_p))
        if not self.greedy and min_p:
            self.filters.append(MinPLogitsWarper(min_p))


def _language_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model below PEFT's wrapper, whose layers include the adapters.

    Raises:
        ConfigError: If its cache cannot be divided into rows.
    """
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None:
        if adapter.is_prompt_learning:
            raise ConfigError(f"The sampler cannot generate with {adapter.peft_type.value}: use LoRA.")
        model = model.get_base_model()
    if model.config.is_encoder_decoder or not keeps_keys_and_values(model):
        raise ConfigError(
            f"The sampler needs a decoder that caches keys and values, and {type(model).__name__} does not: choose a model of "
            "another family."
        )
    return model


def _batches(lengths: Sequence[int], samples: int, batch_size: int) -> Iterator[tuple[list[int], int, int]]:
    """Yields indices of prompts of similar length, and which of their samples to compute together."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    together = max(1, batch_size // samples)
    for first in range(0, len(order), together):
        for begin in range(0, samples, batch_size):
            yield order[first : first + together], begin, min(begin + batch_size, samples)


# Not in inference mode: what a model computes once and keeps, such as rotary frequencies, could then not be trained with.
@torch.no_grad()
def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draws: torch.Tensor,
    rooms: Sequence[int],
    settings: _Settings,
    ends: torch.Tensor,
    replying: Replying | None,
) -> Iterator[Sample]:
    """Computes one batch, and yields its rows.

    Args:
        draws: Numbers from 0 to 1, (rows, tokens); the rows of a prompt follow each other.
        rooms: The most tokens of each row.
        ends: (end marks,).
    """
    count, device = len(draws), model.device
    draws, room = draws.to(device), torch.tensor(rooms, device=device)
    tokens = torch.zeros(count, max(rooms), dtype=torch.long, device=device)
    log_probs = torch.zeros(count, max(rooms), device=device)
    lengths = torch.zeros_like(room)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    replies = None if replying is None else _Replies(replying, tokens)
    with evaluating(model):
        decoder = _Decoder(model, prompts)
        logits = decoder.begin()
        # Which row of the result is in each row of the batch, and which of these go on.
        rows = torch.arange(count, device=device)
        decoder.select(rows // (count // len(prompts)))
        logits = logits.repeat_interleave(count // len(prompts), 0)
        going = torch.ones_like(ended)
        for step in range(max(rooms)):
            chosen, chosen_log_probs = _choose(logits, draws[rows, step], settings)
            at_end = torch.isin(chosen, ends)
            if replies is not None:
                is_given, given = replies.tokens(rows, step)
                chosen = torch.where(is_given, given, chosen)
                chosen_log_probs = chosen_log_probs.masked_fill(is_given, 0.0)
                at_end &= ~is_given
            here = rows[going]
            tokens[here, step], log_probs[here, step] = chosen[going], chosen_log_probs[going]
            lengths[here] = step + 1
            ended[here] = at_end[going]
            if replies is not None:
                for row in here[at_end[going]].tolist():
                    if (length := replies.ask(row, step + 1, int(room[row]))) is not None:
                        ended[row] = False
                        if length <= step:
                            lengths[row], room[row] = length, 0
            going = going & ~ended[rows] & (room[rows] > step + 1)
            left = int(going.sum())
            if not left:
                break
            if left <= _LEFT * len(rows):
                kept = going.nonzero()[:, 0]
                decoder.select(kept)
                rows, chosen, going = rows[kept], chosen[kept], going[kept]
            logits = decoder.step(chosen)
    return (
        Sample(
            tokens[row, :length].tolist(),
            log_probs[row, :length].tolist(),
            end,
            [] if replies is None else replies.given[row],
        )
        for row, (length, end) in enumerate(zip(lengths.tolist(), ended.tolist(), strict=True))
    )


class _Replies:
    """The replies to the rows of a batch, and how far each row has read them.

    Args:
        tokens: What the rows have written and read so far, (rows, tokens).
    """

    def __init__(self, replying: Replying, tokens: torch.Tensor) -> None:
        self._replying = replying
        self._tokens = tokens
        # -1 where the model chooses.
        self._given = torch.full_like(tokens, -1)
        self.given: list[list[Reply]] = [[] for _ in tokens]

    def tokens(self, rows: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows read a reply at this step, and its tokens, both (rows,)."""
        given = self._given[rows, step]
        return given >= 0, given

    def ask(self, row: int, length: int, room: int) -> int | None:
        """Asks for a reply to a row that has so many tokens, the last of which is an end mark.

        Returns:
            How many tokens the row keeps: all, or those before the end mark if there is a reply that it cannot read. None if there
            is no reply.
        """
        before = self.given[row]
        begin = before[-1].begin + len(before[-1].ids) if before else 0
        reply = self._replying(self._tokens[row, begin:length].tolist(), len(before))
        if reply is None:
            return None
        end = length + len(reply.ids)
        if not reply.ids or end >= room:
            return length - 1
        self._given[row, length:end] = torch.tensor(reply.ids, device=self._given.device)
        before.append(replace(reply, begin=length))
        return length


def _choose(logits: torch.Tensor, draws: torch.Tensor, settings: _Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a token for each row and its log-probability, both (rows,).

    Args:
        logits: (rows, vocabulary).
        draws: (rows,): the token is the one at this point of the sum of all probabilities, in the order of the ids.
    """
    scores = logits.float() / settings.temperature
    log_probs = scores.log_softmax(-1)
    if settings.greedy:
        chosen = scores.argmax(-1, keepdim=True)
    else:
        kept = settings.filters(None, scores).softmax(-1) if settings.filters else log_probs.exp()
        sums = kept.cumsum(-1, dtype=torch.float64)
        total = sums[:, -1:]
        # Below the total, so that a token of probability 0 at the end is never reached.
        point = torch.minimum(draws[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        chosen = torch.searchsorted(sums, point, right=True).clamp_max_(scores.shape[-1] - 1)
    found = log_probs.gather(-1, chosen)[:, 0]
    if not torch.isfinite(found).all():
        raise CheckpointError(
            "The model's logits are not finite numbers, so nothing can be sampled: its weights are broken, or its training diverged."
        )
    return chosen[:, 0], found


class _Decoder:
    """A batch of rows with the cache of a model, from which rows can be repeated and taken out."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        inputs = pad(prompts, side="left", pad_token_id=None)
        self._ids = inputs["input_ids"].to(model.device)
        # Without padding, attention without a mask is faster.
        padded = not bool(inputs["attention_mask"].all())
        self._mask = inputs["attention_mask"].to(model.device) if padded else None
        self._model, self._cache = model, GrowingCache(model.config)
        # Not of the instance: trainers wrap it there, and the wrapper names no parameters.
        parameters = inspect.signature(type(model).forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._takes_positions = "position_ids" in parameters

    def begin(self) -> torch.Tensor:
        """Computes the prompts; returns the logits of the first tokens, (prompts, vocabulary)."""
        return self._forward(self._ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Appends a token to each row, (rows,); returns the logits of the next, (rows, vocabulary)."""
        if self._mask is not None:
            self._mask = torch.cat((self._mask, self._mask.new_ones(len(ids), 1)), 1)
        return self._forward(ids[:, None])

    def select(self, rows: torch.Tensor) -> None:
        """Makes the batch from these of its rows, (rows,); a row may be named several times."""
        # Not `batch_repeat_interleave` and `batch_select_indices`: they leave the states of convolutions as they are.
        self._cache.reorder_cache(rows)
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = dict(self._options)
        if self._mask is not None:
            options["attention_mask"] = self._mask
            if self._takes_positions:
                # As `generate` counts them: padding takes no position.
                options["position_ids"] = (self._mask.cumsum(-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        output = self._model(input_ids=ids, use_cache=True, **{CACHE_NAME: self._cache}, **options)
        return output.logits[:, -1]
