"""A conversation with a model: history, streaming, and dropping the oldest turns when the context is full."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..chat_templates import encode_chat_prompt
from ..checkpoints import UNLIMITED_CONTEXT, check_tokenizer_fits, context_length
from ..data.messages import check_conversation
from ..errors import ConfigError, DataError, TokenizerError
from ..files import write_atomically
from ..parsing import parse_json, read_file
from ..tokenization_chatgpt import check_text, load_tokenizer
from .abstention import Abstention, choose_abstention
from .cache import PrefixCache
from .compiling import compiled_prefix
from .filters import TextFilter
from .loading import load_for_generation
from .parameters import generation_config_with
from .streaming import Ending, stream_tokens
from .texts import message_texts

if TYPE_CHECKING:
    from ..moderation import Moderator


# Positions that earlier turns leave for an answer whose length is not limited, up to half of the context.
_ROOM = 256
# The longest answer if nothing limits it, not even the context: some models would never end.
_WITHOUT_CONTEXT = 2048


class ChatSession:
    """One conversation. Sampling parameters come from the model's generation_config.json unless given.

    Without `max_new_tokens` or `max_length`, an answer may fill the context.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer, with a chat template.
        system_prompt: Opens the conversation and is never dropped.
        moderation: Checks messages, earlier ones too, and filters answers before anyone reads them.
        prefix: Keeps what the model computed between answers; a new `PrefixCache` if not given.
        abstain: An `Abstention`, or the threshold of one. Each answer is then judged before its first piece appears, by
            the greedy answer, which costs the time of another answer; `ending` tells how sure the model was.
        **generation: Fields of `GenerationConfig`, such as `temperature`, `max_new_tokens` or `stop_strings`.

    Attributes:
        messages: The conversation, in the format of chat templates.
        ending: How the last answer ended, with the token ids of prompt and answer; empty if there was no answer yet,
            or the last one was loaded from a file.
        name_or_path: Folder or Hub id of the model; None if the model was passed in.

    Raises:
        TokenizerError: If the tokenizer has no chat template or does not fit the model.
        ConfigError: If `generation` contains an unknown field or an invalid value.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None = None,
        moderation: "Moderator | None" = None,
        prefix: PrefixCache | None = None,
        abstain: Abstention | float | None = None,
        **generation: Any,
    ) -> None:
        if isinstance(abstain, bool):
            raise ConfigError(
                "abstain=True means a folder's calibration: use ChatSession.from_pretrained, or give a threshold, such as "
                "abstain=-0.5."
            )
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
        self.abstention = Abstention(abstain) if isinstance(abstain, (int, float)) else abstain
        self.name_or_path: str | None = None
        self.generation_config = generation_config_with(model.generation_config, **generation)
        self.messages: list[dict[str, Any]] = []
        self._prefix = prefix or PrefixCache(model)
        self._cancelled = Event()
        # Texts that moderation let pass.
        self._passed: set[str] = set()
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        quantize: str | None = None,
        *,
        compile: bool = False,
        report: Callable[[str], object] = lambda sentence: None,
        abstain: Abstention | float | bool | None = None,
        abstain_text: str | None = None,
        **kwargs: Any,
    ) -> "ChatSession":
        """Loads model and tokenizer from a folder or Hub id.

        Args:
            name_or_path: Folder or Hub id.
            quantize: See `load_for_generation`.
            compile: See `compiled_prefix`.
            report: Called with a sentence about `compile`.
            abstain: See `choose_abstention`.
            abstain_text: See `choose_abstention`.
            **kwargs: Passed to `ChatSession`.
        """
        model, tokenizer = load_for_generation(name_or_path, quantize), load_tokenizer(str(name_or_path))
        abstention = choose_abstention(name_or_path, tokenizer, abstain, abstain_text, quantize=quantize)
        prefix = compiled_prefix(model.eval(), report) if compile else None
        session = cls(model, tokenizer, prefix=prefix, abstain=abstention, **kwargs)
        session.name_or_path = str(name_or_path)
        return session

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        self.ending = Ending()

    def set(self, **generation: Any) -> None:
        """Changes fields of the generation config, starting with the next answer.

        Raises:
            ConfigError: If a field is unknown or a value invalid; then nothing changes.
        """
        self.generation_config = generation_config_with(self.generation_config, **generation)

    @property
    def cut_by(self) -> str | None:
        """Returns the limit that cut the last answer, `max_new_tokens` or `context`; None if the model ended it."""
        if self.ending.finish_reason != "length":
            return None
        used = len(self.ending.prompt_ids) + len(self.ending.answer_ids)
        return "context" if used >= context_length(self.model) else "max_new_tokens"

    @property
    def processed_tokens(self) -> int:
        """Tokens that the model has computed so far; it does not recompute what a prompt shares with earlier turns."""
        return self._prefix.processed_tokens

    def regenerate(self) -> Iterator[str]:
        """Replaces the last answer by another one, which it yields as `stream` does.

        Raises:
            ConfigError: If there is no question yet.
        """
        question = next((i for i, m in reversed(list(enumerate(self.messages))) if m["role"] == "user"), None)
        if question is None:
            raise ConfigError("There is no question yet, so there is no answer to replace.")
        text = self.messages[question]["content"]
        before, self.messages = self.messages, self.messages[:question]
        try:
            yield from self.stream(text)
        finally:
            # If it was stopped before the first word, keep the old answer.
            if len(self.messages) == question:
                self.messages = before

    def stream(self, text: str) -> Iterator[str]:
        """Sends a message and yields the answer while it is generated, in pieces of valid UTF-8.

        Leaving the iterator early stops the model within one token and keeps the answer so far. The same happens if
        the moderator ends the answer; then `ending.finish_reason` is `content_filter`. If the model is to abstain
        where it is not sure, nothing appears until the answer is judged.

        Raises:
            ConfigError: If the message does not fit into the context even without earlier turns.
            DataError: If the message contains bytes that are not UTF-8.
            ContentFiltered: If the moderator blocks the message or an earlier one, also the system prompt; the conversation stays unchanged.
        """
        check_text("The message", text)
        filters: list[TextFilter] = []
        if self.moderation is not None:
            self._moderate([*self.messages, {"role": "user", "content": text}])
            filters.append(self.moderation.filter())
        messages = self._forget_to_fit([*self.messages, {"role": "user", "content": text}])
        answer, whole, self.ending, self._cancelled = "", False, Ending(), Event()
        try:
            for piece in self._pieces(self._prompt(messages), filters):
                answer += piece
                yield piece
            whole = True
        finally:
            # An empty answer is an answer too, if the model ended it.
            if answer or whole:
                self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]
                self._passed.add(answer.strip())
            else:
                self.ending = Ending()

    def _pieces(self, prompt: list[int], filters: Sequence[TextFilter]) -> Iterator[str]:
        """The answer to a prompt, or the text of the abstention if the model is not sure enough of its greedy answer."""
        config = self._config_within(len(prompt))
        if self.abstention is not None:
            draft = self.abstention.draft(self.model, self.tokenizer, prompt, self._prefix.generate, self._cancelled)
            if draft is None:
                # Stopped before there was anything to show.
                return
            self.ending.confidence = draft.confidence
            if self.abstention.withholds(draft):
                self.ending.prompt_ids, self.ending.finish_reason, self.ending.abstained = prompt, "stop", True
                yield self.abstention.text
                return
        yield from stream_tokens(
            self.model, self.tokenizer, prompt, config, self._prefix, filters, self.ending, self._cancelled
        )

    def _moderate(self, messages: list[dict[str, Any]]) -> None:
        """Checks all messages that were not checked or generated here: a page or a file may bring a whole conversation."""
        assert self.moderation is not None
        texts = [text for message in messages for text in message_texts(message)]
        for text in texts:
            if text not in self._passed:
                self.moderation.check(text)
        self._passed = set(texts)

    def stop(self) -> None:
        """Ends the answer that another thread is streaming, within one token; the answer so far is kept.

        A reader who leaves the iterator does the same, but can leave only when the next piece arrives.
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
        """Continues a conversation that `save` wrote, including its system prompt.

        Raises:
            DataError: If the file cannot be read, or contains no conversation.
        """
        try:
            messages = parse_json(read_file(Path(file)))["messages"]
            check_conversation(messages, allow_empty=True)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            raise DataError(f"{file} does not contain a conversation as written by /save: {error}") from error
        self.messages, self.ending = list(messages), Ending()
        first = messages[0] if messages else {}
        self.system_prompt = first["content"] if first.get("role") == "system" else None

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return encode_chat_prompt(self.tokenizer, messages)

    def _config_within(self, length: int) -> GenerationConfig:
        """The generation config, with `max_new_tokens` limited to the room in the context after `length` tokens."""
        config = copy.deepcopy(self.generation_config)
        limit = context_length(self.model)
        wanted = config.max_new_tokens
        if wanted is None and config.max_length is not None:
            wanted = max(1, config.max_length - length)
        if wanted is None and limit == UNLIMITED_CONTEXT:
            wanted = _WITHOUT_CONTEXT
        config.max_length, config.max_new_tokens = None, min(wanted or limit, limit - length)
        return config

    def _forget_to_fit(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Drops the oldest complete turns, but never the system prompt, until prompt and answer fit the context."""
        limit = context_length(self.model)
        head = messages[:1] if messages[0]["role"] == "system" else []
        turns = messages[len(head) :]
        room = limit - min(self.generation_config.max_new_tokens or _ROOM, limit // 2)
        while (length := len(self._prompt(head + turns))) > room:
            later_question = next((i for i, turn in enumerate(turns) if i and turn["role"] == "user"), None)
            if later_question is None:
                raise ConfigError(
                    f"The message takes {length} tokens with its prompt, but the answer leaves only {room} of the model's "
                    f"{limit} positions: shorten the message, or lower max_new_tokens."
                )
            turns = turns[later_question:]
        return head + turns
