"""A conversation with a model: history, streaming, and room made by forgetting the oldest turns."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import check_tokenizer_fits, context_length
from ..data.shapes import check_conversation
from ..errors import ConfigError, DataError, TokenizerError
from ..files import write_atomically
from ..tokenization_chatgpt import check_text, encode_conversation, load_tokenizer
from .cache import PrefixCache
from .filters import TextFilter
from .loading import load_for_generation
from .parameters import generation_config_with
from .streaming import Ending, stream_tokens

if TYPE_CHECKING:
    from ..moderation import Moderator


class ChatSession:
    """One conversation. Sampling parameters come from the model's generation_config.json unless given.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer, with a chat template.
        system_prompt: Opens the conversation and is never forgotten.
        moderation: Sees what goes in and, before anybody reads it, what comes out.
        **generation: Fields of `GenerationConfig`, such as `temperature`, `max_new_tokens` or `stop_strings`.

    Attributes:
        messages: The conversation, as chat templates take it.
        ending: How the last answer ended, with the token ids of prompt and answer; empty where none was made, or the last
            one is from a file.
        name_or_path: Where the model is from; None for one that was handed over.

    Raises:
        TokenizerError: If the tokenizer has no chat template or does not fit the model.
        ConfigError: If `generation` names no field of `GenerationConfig`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None = None,
        moderation: "Moderator | None" = None,
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
        self.moderation = moderation
        self.name_or_path: str | None = None
        self.generation_config = generation_config_with(model.generation_config, **generation)
        self.messages: list[dict[str, Any]] = []
        self._prefix = PrefixCache(model)
        self._cancelled = Event()
        self.reset()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, quantize: str | None = None, **kwargs: Any) -> "ChatSession":
        """A session with the model and tokenizer of a folder or Hub id; `quantize` as `load_for_generation` takes it."""
        session = cls(load_for_generation(name_or_path, quantize), load_tokenizer(str(name_or_path)), **kwargs)
        session.name_or_path = str(name_or_path)
        return session

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        self.ending = Ending()

    def set(self, **generation: Any) -> None:
        """Changes fields of the generation config from the next answer on.

        Raises:
            ConfigError: If a name is no field of `GenerationConfig` or a value is refused; nothing is changed then.
        """
        self.generation_config = generation_config_with(self.generation_config, **generation)

    @property
    def processed_tokens(self) -> int:
        """Tokens that the model computed so far: what earlier turns have in common with a prompt is not computed again."""
        return self._prefix.processed_tokens

    def regenerate(self) -> Iterator[str]:
        """Takes the last answer back and yields another, as `stream` does.

        Raises:
            ConfigError: If nothing was asked yet.
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

        Leaving the iterator early stops the model within one token and keeps what was said so far. So does a moderator
        that ends the answer: `ending.finish_reason` is `content_filter` then.

        Raises:
            ConfigError: If the message alone does not fit into the context.
            DataError: If the message holds bytes that are no UTF-8.
            ContentFiltered: If the moderator does not let the message pass; the conversation stays as it is.
        """
        check_text("The message", text)
        filters: list[TextFilter] = []
        if self.moderation is not None:
            self.moderation.check(text)
            filters.append(self.moderation.filter())
        messages = self._forget_to_fit([*self.messages, {"role": "user", "content": text}])
        answer, whole, self.ending, self._cancelled = "", False, Ending(), Event()
        try:
            prompt = self._prompt(messages)
            config = self._config_within(len(prompt))
            for piece in stream_tokens(
                self.model, self.tokenizer, prompt, config, self._prefix, filters, self.ending, self._cancelled
            ):
                answer += piece
                yield piece
            whole = True
        finally:
            # A model may have nothing to say, and then that was its answer.
            if answer or whole:
                self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]
            else:
                self.ending = Ending()

    def stop(self) -> None:
        """Ends the answer that another thread is streaming, within one token; what was said so far stays.

        A reader who leaves the iterator does the same, but can do so only when there is something new to read.
        """
        self._cancelled.set()

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
            DataError: If the file cannot be read, or holds no conversation.
        """
        try:
            messages = json.loads(Path(file).read_text(encoding="utf-8"))["messages"]
            check_conversation(messages, allow_empty=True)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            raise DataError(f"{file} holds no conversation as /save writes it: {error}") from error
        self.messages, self.ending = list(messages), Ending()
        first = messages[0] if messages else {}
        self.system_prompt = first["content"] if first.get("role") == "system" else None

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return encode_conversation(self.tokenizer, messages, add_generation_prompt=True)["input_ids"]

    def _config_within(self, length: int) -> GenerationConfig:
        """The generation config, with no more new tokens than the context has room for after `length`."""
        config = copy.deepcopy(self.generation_config)
        limit = context_length(self.model)
        if config.max_new_tokens is not None:
            config.max_new_tokens = min(config.max_new_tokens, limit - length)
        return config

    def _forget_to_fit(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Drops the oldest turns, whole and never the system prompt, until prompt and answer fit the context."""
        limit = context_length(self.model)
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
