"""A conversation with a model: history, streaming, and room made by forgetting the oldest turns."""

import copy
import json
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from ..checkpoints import check_tokenizer_fits, load_model, write_atomically
from ..data.shapes import check_conversation
from ..errors import ConfigError, DataError, TokenizerError
from ..tokenization_chatgpt import encode_conversation, load_tokenizer


class _Cancelled(StoppingCriteria):
    """Stops `generate` within one token once nobody reads the stream any more."""

    def __init__(self) -> None:
        self.flag = False

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids.new_full((input_ids.shape[0],), self.flag, dtype=torch.bool)


class ChatSession:
    """One conversation. Sampling parameters come from the model's generation_config.json unless given.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer, with a chat template.
        system_prompt: Opens the conversation and is never forgotten.
        **generation: Fields of `GenerationConfig`, such as `temperature` or `max_new_tokens`.

    Raises:
        TokenizerError: When the tokenizer has no chat template or does not fit the model.
        ConfigError: When `generation` names no field of `GenerationConfig`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None = None,
        **generation: Any,
    ) -> None:
        if tokenizer.chat_template is None:
            raise TokenizerError(
                "The tokenizer has no chat template: this is a base model. Fine-tune it first (`chatgpt-hf sft`), or "
                "continue text with it (`chatgpt-hf generate`)."
            )
        check_tokenizer_fits(model, tokenizer)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.generation_config = generation_config_with(model.generation_config, **generation)
        self.messages: list[dict[str, Any]] = []
        self._prefix = PrefixCache(model)
        self.reset()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "ChatSession":
        """A session with the model and tokenizer of a folder or Hub id."""
        return cls(load_model(name_or_path), load_tokenizer(str(name_or_path)), **kwargs)

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []

    def set(self, **generation: Any) -> None:
        """Changes fields of the generation config from the next answer on.

        Raises:
            ConfigError: When a name is no field of `GenerationConfig` or a value is refused; nothing is changed then.
        """
        self.generation_config = generation_config_with(self.generation_config, **generation)

    @property
    def processed_tokens(self) -> int:
        """Tokens that the model computed so far: what earlier turns have in common with a prompt is not computed again."""
        return self._prefix.processed_tokens

    def regenerate(self) -> Iterator[str]:
        """Takes the last answer back and yields another, as `stream` does.

        Raises:
            ConfigError: When nothing was asked yet.
        """
        question = next((i for i, m in reversed(list(enumerate(self.messages))) if m["role"] == "user"), None)
        if question is None:
            raise ConfigError("Nothing was asked yet, so there is no answer to take back.")
        text = self.messages[question]["content"]
        before, self.messages = self.messages, self.messages[:question]
        try:
            yield from self.stream(text)
        finally:
            # Stopped before the first word: the old answer stands.
            if len(self.messages) == question:
                self.messages = before

    def stream(self, text: str) -> Iterator[str]:
        """Sends a message and yields the answer as it is made, in pieces of valid UTF-8.

        Leaving the iterator early stops the model within one token and keeps what was said so far.

        Raises:
            ConfigError: When the message alone does not fit into the context.
        """
        messages = self._forget_to_fit([*self.messages, {"role": "user", "content": text}])
        answer, whole = "", False
        try:
            prompt = self._prompt(messages)
            for piece in stream_tokens(
                self.model, self.tokenizer, prompt, self._config_within(len(prompt)), self._prefix
            ):
                answer += piece
                yield piece
            whole = True
        finally:
            # A model may have nothing to say, and then that was its answer.
            if answer or whole:
                self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]

    def reply(self, text: str) -> str:
        """Sends a message and returns the whole answer."""
        return "".join(self.stream(text)).strip()

    def save(self, file: str | Path) -> Path:
        """Writes the conversation as JSON, `{"messages": [...]}`: a row that `chatgpt-hf sft` can learn from."""
        path = Path(file)
        content = json.dumps({"messages": self.messages}, ensure_ascii=False)
        write_atomically(path, lambda temporary: temporary.write_text(content + "\n", encoding="utf-8"))
        return path

    def load(self, file: str | Path) -> None:
        """Goes on with a conversation that `save` wrote, its system prompt included.

        Raises:
            DataError: When the file cannot be read, or holds no conversation.
        """
        try:
            messages = json.loads(Path(file).read_text(encoding="utf-8"))["messages"]
            check_conversation(messages, allow_empty=True)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            raise DataError(f"{file} holds no conversation as /save writes it: {error}") from error
        self.messages = list(messages)
        first = messages[0] if messages else {}
        self.system_prompt = first["content"] if first.get("role") == "system" else None

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return encode_conversation(self.tokenizer, messages, add_generation_prompt=True)["input_ids"]

    def _config_within(self, length: int) -> GenerationConfig:
        """The generation config, with no more new tokens than the context has room for after `length`."""
        config = copy.deepcopy(self.generation_config)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and config.max_new_tokens is not None:
            config.max_new_tokens = min(config.max_new_tokens, limit - length)
        return config

    def _forget_to_fit(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Drops the oldest turns, whole and never the system prompt, until prompt and answer fit the context."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None:
            return messages
        head = messages[:1] if messages[0]["role"] == "system" else []
        turns = messages[len(head) :]
        room = limit - min(self.generation_config.max_new_tokens or 0, limit // 2)
        while (length := len(self._prompt(head + turns))) > room:
            later_question = next((i for i, turn in enumerate(turns) if i and turn["role"] == "user"), None)
            if later_question is None:
                raise ConfigError(
                    f"The message takes {length} tokens with its prompt, and {room} of the model's {limit} positions "
                    "are left beside the answer: shorten the message, or lower max_new_tokens."
                )
            turns = turns[later_question:]
        return head + turns


class PrefixCache:
    """Keys and values of what a conversation's model has seen, so that a turn computes only what is new in it.

    Attributes:
        processed_tokens: That the model computed, in all turns.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.processed_tokens = 0
        self._model = model
        self._cache: DynamicCache | None = None
        self._ids: list[int] = []

    def take(self, prompt: list[int]) -> DynamicCache:
        """A cache of as much of the prompt as is known, all but its last token at most."""
        cache, ids, self._cache = self._cache, self._ids, None
        # The last token has to be computed again: its logits are not kept.
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt[:-1], strict=False)))
        if cache is not None and common:
            try:
                cache.crop(common - len(ids))
            except RuntimeError:
                # What a sliding window let go does not come back.
                common = 0
        if cache is None or not common:
            cache, common = DynamicCache(config=self._model.config), 0
            cache.activate_past_recording()
        self.processed_tokens -= common
        return cache

    def keep(self, cache: DynamicCache, ids: list[int]) -> None:
        """Takes a cache back after it has seen the first of the ids, as many as it is long."""
        self._cache, self._ids = cache, ids[: cache.get_seq_length()]
        self.processed_tokens += len(self._ids)


def generation_config_with(config: GenerationConfig, **generation: Any) -> GenerationConfig:
    """A generation config with changes.

    Raises:
        ConfigError: When a name is no field of `GenerationConfig` or a value is refused.
    """
    config = GenerationConfig.from_dict(config.to_dict())
    unknown = [name for name in generation if not hasattr(config, name)]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no generation parameter; GenerationConfig has no such field.")
    try:
        config.update(**{name: value for name, value in generation.items() if value is not None})
        if config.max_new_tokens is None and "max_length" not in generation:
            config.max_new_tokens = 256
        config.validate()
    except ValueError as error:
        raise ConfigError(f"The generation parameters cannot be used: {error}") from error
    for name, (allowed, text) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not allowed(value):
            raise ConfigError(f"The generation parameter {name} is {value}; it must be {text}.")
    if config.temperature is not None:
        config.temperature = float(config.temperature)  # transformers refuses a whole number
    return config


# transformers looks at these only while it generates, in the background, and some (top_p) not even then.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: value > 0, "above 0; for the likeliest token each time set do_sample to False"),
    "top_k": (lambda value: value >= 0 and int(value) == value, "a whole number, 0 for no limit"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "repetition_penalty": (lambda value: value > 0, "above 0"),
    "num_beams": (lambda value: value == 1, "1: beam search cannot be streamed"),
}


def sampling(temperature: float | None) -> dict[str, Any]:
    """A temperature as generation parameters: None leaves the model's own, 0 means greedy."""
    if temperature is None:
        return {}
    return {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}


def stream_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    config: GenerationConfig,
    prefix: PrefixCache | None = None,
) -> Iterator[str]:
    """`model.generate` in the background; yields its text as it is made, in pieces of valid UTF-8.

    Leaving the iterator early stops the model within one token.

    Args:
        prompt: Token ids, which are not repeated.
        prefix: What is known of the prompt already; it learns the rest.
    """
    ids = torch.tensor([prompt], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    cancelled = _Cancelled()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            cache = prefix.take(prompt) if prefix is not None else None
            sequences = model.generate(
                **inputs,
                past_key_values=cache,
                generation_config=config,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([cancelled]),
            )
            if prefix is not None and cache is not None:
                prefix.keep(cache, sequences[0].tolist())
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        for piece in streamer:
            if piece:
                yield piece
    finally:
        cancelled.flag = True
        thread.join()
    if failures:
        raise failures[0]
