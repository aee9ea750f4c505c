"""The tokenizer: a byte-level BPE trained on the user's text, its four special tokens and its ChatML template.

What is made here is the generic fast tokenizer of `transformers`, so `AutoTokenizer.from_pretrained` opens a saved one
without any code of ours. Data code does not call the tokenizer itself but `encode_documents` or `encode_conversation`:
these never turn text that merely looks like a special token into one, which a plain `tokenizer(text)` does.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

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

# Digits of a number in one piece. GPT-4 has three; a vocabulary of a few thousand entries has no room for a thousand
# numbers.
MAX_DIGITS = 2

# Characters that are encoded at a time, of one document and of all.
_SLICE_SIZE = 1 << 16
_GROUP_SIZE = 1 << 20
# Where a pre-tokenization ends a piece whatever else is around. GPT-2's begins one with white space, and how it goes on
# depends on all that follows; ours ends one with the last line feed of white space. Both put a space before its word.
_GPT2_SLICE_END = re.compile(r"(?<=\S)(?=\n)|(?<=[A-Za-z])(?= [A-Za-z])")
_OUR_SLICE_END = re.compile(r"(?<=\n)(?=[^\S\r\n]*\S)|(?<=[A-Za-z])(?= [A-Za-z])")

# ChatML. Tools are announced and called as Hermes models do it (NousResearch/Hermes-Function-Calling), whose calls the
# parsers of transformers, vLLM and others read.
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

# How to read an answer that the template's tool calls are in, for transformers' `parse_response`. Not an attribute of the
# tokenizers: with it, `pipeline("text-generation")` leaves special tokens in what it gives back.
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
    """GPT-4's pattern (cl100k_base in tiktoken) with digits in groups of at most so many."""
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
    """Train a byte-level BPE tokenizer; the same texts in the same order always give the same tokenizer.

    Every string comes back exactly from `decode(encode(text))`: nothing is normalized, and all 256 bytes are in the
    vocabulary, so there is no unknown token.

    Args:
        texts: The documents to learn from, read once.
        vocab_size: Entries of the vocabulary, the special tokens (ids 0 to 3) included.
        max_digits: Digits in one piece of a number, 1 to 3. llama.cpp knows 1 and 3.
        min_frequency: A pair seen less often than this is not merged.
        show_progress: Whether to draw progress bars.
        model_max_length: The longest sequence the model takes, in tokens; stored with the tokenizer.

    Returns:
        The tokenizer; if the texts offer too few pairs, with a smaller vocabulary than asked and a warning.

    Raises:
        TokenizerError: If `vocab_size` leaves out bytes or special tokens, `max_digits` is none of 1 to 3, or `texts` has
            no text or a non-string.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    minimum = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < minimum:
        raise TokenizerError(
            f"vocab_size is {vocab_size}, but the {len(alphabet)} bytes and {len(SPECIAL_TOKENS)} special tokens alone "
            f"need {minimum}: ask for at least that"
        )
    if max_digits not in (1, 2, 3):
        raise TokenizerError(f"max_digits is {max_digits}: numbers are cut in groups of at most 1, 2 or 3 digits")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pre_tokenization(max_digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    # Trimmed offsets would leave out leading spaces, and an assistant turn that starts with one would lose its mask.
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
        message = "The texts fill only %d of the %d vocabulary entries asked for: give more text, or ask for fewer."
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
    """Pass texts through; raises `TokenizerError` for an item that is no string, or at the end if all were empty."""
    if isinstance(texts, str):
        raise TokenizerError("texts is one string: pass an iterable of strings, one per document")
    empty = True
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TokenizerError(f"item {index} of texts is {type(text).__name__}, not a string")
        empty = empty and not text
        yield text
    if empty:
        raise TokenizerError("there is no text to train the tokenizer on: every item is empty, or there are none")


def load_tokenizer(path_or_id: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hub; code that comes with it is never run.

    Besides what `AutoTokenizer` opens, a folder with nothing but GPT-2's `vocab.json` and `merges.txt` is accepted.

    Raises:
        TokenizerError: If there is none, or it cannot be read.
    """
    folder = Path(path_or_id).expanduser()
    loader: Any = AutoTokenizer
    if folder.is_dir():
        names = {file.name for file in folder.iterdir()}
        if not names & {"tokenizer.json", "tokenizer.model"}:
            # Without these files AutoTokenizer can return a tokenizer with an empty vocabulary, so it is not asked.
            missing = sorted({"vocab.json", "merges.txt"} - names)
            if missing:
                raise TokenizerError(
                    f"{folder} has no tokenizer: tokenizer.json is missing, and so is {' and '.join(missing)} of GPT-2's "
                    "older pair of files. Save one there with tokenizer.save_pretrained(folder)"
                )
            if "tokenizer_config.json" not in names:
                loader = GPT2Tokenizer
    elif folder.exists() or folder.is_absolute() or str(path_or_id).startswith((".", "~")):
        raise TokenizerError(f"{folder} is not a folder: give the folder that holds tokenizer.json, or a Hub id")
    try:
        return loader.from_pretrained(str(folder), trust_remote_code=False)
    # The tokenizers library raises bare `Exception` for a file that it cannot parse.
    except Exception as error:
        raise TokenizerError(f"no tokenizer could be loaded from {str(path_or_id)!r}: {error}") from error


def check_text(name: str, text: str) -> None:
    """Raises `DataError` where a text holds bytes that are no UTF-8, as which Python passes on those of arguments and lines."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not text: its character {error.start + 1} is no UTF-8.") from error


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encode documents, each between the bos and the eos token; their text never gives a special token.

    This calls `tokenizer(..., split_special_tokens=True)`, which sets a flag on the Rust tokenizer behind `tokenizer`;
    the next call through `tokenizer` sets it back. Threads may therefore share a tokenizer for this function and
    `encode_conversation`, but not while another thread calls `tokenizer(...)` or `apply_chat_template`: the one would
    encode with the other's flag.

    Returns:
        One list of ids per document, `[bos, ..., eos]`.

    Raises:
        TokenizerError: If the tokenizer has no bos or no eos token.
    """
    return [ids.tolist() for ids in encode_document_arrays(tokenizer, texts)]


def encode_document_arrays(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """`encode_documents` for much text: arrays in place of lists, which take ten times the memory.

    A tokenizer needs some hundred bytes per token while it works, so a long document is encoded in slices, cut where
    this changes nothing, and all of them a few at a time.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise TokenizerError("the tokenizer has no bos or no eos token, and every document starts and ends with them")
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
    """Cut a long text where the pattern matches; without one, or a match, it is left whole."""
    start = 0
    while slice_end and len(text) - start > _SLICE_SIZE and (match := slice_end.search(text, start + _SLICE_SIZE)):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def _slice_end(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Where a text can be cut without a change to its ids; None if this is not known of the tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    # Tokens that a user added are found in the text as a whole.
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


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, list[int]]:
    """Apply the chat template so that only the template gives special tokens, never what the messages say.

    Where no message contains a special token's text the result equals that of `apply_chat_template(messages,
    return_assistant_tokens_mask=True)`, whose own `sanitize_control_tokens` does not go with the mask and drops some
    characters. Any byte-level tokenizer with a chat template will do. For threads see `encode_documents`.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: Dicts with `role` and `content`; for our template the latter is a string or a list of text parts.
        add_generation_prompt: Whether to end with the start of an assistant's turn.
        tools: JSON schemas of functions that the assistant may call, for the template.

    Returns:
        `input_ids` and `assistant_masks`, both (seq,); the mask is 1 for what the assistant says, `<|im_end|>` included.

    Raises:
        TokenizerError: If the tokenizer has no chat template.
        DataError: If there are no messages, or the template refuses them, as ours does an unknown role.
    """
    if not messages:
        raise DataError("the conversation has no messages: give at least one, with a role and its content")
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TokenizerError(f"the tokenizer has no chat template to encode a conversation with: {error}") from error
    specials = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
    # While the template is rendered, a private-use character that occurs nowhere else stands for each special token's
    # text, so that afterwards every such text left in the result is the template's own.
    occurring = set(template + json.dumps([messages, tools], ensure_ascii=False, default=str))
    unused = (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in occurring)
    stand_ins = dict(zip(specials, unused, strict=False))
    originals = {ord(character): special for special, character in stand_ins.items()}

    def guard(text: str) -> str:
        return pattern.sub(lambda match: stand_ins[match[0]], text)

    # Like apply_chat_template, this leaves out keys without a value, which APIs send and templates stumble over.
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
    said = bytearray(len(rendered))
    for start, end in spans:
        said[start:end] = b"\x01" * (end - start)
    parts = pattern.split(rendered)  # text, special token, text, ..., text
    encoded = _encode_as_text(tokenizer, [part.translate(originals) for part in parts[::2]], offsets=True)
    input_ids: list[int] = []
    masks: list[int] = []
    start = 0
    for index, part in enumerate(parts):
        said_here = said[start : start + len(part)]
        start += len(part)
        if index % 2:
            input_ids.append(specials[part])
            masks.append(int(any(said_here)))
            continue
        # Offsets count characters of the original text, where each stand-in is a whole special token's text.
        flags = [flag for flag, char in zip(said_here, part, strict=True) for _ in originals.get(ord(char), char)]
        input_ids += encoded["input_ids"][index // 2]
        # A post-processor that trims offsets gives a token of white space the empty span at its end.
        masks += [int(any(flags[min(a, b - 1) : b])) for a, b in encoded["offset_mapping"][index // 2]]
    return {"input_ids": input_ids, "assistant_masks": masks}


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
    """Apply a function to every string in nested dicts and lists."""
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
    """Encode texts without adding or recognizing special tokens: `input_ids` and, if asked, `offset_mapping`."""
    if not texts:
        return {"input_ids": []}
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        verbose=False,  # a document may be longer than the model's context: it is cut into blocks later
    )
