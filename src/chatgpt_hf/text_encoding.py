"""Encodes text whose special tokens are known, so that text which only looks like a special token never becomes one.

transformers' `split_special_tokens` cannot do this: with it, no special token is recognized. Cutting the text at its special
tokens and encoding the pieces gives other ids for many tokenizers: Metaspace puts a space only before the first piece, and
added tokens may take the white space around them. So here the whole text is encoded at once, by a copy of the tokenizer in
which single private-use characters stand for the special tokens.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from .errors import DataError, TokenizerError, one_line

_PRIVATE_USE = range(0xF0000, 0x10FFFE)
_PRIVATE_USE_CHARACTER = re.compile(f"[{chr(_PRIVATE_USE[0])}-{chr(_PRIVATE_USE[-1])}]")


class TextEncoder:
    """A copy of a fast tokenizer that recognizes stand-ins instead of special tokens; it is never changed.

    So several threads can use it, while the tokenizer itself keeps flags between calls.

    Attributes:
        stand_ins: The character for each special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first: int) -> None:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        specials = [token for token in state["added_tokens"] if token["special"]]
        self.stand_ins = {token["content"]: chr(first + number) for number, token in enumerate(specials)}
        ids = {self.stand_ins[token["content"]]: token["id"] for token in specials}
        for token in specials:
            token["content"] = self.stand_ins[token["content"]]
        _rename(state["model"], self.stand_ins)
        # A post-processor adds special tokens or trims offsets, and neither is wanted.
        self._backend = Tokenizer.from_str(
            json.dumps({**state, "post_processor": None, "truncation": None, "padding": None})
        )
        # The copy may number tokens beyond the vocabulary differently.
        self._ids = {self._backend.token_to_id(stand_in): index for stand_in, index in ids.items()}
        if all(copied == index for copied, index in self._ids.items()):
            self._ids = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts in which stand-ins mark the special tokens; adds none."""
        with clear_errors():
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self.ids(encoding) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns ids, and the range of characters of each, both (seq,)."""
        with clear_errors():
            encoding = self._backend.encode(text, add_special_tokens=False)
        return self.ids(encoding), encoding.offsets

    def ids(self, encoding: Encoding) -> list[int]:
        ids = encoding.ids
        return [self._ids.get(index, index) for index in ids] if self._ids else ids


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns what the tokenizers library raises for a text into a `TokenizerError`.

    It panics, which is no `Exception`, where a regular expression of tokenizer.json would need exponential time; and raises
    a bare `Exception` where a vocabulary has neither a character nor a token for unknown ones.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"the tokenizer cannot encode a text: {one_line(error)}") from error


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Renames special tokens in a vocabulary, so that text cannot be matched with their entries; ids stay the same."""
    vocab = model.get("vocab")
    # A token that BPE makes of others must keep its name; this is unusual for a special one.
    made = {
        "".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1) for merge in model.get("merges", ())
    }
    names = {name: stand_in for name, stand_in in names.items() if name not in made}
    if isinstance(vocab, dict):
        for name in names.keys() & vocab.keys():
            vocab[names[name]] = vocab.pop(name)
    elif isinstance(vocab, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


# For each tokenizer its state and its encoders by range.
_ENCODERS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, dict[int, TextEncoder]]] = WeakKeyDictionary()


def text_encoder(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> TextEncoder:
    """Returns an encoder of a fast tokenizer, whose stand-ins do not occur in the texts.

    Encoders are kept, and made again if the tokenizer was changed.

    Raises:
        DataError: If the texts leave no private-use characters.
    """
    backend = tokenizer.backend_tokenizer
    state = (
        id(backend),
        backend.get_vocab_size(),
        [(index, token.__getstate__()) for index, token in backend.get_added_tokens_decoder().items()],
        *(part.__getstate__() for part in (backend.normalizer, backend.pre_tokenizer) if part is not None),
    )
    kept = _ENCODERS.get(tokenizer)
    if kept is None or kept[0] != state:
        kept = _ENCODERS[tokenizer] = (state, {})
    first = _unused(texts, width=sum(token.special for token in backend.get_added_tokens_decoder().values()))
    if first not in kept[1]:
        # A further one is only for texts with private-use characters: keep the common one, and the latest.
        for other in list(kept[1])[1:]:
            del kept[1][other]
        kept[1][first] = TextEncoder(tokenizer, first)
    return kept[1][first]


def _unused(texts: Iterable[str], width: int) -> int:
    """Returns the first of so many successive private-use characters that are not in the texts."""
    used = {ord(character) for text in texts for character in _PRIVATE_USE_CHARACTER.findall(text)}
    width = max(width, 1)
    for first in range(_PRIVATE_USE[0], _PRIVATE_USE[-1] - width, width):
        if not used or used.isdisjoint(range(first, first + width)):
            return first
    raise DataError("the text contains nearly all private-use characters of Unicode, so it cannot be encoded safely")
