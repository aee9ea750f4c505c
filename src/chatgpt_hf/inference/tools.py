"""Tools that a model calls while it answers: finds calls in what it wrote, runs them, and encodes the results."""

import inspect
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema
from transformers.utils.chat_parsing import parse_response

from ..chat_templates import encode_chat_prompt, encode_turns, shown_of_tools
from ..errors import ChatGPTError, ConfigError, DataError, one_line
from ..tokenization_chatgpt import RESPONSE_TEMPLATE
from .calculator import calculator
from .sampler import Reply, Sample

TOOLS: dict[str, Callable[..., str]] = {"calculator": calculator}
# Turns of one answer in which tools are called, if nothing else is said.
MOST_CALLS = 8
# Results that are kept as tokens: the answers to one prompt often make the same call.
_KEPT = 4096


class Tools:
    """Answers the calls in what a model writes; pass it to `sample_completions` as `replying`.

    The results come back as the chat template's messages of role `tool`. A call that fails gets a message that begins with
    `Error:`. Text in which no call can be recognized is an ordinary answer.

    Args:
        names: Keys of `TOOLS`.
        tokenizer: The model's tokenizer.
        ends: Token ids that end a turn of the assistant.
        most_calls: Turns of one answer in which tools may be called, `MOST_CALLS` if not given. An answer that calls them once more
            is cut there.

    Attributes:
        schemas: The JSON schemas of the tools, for the chat template.

    Raises:
        ConfigError: If a tool is unknown, or named twice.
        DataError: If the chat template shows no tools, calls or results; if calls cannot be read back from what it writes; or if its
            assistant's turns do not end with an end mark.
    """

    def __init__(
        self,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        most_calls: int | None = None,
    ) -> None:
        check_names(names)
        self._functions = {name: TOOLS[name] for name in names}
        self.schemas = [get_json_schema(function) for function in self._functions.values()]
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._most_calls = MOST_CALLS if most_calls is None else most_calls
        self._suffixes: dict[tuple[tuple[str, str], ...], list[int]] = {}
        lacking = [name for name, shown in shown_of_tools(tokenizer)._asdict().items() if not shown]
        if lacking:
            raise DataError(
                f"The chat template does not show {lacking[0].replace('_', ' ')}, so the model could not use "
                f"{', '.join(names)}: take a chat model whose template has tools, such as one made with `chatgpt-hf sft`."
            )
        question = [{"role": "user", "content": "?"}]
        self._begin = tokenizer.decode(encode_chat_prompt(tokenizer, question, self.schemas))
        self._template = self._response_template()
        # A template that refuses results does so now.
        self._suffix(((names[0], "1"),))

    def __call__(self, turn: list[int], calls: int) -> Reply | None:
        """What follows a turn of the assistant's: results of tools, or nothing if it calls none.

        Args:
            turn: Token ids of the turn, with the end mark.
            calls: Turns of this answer that have called tools before.

        Returns:
            The results. Without `ids` if the model has called tools too often.
        """
        message = self._message(turn)
        if not message.get("tool_calls"):
            return None
        if calls >= self._most_calls:
            return Reply([], [])
        results = [self._result(call.get("function", {})) for call in message["tool_calls"]]
        messages = [{"role": "tool", "name": name, "content": content} for name, content in results]
        return Reply(self._suffix(tuple(results)), [message, *messages])

    def messages(self, sample: Sample) -> list[dict[str, Any]]:
        """An answer as messages: the assistant's calls, the tools' results, and at the end what the assistant says."""
        begin = max((reply.begin + len(reply.ids) for reply in sample.replies), default=0)
        said = [message for reply in sample.replies for message in reply.messages]
        return [*said, self._message(sample.ids[begin:])]

    def _message(self, turn: list[int]) -> dict[str, Any]:
        """A turn of the assistant's as a message, with `tool_calls` if it calls tools."""
        if turn and turn[-1] in self._ends:
            try:
                message = parse_response(self._tokenizer.decode(turn), self._template, prefix=self._begin)
                # JSON can hold half characters, which no file takes.
                json.dumps(message, ensure_ascii=False).encode()
            # A model can write anything between the marks of a call.
            except Exception:
                message = {}
            calls = message.get("tool_calls")
            if calls and all(map(_is_call, calls)):
                return {"content": "", **message}
        text = self._tokenizer.decode(turn, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return {"role": "assistant", "content": text}

    def _result(self, function: dict[str, Any]) -> tuple[str, str]:
        """The name of a called tool and its result."""
        name, arguments = function["name"], function["arguments"]
        if name not in self._functions:
            return name, f"Error: there is no tool {name!r}; there is {', '.join(self._functions)}"
        called = self._functions[name]
        try:
            inspect.signature(called).bind(**arguments)
        except TypeError as error:
            return name, f"Error: {one_line(error)}"
        try:
            return name, called(
                **{key: value if isinstance(value, str) else str(value) for key, value in arguments.items()}
            )
        except ChatGPTError as error:
            return name, f"Error: {error}"

    def _suffix(self, results: tuple[tuple[str, str], ...]) -> list[int]:
        """The tokens between the end mark of a turn that calls tools and the first of the next turn."""
        if results not in self._suffixes:
            if len(self._suffixes) >= _KEPT:
                self._suffixes.clear()
            ids, turn, *_ = encode_turns(self._tokenizer, self._called(results), True, self.schemas)
            self._suffixes[results] = ids[self._end_of_turn(ids, turn) :]
        return self._suffixes[results]

    def _end_of_turn(self, ids: list[int], turn: list[int]) -> int:
        """Where the only turn of the assistant's ends, after its end mark; templates may count the line break after it as the turn's."""
        ends = [at for at, number in enumerate(turn, start=1) if number and ids[at - 1] in self._ends]
        if not ends:
            raise DataError(
                "The chat template does not end a call of a tool with an end mark of the model's, so it would not wait for the result."
            )
        return ends[-1]

    def _called(self, results: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """A conversation in which tools gave these results. Templates may ask for ids of nine letters and digits."""
        question = {"role": "user", "content": "?"}
        calls, messages = [], []
        for number, (name, content) in enumerate(results):
            own = f"call{number:05d}"
            arguments = dict.fromkeys(inspect.signature(self._functions.get(name, calculator)).parameters, "1")
            calls.append({"id": own, "type": "function", "function": {"name": name, "arguments": arguments}})
            messages.append({"role": "tool", "name": name, "tool_call_id": own, "content": content})
        return [question, {"role": "assistant", "content": "", "tool_calls": calls}, *messages]

    def _response_template(self) -> Any:
        """How calls are found in what the model writes: as the tokenizer says, or as in our own template."""
        name = next(iter(self._functions))
        conversation = self._called([(name, "1")])[:2]
        ids, turn, *_ = encode_turns(self._tokenizer, conversation, False, self.schemas)
        begin, end = turn.index(1), self._end_of_turn(ids, turn)
        for template in (getattr(self._tokenizer, "response_template", None), RESPONSE_TEMPLATE):
            if template is None:
                continue
            self._template = template
            calls = self._message(ids[begin:end]).get("tool_calls") or []
            if [call["function"]["name"] for call in calls] == [name]:
                return template
        raise DataError(
            "Calls of tools cannot be read back from what the chat template writes: give its tokenizer a response_template "
            "(transformers' `parse_response`), or take a chat model whose template has Hermes' format, as those made with `chatgpt-hf sft`."
        )


def check_names(names: Sequence[str]) -> None:
    """Raises `ConfigError` if a tool is unknown or named twice."""
    for number, name in enumerate(names):
        if name not in TOOLS:
            raise ConfigError(f"The tool {name!r} is unknown: choose from {', '.join(TOOLS)}.")
        if name in names[:number]:
            raise ConfigError(f"The tool {name} is named twice.")


def _is_call(call: Any) -> bool:
    """True if a parsed call has a name and named arguments."""
    function = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), dict)
    )
