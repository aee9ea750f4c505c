"""The tokenizer: a byte-level BPE trained on the user's text, with four special tokens and a ChatML template.

It is a generic fast tokenizer of `transformers`, so `AutoTokenizer.from_pretrained` loads it without any code of ours.
Data code calls `encode_documents` or `encode_conversation` instead of the tokenizer itself: unlike a plain
`tokenizer(text)`, they never turn text that looks like a special token into that token.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2.exceptions import TemplateError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from .errors import DataError, TokenizerError

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, IM_START, IM_END)

# Maximum number of digits per token. GPT-4 has three, but a vocabulary of a few thousand entries has no room for a
# thousand numbers.
MAX_DIGITS = 2

# Maximum number of characters to encode at once: per document, and in total.
_SLICE_SIZE = 1 << 16
_GROUP_SIZE = 1 << 20
# Positions where a pre-tokenization always ends a piece, regardless of the context. GPT-2's starts a piece with white
# space, whose end depends on all following text; ours ends a piece after the last line feed of white space. Both
# attach a space to the following word.
_GPT2_SLICE_END = re.compile(r"(?<=\S)(?=\n)|(?<=[A-Za-z])(?= [A-Za-z])")
_OUR_SLICE_END = re.compile(r"(?<=\n)(?=[^\S\r\n]*\S)|(?<=[A-Za-z])(?= [A-Za-z])")

# ChatML. Tools are declared and called in the format of Hermes models (NousResearch/Hermes-Function-Calling), which
# the parsers of transformers, vLLM and others support.
CHAT_TEMPLATE = """\
{%- macro text_of(message) -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- elif message.content and message.content is iterable and message.content is not mapping
            and not (message.content | rejectattr('type', 'equalto', 'text') | list) -%}
        {{- message.content | map(attribute='text') | join -}}
    {%- elif not message.tool_calls -%}
        {{- raise_exception("The content of a message of role '" ~ message.role ~ "' is neither a string nor a list of "
            ~ "text parts, {'type': 'text', 'text': ...}.") -}}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if messages[0].role == 'system' -%}
        {{- text_of(messages[0]) ~ '\\n\\n' -}}
    {%- endif -%}
    {{- 'Functions that you may call, each call as {"name": ..., "arguments": {...}} between <tool_call> and </tool_call>:\\n'
        ~ '<tools>\\n' -}}
    {%- for tool in tools -%}
        {{- (tool | tojson) ~ '\\n' -}}
    {%- endfor -%}
    {{- '</tools><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
        {{- raise_exception("Unknown role '" ~ message.role ~ "': use one of system, user, assistant, tool.") -}}
    {%- endif -%}
    {%- set content = text_of(message) -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- generation -%}
            {{- content -}}
            {%- for call in message.tool_calls or [] -%}
                {%- set function = call.function or call -%}
                {{- ('\\n' if content or not loop.first else '') ~ '<tool_call>\\n{"name": ' ~ (function.name | tojson)
                    ~ ', "arguments": ' -}}
                {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
                {{- '}\\n</tool_call>' -}}
            {%- endfor -%}
            {{- '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- elif not (tools and loop.first and message.role == 'system') -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# How transformers' `parse_response` finds tool calls in an answer. Not an attribute of the tokenizers, because then
# `pipeline("text-generation")` would leave special tokens in its output.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}


def pre_tokenization(max_digits: int = MAX_DIGITS) -> str:
    """GPT-4's pattern (cl100k_base in tiktoken), with at most `max_digits` digits per group."""
    digits = r"\p{N}" if max_digits == 1 else rf"\p{{N}}{{1,{max_digits}}}"
    return (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 4096,
    *,
    max_digits: int = MAX_DIGITS,
    min_frequency: int = 2,
    show_progress: bool = True,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer; the same texts in the same order always give the same tokenizer.

    `decode(encode(text))` returns every string exactly: nothing is normalized, and the vocabulary contains all 256
    bytes, so there is no unknown token.

    Args:
        texts: The documents to learn from, read once.
        vocab_size: Size of the vocabulary, including the special tokens (ids 0 to 3).
        max_digits: Maximum number of digits per token, 1 to 3. llama.cpp supports 1 and 3.
        min_frequency: Pairs that occur less often than this are not merged.
        show_progress: Show progress bars.
        model_max_length: The model's maximum sequence length in tokens; stored with the tokenizer.

    Returns:
        The tokenizer. If the texts have too few pairs, its vocabulary is smaller, and a warning is logged.

    Raises:
        TokenizerError: If `vocab_size` is too small for all bytes and special tokens, `max_digits` is not 1, 2 or 3,
            or `texts` contains no text or a non-string.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    minimum = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < minimum:
        raise TokenizerError(
            f"vocab_size is {vocab_size}, but the {len(alphabet)} bytes and {len(SPECIAL_TOKENS)} special tokens need "
            f"{minimum}: give at least that"
        )
    if max_digits not in (1, 2, 3):
        raise TokenizerError(f"max_digits is {max_digits}: it must be 1, 2 or 3")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pre_tokenization(max_digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    # Trimmed offsets would exclude a leading space, so an assistant turn that starts with one would lose it from the
    # mask.
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=show_progress,
    )
    backend.train_from_iterator(_checked_texts(texts), trainer)
    if backend.get_vocab_size() < vocab_size:
        message = "The texts fill only %d of the %d requested vocabulary entries: give more text, or lower vocab_size."
        logger.warning(message, backend.get_vocab_size(), vocab_size)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        extra_special_tokens=[IM_START, IM_END],
        clean_up_tokenization_spaces=False,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """Passes texts through; raises `TokenizerError` for a non-string, or at the end if all texts were empty."""
    if isinstance(texts, str):
        raise TokenizerError("texts is one string: pass an iterable of strings, one per document")
    empty = True
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TokenizerError(f"item {index} of texts is {type(text).__name__}, not a string")
        empty = empty and not text
        yield text
    if empty:
        raise TokenizerError("there is no text to train the tokenizer on: there are no items, or all are empty")


def load_tokenizer(path_or_id: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder or the Hub; never runs code that comes with it.

    Unlike `AutoTokenizer`, also accepts a folder with only GPT-2's `vocab.json` and `merges.txt`.

    Raises:
        TokenizerError: If there is no tokenizer, or it cannot be read.
    """
    folder = Path(path_or_id).expanduser()
    loader: Any = AutoTokenizer
    if folder.is_dir():
        names = {file.name for file in folder.iterdir()}
        if not names & {"tokenizer.json", "tokenizer.model"}:
            # Without these files, AutoTokenizer may return a tokenizer with an empty vocabulary, so do not call it.
            missing = sorted({"vocab.json", "merges.txt"} - names)
            if missing:
                raise TokenizerError(
                    f"{folder} has no tokenizer: tokenizer.json is missing, and so is {' and '.join(missing)} of GPT-2's "
                    "older format. Save one there with tokenizer.save_pretrained(folder)"
                )
            if "tokenizer_config.json" not in names:
                loader = GPT2Tokenizer
    elif folder.exists() or folder.is_absolute() or str(path_or_id).startswith((".", "~")):
        raise TokenizerError(f"{folder} is not a folder: give the folder that contains tokenizer.json, or a Hub id")
    try:
        return loader.from_pretrained(str(folder), trust_remote_code=False)
    # The tokenizers library raises a bare `Exception` for a file that it cannot parse.
    except Exception as error:
        raise TokenizerError(f"no tokenizer could be loaded from {str(path_or_id)!r}: {error}") from error


def check_text(name: str, text: str) -> None:
    """Raises `DataError` if a text contains bytes that are not UTF-8; Python lets them into arguments and input."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not text: its character {error.start + 1} is not UTF-8.") from error


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encodes documents, each between the bos and the eos token; their text never becomes a special token.

    This calls `tokenizer(..., split_special_tokens=True)`, which sets a flag on the Rust tokenizer behind `tokenizer`;
    the next plain call of `tokenizer` resets it. So threads may share a tokenizer for this function and
    `encode_conversation`, but not while another thread calls `tokenizer(...)` or `apply_chat_template`: one would
    encode with the other's flag.

    Returns:
        One list of ids per document, `[bos, ..., eos]`.

    Raises:
        TokenizerError: If the tokenizer lacks a bos or eos token.
    """
    return [ids.tolist() for ids in encode_document_arrays(tokenizer, texts)]


def encode_document_arrays(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Like `encode_documents`, but for large texts: returns arrays, because lists take ten times the memory.

    A tokenizer needs some hundred bytes per token while it works, so long documents are cut into slices where this
    does not change the ids, and only a few slices are encoded at once.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise TokenizerError("the tokenizer lacks a bos or eos token, but every document starts and ends with them")
    parts: list[list[npt.NDArray[np.int32]]] = [[np.array([bos], np.int32)] for _ in texts]
    group: list[tuple[int, str]] = []

    def encode_group() -> None:
        encoded = _encode_as_text(tokenizer, [piece for _, piece in group])["input_ids"]
        for (index, _), ids in zip(group, encoded, strict=True):
            parts[index].append(np.array(ids, np.int32))
        group.clear()

    slice_end = _slice_end(tokenizer)
    size = 0
    for index, text in enumerate(texts):
        for piece in _slices(text, slice_end):
            group.append((index, piece))
            size += len(piece)
            if size >= _GROUP_SIZE:
                encode_group()
                size = 0
    encode_group()
    return [np.concatenate([*arrays, np.array([eos], np.int32)]) for arrays in parts]


def _slices(text: str, slice_end: re.Pattern[str] | None) -> Iterator[str]:
    """Cuts a long text where the pattern matches; leaves it whole if there is no pattern or no match."""
    start = 0
    while slice_end and len(text) - start > _SLICE_SIZE and (match := slice_end.search(text, start + _SLICE_SIZE)):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def _slice_end(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """A pattern for positions where a cut does not change the ids; None if the tokenizer's are unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    # The tokenizer searches the whole text for tokens that a user added.
    if not all(token.special for token in tokenizer.added_tokens_decoder.values()):
        return None
    state = json.loads(backend.pre_tokenizer.__getstate__())
    *splits, last = state.get("pretokenizers", [state])
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    ours = [
        {"type": "Split", "pattern": {"Regex": pre_tokenization(digits)}, "behavior": "Isolated", "invert": False}
        for digits in (1, 2, 3)
    ]
    if last["use_regex"]:
        return None if splits else _GPT2_SLICE_END
    return _OUR_SLICE_END if len(splits) == 1 and splits[0] in ours else None


class EncodedConversation(NamedTuple):
    """A conversation as tokens.

    Attributes:
        input_ids: Token ids, (seq,).
        turn: For each token 0 or, within the assistant's words, the number of the turn, counted from 1, (seq,).
        text: The text that the chat template made.
        turns: The text of each of the assistant's turns, without special tokens.
    """

    input_ids: list[int]
    turn: list[int]
    text: str
    turns: list[str]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, list[int]]:
    """Applies the chat template so that special tokens come only from the template, never from the messages.

    If no message contains a special token's text, the result equals that of `apply_chat_template(messages,
    return_assistant_tokens_mask=True)`. Its own `sanitize_control_tokens` cannot be combined with the mask, and drops
    some characters. Works with any byte-level tokenizer that has a chat template. For threads see `encode_documents`.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: Dicts with `role` and `content`; our template takes a string or a list of text parts as content.
        add_generation_prompt: End with the start of an assistant's turn.
        tools: JSON schemas of functions that the assistant may call, for the template.

    Returns:
        `input_ids` and `assistant_masks`, both (seq,); the mask is 1 for the assistant's words, including
        `<|im_end|>`.

    Raises:
        TokenizerError: If the tokenizer has no chat template.
        DataError: If there are no messages, or the template refuses them, as ours refuses an unknown role.
    """
    encoded = encode_turns(tokenizer, messages, add_generation_prompt, tools)
    return {"input_ids": encoded.input_ids, "assistant_masks": [int(turn > 0) for turn in encoded.turn]}


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> EncodedConversation:
    """Does the work of `encode_conversation`, and also tells the assistant's turns apart."""
    if not messages:
        raise DataError("the conversation has no messages: give at least one, with a role and its content")
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TokenizerError(f"the tokenizer has no chat template, which conversations need: {error}") from error
    specials = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
    # During rendering, unused private-use characters replace the texts of special tokens in messages, so every special
    # token's text in the result comes from the template.
    occurring = set(template + json.dumps([messages, tools], ensure_ascii=False, default=str))
    unused = (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in occurring)
    stand_ins = dict(zip(specials, unused, strict=False))
    originals = {ord(character): special for special, character in stand_ins.items()}

    def guard(text: str) -> str:
        return pattern.sub(lambda match: stand_ins[match[0]], text)

    # Like apply_chat_template, this drops keys without a value, which APIs send but templates cannot handle.
    guarded = [{k: _map_strings(v, guard) for k, v in message.items() if v is not None} for message in messages]
    variables: dict[str, Any] = {**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt}
    try:
        result: Any = render_jinja_template(
            [guarded],
            tools=_map_strings(list(tools), guard) if tools else None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **variables,
        )
    except TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {str(error).translate(originals)}") from error

    (rendered,), (spans,) = result
    said = [0] * len(rendered)
    for number, (start, end) in enumerate(spans, start=1):
        said[start:end] = [number] * (end - start)
    parts = pattern.split(rendered)  # text, special token, text, ..., text
    encoded = _encode_as_text(tokenizer, [part.translate(originals) for part in parts[::2]], offsets=True)
    input_ids: list[int] = []
    turn: list[int] = []
    start = 0
    for index, part in enumerate(parts):
        said_here = said[start : start + len(part)]
        start += len(part)
        if index % 2:
            input_ids.append(specials[part])
            turn.append(max(said_here))
            continue
        # Offsets count characters of the original text, where each stand-in is a special token's full text.
        flags = [flag for flag, char in zip(said_here, part, strict=True) for _ in originals.get(ord(char), char)]
        input_ids += encoded["input_ids"][index // 2]
        # If a post-processor trims offsets, a token of white space has an empty span at its end.
        turn += [max(flags[min(a, b - 1) : b], default=0) for a, b in encoded["offset_mapping"][index // 2]]
    turns = [pattern.sub("", rendered[start:end]).translate(originals) for start, end in spans]
    return EncodedConversation(input_ids, turn, rendered.translate(originals), turns)


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
    """Applies a function to every string in nested dicts and lists."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, function): _map_strings(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, function) for item in value]
    return value


def _encode_as_text(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], offsets: bool = False
) -> Mapping[str, list[list[Any]]]:
    """Encodes texts without adding or recognizing special tokens: `input_ids` and, if requested, `offset_mapping`."""
    if not texts:
        return {"input_ids": []}
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        verbose=False,  # no warning if a document exceeds the model's context: it is cut into blocks later
    )
