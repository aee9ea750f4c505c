"""Conversations as tokens, through the chat template of any tokenizer, and which of them the assistant says.

Rendering is transformers' own, with its sandbox. `assistant_turns` tells how the assistant's words are found.
"""

import ctypes
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .assistant_turns import Unmarked, derived_turns, has_generation_mark, training_template
from .bounded_templates import budget, counted
from .errors import DataError, TemplateTimeout, TokenizerError
from .parsing import read_file
from .text_encoding import text_encoder
from .tokenization_chatgpt import load_tokenizer

# A template takes milliseconds. `bounded_templates` counts what it does; this is for what it cannot count.
RENDER_SECONDS = 30.0
# transformers marks the assistant's words with one object per template.
_MARKING = threading.Lock()


# A tool, its call and its result that no template contains.
_PROBE, _PROBE_RESULT = "zqxprobetool", "zqxproberesult"


class ShownOfTools(NamedTuple):
    """Which parts of tool use a chat template shows. A part is True if the template refuses every trial of it.

    Attributes:
        tools: The tools that the assistant may call.
        tool_calls: The calls in the assistant's messages.
        tool_messages: Messages of role `tool`.
    """

    tools: bool
    tool_calls: bool
    tool_messages: bool


class EncodedConversation(NamedTuple):
    """A conversation as tokens.

    Attributes:
        input_ids: Token ids, (seq,).
        turn: For each token 0 or, within the assistant's words, the number of the turn, counted from 1, (seq,).
        text: The text that the chat template made.
        turns: The text of each of the assistant's turns, without special tokens.
        template: The chat template.
    """

    input_ids: list[int]
    turn: list[int]
    text: str
    turns: list[str]
    template: str


def encode_chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Encodes a conversation up to the start of the assistant's next turn; raises like `encode_conversation`."""
    rendering = _Rendering(tokenizer, messages, tools)
    return rendering.encode(rendering.render(add_generation_prompt=True), ())[0]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, list[int]]:
    """Applies the chat template so that special tokens come only from the template, never from the messages.

    If no message contains a special token's text, the ids equal those of `apply_chat_template`. Where the template fails at
    them, lists of text parts become strings, and arguments of tool calls objects, as in `transformers serve`. Threads may share
    a tokenizer for this function.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: Dicts with `role` and `content`; our template takes a string or a list of text parts as content.
        add_generation_prompt: End with the start of an assistant's turn.
        tools: JSON schemas of functions that the assistant may call, for the template.

    Returns:
        `input_ids` and `assistant_masks`, both (seq,); the mask is 1 for the assistant's words, including their end mark.

    Raises:
        TokenizerError: If the tokenizer is not a fast one, or has no chat template, or one that is not valid.
        TemplateTimeout: If the template does not end.
        DataError: If there are no messages; if the template refuses or fails at them, as ours refuses an unknown role, or
            prints nothing; or if the assistant's words cannot be found in what it prints.
    """
    encoded = encode_turns(tokenizer, messages, add_generation_prompt, tools)
    return {"input_ids": encoded.input_ids, "assistant_masks": [int(turn > 0) for turn in encoded.turn]}


def shown_of_tools(tokenizer: PreTrainedTokenizerBase) -> ShownOfTools:
    """Finds out what a tokenizer's chat template shows of tools, by rendering a few conversations.

    Raises:
        TokenizerError: If the tokenizer is not a fast one, or has no chat template, or one that is not valid.
        TemplateTimeout: If the template does not end.
    """
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": _PROBE, "description": "Adds.", "parameters": parameters}}
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}
    # Mistral's templates want an id of nine letters and digits.
    function: dict[str, Any] = {"name": _PROBE, "arguments": {"a": 1}}
    call = {"id": "abcdef123", "type": "function", "function": function}
    called: list[dict[str, Any]] = [question, {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = {"role": "tool", "content": _PROBE_RESULT, "name": _PROBE, "tool_call_id": "abcdef123"}
    without_name = {key: value for key, value in result.items() if key != "name"}

    def shows(needle: str, *trials: tuple[Sequence[Mapping[str, Any]], bool]) -> bool:
        found = []
        for messages, with_tools in trials:
            try:
                rendering = _Rendering(tokenizer, messages, [tool] if with_tools else None)
                found.append(needle in rendering.render(add_generation_prompt=True))
            except DataError:
                continue
        return any(found) or not found

    return ShownOfTools(
        tools=shows(_PROBE, ([question], True), ([system, question], True)),
        # Not with the tools, where their own name would be found.
        tool_calls=shows(_PROBE, (called, False), ([*called, without_name], False)),
        tool_messages=shows(_PROBE_RESULT, ([*called, result], False), ([*called, result], True)),
    )


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> EncodedConversation:
    """Does the work of `encode_conversation`, and also tells the assistant's turns apart."""
    rendering = _Rendering(tokenizer, messages, tools)
    rendered, spans = rendering.with_turns(add_generation_prompt)
    input_ids, turn = rendering.encode(rendered, spans)
    turns = [rendering.original(rendering.specials.sub("", rendered[start:end])) for start, end in spans]
    return EncodedConversation(input_ids, turn, rendering.original(rendered), turns, rendering.template)


def read_chat_template(path: str, tokenizer: PreTrainedTokenizerBase) -> str | dict[str, str]:
    """Returns the chat template of a Jinja file, or that of another tokenizer, for a tokenizer.

    Args:
        path: A Jinja file, or the folder or Hub id of a tokenizer.
        tokenizer: The one that gets the template.

    Raises:
        TokenizerError: If the file cannot be read, the other tokenizer has no chat template, or its template contains special
            tokens that `tokenizer` lacks.
    """
    file = Path(path).expanduser()
    if file.is_file():
        try:
            return read_file(file)
        except (OSError, ValueError) as error:
            raise TokenizerError(f"the chat template {file} cannot be read: {error}") from error
    if file.suffix in (".jinja", ".j2"):
        raise TokenizerError(
            f"there is no chat template {file}: name a Jinja file, or the folder or Hub id of a tokenizer"
        )
    source = load_tokenizer(path)
    template = source.chat_template
    if template is None:
        raise TokenizerError(f"the tokenizer {path} has no chat template: name a Jinja file, or a tokenizer with one")
    text = template if isinstance(template, str) else "".join(template.values())
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in source.all_special_tokens if token in text and token not in vocabulary]:
        raise TokenizerError(
            f"the chat template of {path} contains {', '.join(missing)}, which the model's tokenizer has no tokens for: name a "
            "template that is made for the model's tokenizer"
        )
    return template


class _Rendering:
    """A conversation on its way through a template.

    Unused private-use characters replace the texts of special tokens in messages, so every special token's text in the result
    comes from the template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> None:
        if not messages:
            raise DataError("the conversation has no messages: give at least one, with a role and its content")
        if isinstance(messages, str) or not isinstance(messages, Sequence):
            raise DataError(f"the messages are {messages!r:.80}, not a list of mappings with a role and its content")
        if wrong := [each for each in messages if not isinstance(each, Mapping)]:
            raise DataError(f"a message is {wrong[0]!r:.80}, not a mapping with a role and its content")
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise TokenizerError("conversations need a fast tokenizer, one that tokenizer.json describes")
        try:
            self.template = tokenizer.get_chat_template(tools=tools or None)
        except ValueError as error:
            if tokenizer.chat_template is None:
                raise TokenizerError(
                    "the tokenizer has no chat template, which conversations need: this is a base model"
                ) from error
            raise TokenizerError(f"the tokenizer's chat template cannot be chosen: {error}") from error
        self._tokenizer = tokenizer
        everything = self.template + json.dumps([messages, tools], ensure_ascii=False, default=str)
        self._encoder = text_encoder(tokenizer, [everything])
        names = sorted(self._encoder.stand_ins, key=len, reverse=True)
        self.specials = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        occurring = {*everything, *self._encoder.stand_ins.values()}
        unused = (character for character in map(chr, range(0xF0000, 0x10FFFE)) if character not in occurring)
        stand_ins = dict(zip(names, unused, strict=False))
        self._originals = {ord(character): special for special, character in stand_ins.items()}

        def guard(text: str) -> str:
            return self.specials.sub(lambda match: stand_ins[match[0]], text)

        # Like apply_chat_template, this drops keys without a value, which APIs send but templates cannot handle.
        self._messages = [{k: _map_strings(v, guard) for k, v in each.items() if v is not None} for each in messages]
        self._tools = _map_strings(list(tools), guard) if tools else None
        self._use_what_the_template_takes()

    def render(
        self, count: int | None = None, *, add_generation_prompt: bool = False, template: str | None = None
    ) -> str:
        """Renders the conversation, or its first messages."""
        return self._render(count, add_generation_prompt, template, mark=False)[0]

    def with_turns(self, add_generation_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """Returns the rendered conversation, and where the assistant speaks in it."""
        if has_generation_mark(self.template):
            return self._render(None, add_generation_prompt, None, mark=True)
        rendered = self.render(add_generation_prompt=add_generation_prompt)
        marked = training_template(self._tokenizer, self.template)
        if marked is not None:
            try:
                text, spans = self._render(None, add_generation_prompt, marked, mark=True)
            except DataError:
                text = ""
            if text == rendered:
                return rendered, spans
        try:
            text = self.render() if add_generation_prompt else rendered
            return rendered, derived_turns(self.render, self._messages, text, self.specials)
        except Unmarked as error:
            raise DataError(
                f"the chat template does not mark what the assistant says, and {self.original(str(error))}: use a template with "
                "{% generation %} marks (--chat_template_path)"
            ) from error

    def encode(self, rendered: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Returns the ids of rendered text and the turn of each."""
        said = [0] * len(rendered)
        for number, (start, end) in enumerate(spans, start=1):
            said[start:end] = [number] * (end - start)
        pieces: list[str] = []
        flags: list[int] = []
        alone: dict[int, int] = {}  # where a special token's stand-in is: its turn
        start = 0
        for index, part in enumerate(self.specials.split(rendered)):  # text, special token, text, ..., text
            said_here = said[start : start + len(part)]
            start += len(part)
            if index % 2:
                pieces.append(self._encoder.stand_ins[part])
                alone[len(flags)] = max(said_here)
                flags.append(max(said_here))
            else:
                pieces.append(self.original(part))
                flags += [
                    flag
                    for flag, character in zip(said_here, part, strict=True)
                    for _ in self._originals.get(ord(character), character)
                ]
        ids, offsets = self._encoder.encode_with_offsets("".join(pieces))
        flags.append(0)
        turn = []
        for first, end in offsets:
            # A special token may take the white space around it, which says nothing about its turn.
            special = next((at for at in range(first, end) if at in alone), None)
            # A token of no character, such as a Metaspace that was put in, belongs to what follows.
            turn.append(max(flags[first:end], default=flags[first]) if special is None else alone[special])
        return ids, turn

    def original(self, text: str) -> str:
        """Puts the special tokens' texts back into text."""
        return text.translate(self._originals)

    def _render(
        self, count: int | None, add_generation_prompt: bool, template: str | None, *, mark: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        variables: dict[str, Any] = {
            **self._tokenizer.special_tokens_map,
            "add_generation_prompt": add_generation_prompt,
        }

        def run() -> Any:
            return render_jinja_template(
                [self._messages[:count]],
                tools=self._tools,
                chat_template=counted(self.template if template is None else template),
                return_assistant_tokens_mask=mark,
                **variables,
            )

        def run_marking() -> Any:
            with _MARKING:
                return run()

        try:
            (rendered,), spans = _within_time(run_marking if mark else run)
        except TemplateSyntaxError as error:
            raise TokenizerError(
                f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
            ) from error
        except TemplateTimeout:
            raise
        # A template can raise anything: not only what it refuses, but `KeyError` or `TypeError` at what it does not expect.
        except Exception as error:
            reason = str(error) if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
            raise DataError(f"the chat template refuses the conversation: {self.original(reason)}") from error
        if not rendered.strip() and count is None:
            raise DataError("the chat template prints nothing for the conversation: is it the model's own?")
        return rendered, spans[0] if mark else []

    def _use_what_the_template_takes(self) -> None:
        """Replaces text parts by strings and JSON arguments by objects where the template fails at them or prints them raw."""
        given, plain = self._messages, [_plain(message) for message in self._messages]
        if plain == given:
            return
        raw = [repr(message["content"]) for message in given if isinstance(message.get("content"), list)]
        raw += [json.dumps(arguments, ensure_ascii=False) for arguments in _json_arguments(given) if '"' in arguments]
        failure: DataError | None = None
        try:
            text = self.render()
            if not any(each in text for each in raw):
                return
        except DataError as error:
            failure = error
        self._messages = plain
        try:
            self.render()
        except DataError:
            self._messages = given
            if failure is not None:
                raise failure from None


def _within_time(function: Callable[[], Any]) -> Any:
    """Calls a function in a thread, which is ended if it takes too long."""
    outcome: list[tuple[Any, Exception | None]] = []

    def run() -> None:
        try:
            with budget():
                outcome.append((function(), None))
        except SystemExit:
            return
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(RENDER_SECONDS)
    if not outcome:
        # The thread raises this at its next Python instruction, and ends.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise TemplateTimeout(
            f"the chat template was not done after {RENDER_SECONDS:g} seconds: does it loop for ever?"
        )
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
    """Applies a function to every string in nested dicts and lists."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, function): _map_strings(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, function) for item in value]
    return value


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message as `transformers serve` gives it to the template of a text model."""
    content = message.get("content")
    if isinstance(content, list) and content and all(isinstance(part, dict) and "text" in part for part in content):
        message = {**message, "content": " ".join(str(part["text"]) for part in content)}
    if isinstance(message.get("tool_calls"), list):
        message = {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
    return message


def _with_object(call: Any) -> Any:
    """A tool call whose arguments are an object instead of JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        return call


def _json_arguments(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    calls = [call for message in messages for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    functions = [call["function"] for call in calls if isinstance(call.get("function"), dict)]
    return [function["arguments"] for function in functions if isinstance(function.get("arguments"), str)]
