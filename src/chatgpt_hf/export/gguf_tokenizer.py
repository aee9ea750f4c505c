"""A tokenizer in a GGUF file: its vocabulary, llama.cpp's name for its pre-tokenization, and a check of both."""

import json
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import ConversionError
from ..extras import needed_by
from ..tokenization_chatgpt import document_marks, pre_tokenization
from .llama_cpp_vocabularies import known_vocabulary

logger = logging.getLogger(__name__)

# The patterns of Llama 3 and Qwen2. Vocabularies that people train for themselves often keep one of them.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# llama.cpp's names for its built-in pre-tokenizations (`llama-vocab.cpp`); none has groups of two digits.
_PATTERNS = {pre_tokenization(1): "qwen2", _QWEN2: "qwen2", pre_tokenization(3): "smaug-bpe", _LLAMA3: "smaug-bpe"}
# The same with `ignore_merges`: a word that is a token is never made of others.
_IGNORING_MERGES = {"smaug-bpe": "llama-bpe"}
# BPE options of Hugging Face's tokenizers that llama.cpp does not support.
_BPE_OPTIONS = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
# Flags of an added token that make it swallow the white space around it, or that keep it from being found.
_TOKEN_FLAGS = ("lstrip", "rstrip", "single_word")
# A tag that only training needs and only transformers knows; a comment in its place keeps the whitespace control.
_GENERATION_TAG = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
# The check compares how both tokenizers split these texts.
TEXTS = (
    "Once upon a time, in 1234567 days: it's 12 345!\n\n\n  Tabs\there",
    "2024年11月27日 你好，世界！ 🎉 naïve cafe\u0301",
    "def f(x):\n    if x > 10:\n\t\treturn [1, 22, 333, 4444]\n        # done\n    \n\n  \n",
    " 3.14 -2 1e10 0x1F 1,000,000 ½ ² Ⅷ ١٢٣ 12th v2.0.1 2024-11-27T10:00:00Z",
    "I've WE'LL they'Re 'tis rock'n'roll don’t \u00a0nbsp\u3000wide   three    four     five\r\n\r\nend  ",
    'snake_case camelCase <b>x</b> a+=b;// ...!!! ### --- ======= `code` "quoted" (see: http://x.y/z?q=1&r=%20)',
)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ConversionError` if llama.cpp would split text differently from the tokenizer, as far as its parts tell."""
    content = _content(tokenizer)
    _pre_tokenization_name(tokenizer, content)
    for token in content["added_tokens"]:
        if flags := [flag for flag in _TOKEN_FLAGS if token[flag]]:
            raise ConversionError(
                f"llama.cpp cannot express `{flags[0]}` of the token {token['content']!r}: it takes white space around a "
                "token as text. Set the flag to false in tokenizer.json, and check the model's answers."
            )
    _begins_with_bos(tokenizer)


def check_ids(tokenizer: PreTrainedTokenizerBase, found: Mapping[str, Sequence[int]]) -> None:
    """Compares llama.cpp's ids of every text in `texts_to_check` with the tokenizer's.

    Raises:
        ConversionError: If they differ; quotes the text.
    """
    for index, (text, expected) in enumerate(texts_to_check(tokenizer)):
        if list(found[f"text{index}"]) != expected:
            raise ConversionError(
                f"llama.cpp splits text differently from the tokenizer, for example {text!r}. Nothing was written."
            )


def texts_to_check(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int]]]:
    """Texts and the ids that the tokenizer gives them: `TEXTS`, and one that contains its special tokens."""
    normalizes = bool(_content(tokenizer).get("normalizer"))
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    texts = [*TEXTS, "x".join(["", *added[:64], " y 12"])]
    # The file cannot normalize, so the texts have to be as the normalizer leaves them.
    texts = [unicodedata.normalize("NFC", text) if normalizes else text for text in texts]
    return [(text, list(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Adds the byte-level BPE, padded to the model's number of tokens, and the chat template.

    Args:
        writer: A `gguf.GGUFWriter`.
        tokenizer: It must have passed `check_tokenizer`.
        size: The model's number of tokens.
    """
    with needed_by("A GGUF file"):
        import gguf

    content = _content(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenization_name(tokenizer, content))
    tokens = {index: token for token, index in content["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([types.get(index, gguf.TokenType.UNUSED) for index in range(size)])
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_space_prefix(False)
    for name in ("bos", "pad", "unk"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    # Written even if false: llama.cpp has a default for every pre-tokenization. Nobody continues a text behind its end mark.
    writer.add_add_bos_token(_begins_with_bos(tokenizer))
    writer.add_add_eos_token(False)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        named = template.items()
        writer.add_chat_template([{"name": name, "template": _plain(text)} for name, text in named])
    elif template is not None:
        writer.add_chat_template(_plain(template))


def _plain(template: str) -> str:
    """Replaces the tag that only transformers knows by a comment, which keeps its whitespace control."""
    return _GENERATION_TAG.sub(r"{#\1 \2#}", template)


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns True if every command puts bos before a plain text.

    Raises:
        ConversionError: If a text gets other marks than bos and eos.
    """
    begin, end = document_marks(tokenizer)
    if begin not in ([], [tokenizer.bos_token_id]) or end not in ([], [tokenizer.eos_token_id]):
        raise ConversionError(
            f"llama.cpp puts at most bos before a text, but the tokenizer's `post_processor` puts {begin} before it and {end} "
            "behind it."
        )
    return bool(begin)


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Returns the content of tokenizer.json.

    Raises:
        ConversionError: If the tokenizer is not a byte-level BPE.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    if content["model"].get("type") != "BPE" or any(content["model"].get(option) for option in _BPE_OPTIONS):
        raise ConversionError(
            "Export to llama.cpp needs a byte-level BPE, such as chatgpt-hf tokenizer train makes; this tokenizer is different."
        )
    return content


def _pre_tokenization_name(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any]) -> str:
    """Returns llama.cpp's name for the tokenizer's pre-tokenization.

    Raises:
        ConversionError: If it has none.
    """
    normalizer = content.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise ConversionError(
            f"llama.cpp does not normalize text, but the tokenizer has a `normalizer` ({normalizer.get('type')})."
        )
    # The parts are looked at first: two pre-tokenizations may give the text behind the hash the same ids.
    name = _name_of_parts(content) or known_vocabulary(tokenizer)
    if name is None:
        raise ConversionError(
            "The tokenizer has a `pre_tokenizer` that llama.cpp does not know, neither by its parts nor by its vocabulary: "
            "export supports those of GPT-2, SmolLM, Llama 3, Qwen2 and the other models in llama.cpp's own table, and those "
            "of chatgpt-hf tokenizer train --max_digits 1 or 3."
        )
    if normalizer:
        logger.warning(
            "llama.cpp does not normalize text, but the tokenizer composes characters (NFC): give llama.cpp composed text."
        )
    return name


def _name_of_parts(content: dict[str, Any]) -> str | None:
    """The name for a pre-tokenization whose parts are those of one of llama.cpp's; None for any other.

    Raises:
        ConversionError: If it is ours with groups of two digits, which llama.cpp does not have.
    """
    pre = content.get("pre_tokenizer") or {}
    *splits, last = pre.get("pretokenizers", [pre])
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    name = None
    if last["use_regex"]:
        digits = {"type": "Digits", "individual_digits": True}
        name = "gpt-2" if not splits else "smollm" if splits == [digits] else None
    elif len(splits) == 1 and splits[0].items() >= {"type": "Split", "behavior": "Isolated", "invert": False}.items():
        pattern = splits[0]["pattern"].get("Regex")
        if pattern == pre_tokenization(2):
            raise ConversionError(
                "llama.cpp cannot split digits in groups of two, like this tokenizer. Train a tokenizer with "
                "chatgpt-hf tokenizer train --max_digits 1 or 3, and the model with it."
            )
        name = _PATTERNS.get(pattern)
    if content["model"].get("ignore_merges"):
        return _IGNORING_MERGES.get(name or "")
    return name
