"""Checks of a tokenizer that somebody else may have made, before it encodes anything.

The parts of a tokenizer.json are chains of steps, and a few steps that each double a text make it longer than any memory.
"""

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import TokenizerError

# A character of Unicode becomes up to 18 in T5's normalizer, and two in that of Llama 2.
_MOST_GROWTH = 100
_MOST_STEPS = 200
# Characters in a content, and tokens around a text.
_MOST_LENGTH = 1000
# WordPiece tries each end of each part of a word. BERT has 100.
_MOST_CHARACTERS = 10_000
_MOST_PADDING = 10_000_000
_BEFORE_THE_MODEL = ("normalizer", "pre_tokenizer")
_STEPS = ("normalizers", "pretokenizers", "decoders", "processors")
# A regular expression that matches a character or more: characters, classes and escapes, each perhaps with + or {2,}.
_CONSUMES = re.compile(
    r"(?:(?:[^\\^$.|?*+()\[\]{}]|\\[sSdDwWnrtfv]|\\[^\w\s]|\\[pP]\{\^?\w+\}|\[\^?(?:[^\[\]\\^]|\\.)+\])"
    r"(?:\+|\{[1-9]\d*(?:,(?:[1-9]\d*)?)?\})?)+"
)


def check_parts(backend: Tokenizer) -> None:
    """Checks what a tokenizer does before and after its model; runs none of it.

    Args:
        backend: A tokenizer that was only parsed; its vocabulary may be empty.

    Raises:
        TokenizerError: If a part may make a text very long, has very many steps, or fails for any text.
    """
    growth = 1.0
    for part in (*_BEFORE_THE_MODEL, "post_processor"):
        growth = _grown(part, getattr(backend, part), growth)
    _grown("decoder", backend.decoder, 1.0)
    model = backend.model
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        _check_length(f"{name} of the model", getattr(model, name, None) or "")
    characters = getattr(model, "max_input_chars_per_word", 0)
    if characters > _MOST_CHARACTERS:
        raise _refusal(
            f"max_input_chars_per_word of the model is {characters:,}, and at most {_MOST_CHARACTERS:,} are possible"
        )
    padding = backend.padding or {}
    for name in ("length", "pad_to_multiple_of"):
        if (padding.get(name) or 0) > _MOST_PADDING:
            raise _refusal(f"padding asks for {padding[name]:,} tokens, and at most {_MOST_PADDING:,} are possible")


def _grown(name: str, part: Any, growth: float) -> float:
    """The times that a text may be as long after a part of a tokenizer; raises like `check_parts`."""
    if part is None:
        return growth
    added = 0
    for number, step in enumerate(_steps(json.loads(part.__getstate__()))):
        kind = step.get("type")
        where = f"{name}, {kind}"
        if number == _MOST_STEPS:
            raise _refusal(f"{name} has more than {_MOST_STEPS} steps")
        for field in ("content", "prepend"):
            _check_length(f"{field} of {where}", step.get(field) or "")
        growth *= (_BEFORE if name in _BEFORE_THE_MODEL else _AFTER).get(kind, _no_growth)(step)
        if growth > _MOST_GROWTH:
            raise _refusal(
                f"{name} may make a text more than {_MOST_GROWTH} times as long ({kind} is step {number + 1})"
            )
        added += _tokens_of(step)
        if added > _MOST_LENGTH:
            raise _refusal(f"{where} puts more than {_MOST_LENGTH:,} tokens around a text")
        # The library panics where a token has fewer characters.
        if name == "decoder" and kind == "Strip" and step["stop"] > 1:
            raise _refusal(f"stop of {where} is {step['stop']:,}, and the tokenizers library can cut off only 0 or 1")
    return growth


def _steps(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a part in their order, without the sequences around them."""
    left = [state]
    while left:
        step = left.pop()
        inner = next((step[name] for name in _STEPS if name in step), None)
        if inner is None:
            yield step
        else:
            left.extend(reversed(inner))


def _no_growth(step: dict[str, Any]) -> float:
    return 1.0


def _replaced(step: dict[str, Any]) -> float:
    # A later NFKD makes several characters of some.
    length = len(unicodedata.normalize("NFKD", step["content"]))
    pattern = step["pattern"]
    if text := pattern.get("String"):
        return max(1.0, length / len(text))
    if _CONSUMES.fullmatch(pattern.get("Regex", "")):
        return max(1.0, length)
    # It may match between any two characters.
    return 1.0 + length


def _charsmap(step: dict[str, Any]) -> float:
    """sentencepiece's table of replacements: the size of a trie, the trie, and texts that each end with a zero byte."""
    table = base64.b64decode(step.get("precompiled_charsmap") or "")
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(1.0, *(float(len(text.decode(errors="ignore"))) for text in texts.split(b"\0")))


def _templates(step: dict[str, Any]) -> float:
    """How often a template has a text; a pair has two texts."""
    counts = [sum("Sequence" in item for item in step[name]) for name in ("single", "pair")]
    return max(1.0, counts[0], counts[1] / 2)


def _split_between(field: str) -> Callable[[dict[str, Any]], float]:
    # An empty text is found between any two characters, and a space comes there.
    return lambda step: 1.0 if step.get(field) else 2.0


# By kind of step, the times that a text may be as long: before the model, and after it.
_BEFORE: dict[str | None, Callable[[dict[str, Any]], float]] = {
    "Replace": _replaced,
    "Prepend": lambda step: 1.0 + len(step["prepend"]),
    "Precompiled": _charsmap,
    # Spaces around each Chinese character.
    "BertNormalizer": lambda step: 3.0 if step.get("handle_chinese_chars") else 1.0,
    # One character for each byte.
    "ByteLevel": lambda step: 4.0,
    "Metaspace": lambda step: 2.0,
}
_AFTER: dict[str | None, Callable[[dict[str, Any]], float]] = {
    "Replace": _replaced,
    "TemplateProcessing": _templates,
    "BPEDecoder": _split_between("suffix"),
    "CTC": _split_between("word_delimiter_token"),
}


def _tokens_of(step: dict[str, Any]) -> int:
    """The number of tokens that a post-processor adds."""
    if step.get("type") != "TemplateProcessing":
        return 0
    ids = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
    items = [*step["single"], *step["pair"]]
    return sum(ids.get(item["SpecialToken"]["id"], 0) if "SpecialToken" in item else 1 for item in items)


def _check_length(where: str, text: str) -> None:
    if len(text) > _MOST_LENGTH:
        raise _refusal(f"{where} has {len(text):,} characters, and at most {_MOST_LENGTH:,} are possible")


def _refusal(reason: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.json: {reason}. Correct it, or use another tokenizer.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_length(value: Any) -> bool:
    # transformers writes 1e30 where there is no limit.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_side(value: Any) -> bool:
    return value in ("left", "right")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_tokens(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else value
    return isinstance(value, (list, dict)) and all(_is_token(token) for token in values)


def _are_added(value: Any) -> bool:
    # transformers makes a token for each id up to the largest.
    return isinstance(value, dict) and all(
        key.isdecimal() and len(key) < 8 and isinstance(token, dict) and _is_token(token)
        for key, token in value.items()
    )


def _is_template(value: Any) -> bool:
    """Text, several by name, or a list of them as transformers 4 writes it."""
    if isinstance(value, dict):
        return all(isinstance(text, str) for text in value.values())
    if isinstance(value, list):
        return all(
            isinstance(each, dict) and isinstance(each.get("name"), str) and isinstance(each.get("template"), str)
            for each in value
        )
    return isinstance(value, str)


_FLAGS = (
    *("clean_up_tokenization_spaces", "split_special_tokens", "add_bos_token", "add_eos_token"),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars"),
)
_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
# By field of tokenizer_config.json: whether a value can be used, and what it should be. Each may also be null.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "chat_template": (_is_template, "a text, several by name, or a list of objects with name and template"),
    "model_max_length": (_is_length, "a positive number"),
    "padding_side": (_is_side, "left or right"),
    "truncation_side": (_is_side, "left or right"),
    "tokenizer_class": (_is_text, "the name of a class"),
    "added_tokens_decoder": (_are_added, "an object with a token for each id"),
    "extra_special_tokens": (_are_tokens, "a list of tokens, or an object with them by name"),
    "additional_special_tokens": (_are_tokens, "a list of tokens"),
    "model_input_names": (_are_texts, "a list of names"),
    "chat_control_tokens": (_are_texts, "a list of tokens"),
    **dict.fromkeys(_FLAGS, (_is_flag, "true or false")),
    **dict.fromkeys(_TOKENS, (_is_token, "a token")),
}


def check_fields(file: Path, content: dict[str, Any]) -> None:
    """Raises `TokenizerError` for a field of a tokenizer_config.json whose value transformers cannot use."""
    for name, (fits, meant) in _FIELDS.items():
        value = content.get(name)
        if value is not None and not fits(value):
            shown = json.dumps(value)
            raise TokenizerError(f"{file}: {name} is {shown:.100}, which is not {meant}.")
