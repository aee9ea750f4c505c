"""The tokenizer: a byte-level BPE trained on the user's text, with four special tokens and a ChatML template.

It is a generic fast tokenizer of `transformers`, so `AutoTokenizer.from_pretrained` loads it without any code of ours.
Data code calls `encode_documents`, `encode_texts` or `chat_templates.encode_conversation` instead of the tokenizer itself:
unlike a plain `tokenizer(text)`, they never turn text that looks like a special token into that token.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ._moved import names_of
from .errors import DataError, TokenizerError
from .text_encoding import text_encoder
from .tokenizer_folders import load_tokenizer as load_tokenizer

logger = logging.getLogger(__name__)

# Conversations were encoded here in release 0.1.
__getattr__ = names_of(__name__, "chat_templates")

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


# The first pre-tokenizer of `train_tokenizer`.
_OUR_SPLITS = [
    {"type": "Split", "pattern": {"Regex": pre_tokenization(digits)}, "behavior": "Isolated", "invert": False}
    for digits in (1, 2, 3)
]


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


def check_text(name: str, text: str) -> None:
    """Raises `DataError` if a text contains bytes that are not UTF-8; Python lets them into arguments and input."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not text: its character {error.start + 1} is not UTF-8.") from error


class DocumentMarks(NamedTuple):
    """The ids that stand before and after a plain text; both may be empty."""

    begin: list[int]
    end: list[int]


def document_marks(tokenizer: PreTrainedTokenizerBase) -> DocumentMarks:
    """Returns what the tokenizer itself puts around a text.

    Those of `train_tokenizer` put nothing there, but documents of their models begin with bos and end with eos.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    made_here = backend is not None and _pre_tokenizers(backend)[:1] in ([split] for split in _OUR_SPLITS)
    if made_here and bos is not None and bos == eos:
        return DocumentMarks([bos], [eos])
    if backend is not None and not backend.num_special_tokens_to_add(False):
        return DocumentMarks([], [])
    text = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    marked = tokenizer("a", verbose=False)["input_ids"]
    begin = next(begin for begin in range(len(marked)) if marked[begin : begin + len(text)] == text)
    return DocumentMarks(marked[:begin], marked[begin + len(text) :])


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, with_end: bool = False
) -> list[list[int]]:
    """Encodes plain texts as the model reads them: after bos if the tokenizer puts it there (`document_marks`).

    Args:
        with_end: Also put the end mark of a document after a text, if the tokenizer has documents end with one.

    Returns:
        One list of ids per text. It is empty for an empty text without a bos.
    """
    begin, end = document_marks(tokenizer)
    return [
        [*begin, *ids, *(end if with_end else [])] for ids in map(np.ndarray.tolist, _encode_plain(tokenizer, texts))
    ]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts to continue, like `encode_texts`; an empty one is bos alone, as in transformers' `generate`.

    Raises:
        TokenizerError: If a text is empty and the tokenizer has neither bos nor eos.
    """
    encoded = encode_texts(tokenizer, texts)
    if not all(encoded):
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise TokenizerError(
                "the prompt is empty, and the tokenizer has no bos token to begin with: give a prompt"
            )
        encoded = [ids or [first] for ids in encoded]
    return encoded


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encodes documents to train on; their text never becomes a special token.

    Threads may share a tokenizer for this function, but the tokenizer must not be changed meanwhile.

    Returns:
        One list of ids per document: what the tokenizer gives for the text, with bos where it puts one
        (`document_marks`), and eos.

    Raises:
        TokenizerError: If the tokenizer lacks an eos token.
    """
    return [ids.tolist() for ids in encode_document_arrays(tokenizer, texts)]


def encode_document_arrays(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Like `encode_documents`, but for large texts: returns arrays, because lists take ten times the memory."""
    begin, end = document_marks(tokenizer)
    if not end:
        if tokenizer.eos_token_id is None:
            raise TokenizerError("the tokenizer lacks an eos token, but every document ends with it")
        end = [tokenizer.eos_token_id]
    before, after = np.array(begin, np.int32), np.array(end, np.int32)
    return [np.concatenate([before, ids, after]) for ids in _encode_plain(tokenizer, texts)]


def _encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Encodes texts without adding or recognizing special tokens.

    A tokenizer needs some hundred bytes per token while it works, so long documents are cut into slices where this
    does not change the ids, and only a few slices are encoded at once.
    """
    parts: list[list[npt.NDArray[np.int32]]] = [[np.array([], np.int32)] for _ in texts]
    group: list[tuple[int, str]] = []

    def encode_group() -> None:
        pieces = [piece for _, piece in group]
        if getattr(tokenizer, "backend_tokenizer", None) is not None:
            encoded = text_encoder(tokenizer, pieces).encode(pieces)
        else:
            # `verbose`: no warning if a document exceeds the model's context: it is cut into blocks later.
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            encoded = tokenizer(pieces, **options)["input_ids"] if pieces else []
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
    return [np.concatenate(arrays) for arrays in parts]


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
    *splits, last = _pre_tokenizers(backend)
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        # A cut is never between digits.
        return _GPT2_SLICE_END if all(split["type"] == "Digits" for split in splits) else None
    return _OUR_SLICE_END if len(splits) == 1 and splits[0] in _OUR_SPLITS else None


def _pre_tokenizers(backend: Tokenizer) -> list[dict[str, Any]]:
    """The states of a tokenizer's pre-tokenizers, in order."""
    if backend.pre_tokenizer is None:
        return []
    state = json.loads(backend.pre_tokenizer.__getstate__())
    return state.get("pretokenizers", [state])
