"""The text that is looked at: its ids, checked against the model, and how its tokens are shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import check_tokenizer_fits, context_length
from ..errors import DataError

_BYTES = re.compile(r"<[0-9A-F]{2}( [0-9A-F]{2})*>(=|$)")


@dataclass(frozen=True)
class Passage:
    """Tokens to be looked at.

    Attributes:
        ids: All tokens that the model sees.
        begin: The place of the first token with a prompt before it. 1 or more, unless there is but one token in all.
        is_answer: Whether what begins there was said by the model, to what is before.
        labels: How each token is shown, (tokens,): a part of a character as its bytes.
        units: Places `(first, end, text)` that make up the passage: a token each, or the tokens that together are one or
            several characters.
    """

    ids: tuple[int, ...]
    begin: int
    is_answer: bool
    labels: tuple[str, ...]
    units: tuple[tuple[int, int, str], ...]

    def tensor(self, model: PreTrainedModel) -> torch.Tensor:
        """The ids (1, tokens) on the model's device."""
        return torch.tensor([self.ids], device=model.device)


def passage_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Passage:
    """A text as a document begins: after the bos token, where the tokenizer has one. It never gives a special token.

    Raises:
        DataError: When it is empty, or longer than the model's context.
        TokenizerError: When the tokenizer does not fit the model.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    if not ids:
        raise DataError("The text is empty: there is nothing to explain. Give at least one character.")
    return _passage(model, tokenizer, bos, ids, is_answer=False)


def passage_of_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> Passage:
    """A prompt and what was said to it.

    Raises:
        DataError: When one of the two is empty, or they are longer than the model's context.
        TokenizerError: When the tokenizer does not fit the model.
    """
    if not prompt_ids or not answer_ids:
        raise DataError(f"The {'answer' if prompt_ids else 'prompt'} is empty: there is nothing to explain.")
    return _passage(model, tokenizer, prompt_ids, answer_ids, is_answer=True)


def _passage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    *,
    is_answer: bool,
) -> Passage:
    check_tokenizer_fits(model, tokenizer)
    ids = [*prompt_ids, *answer_ids]
    limit = context_length(model)
    if len(ids) > limit:
        raise DataError(f"The text has {len(ids)} tokens and the model's context {limit}: shorten it.")
    labels = tuple(token_text(tokenizer, token_id) for token_id in ids)
    begin = min(max(len(prompt_ids), 1), len(ids) - 1)
    return Passage(tuple(ids), begin, is_answer, labels, tuple(_units(tokenizer, ids, labels)))


def _units(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], labels: Sequence[str]
) -> list[tuple[int, int, str]]:
    """Joins parts of characters where they form some. UTF-8 has at most four bytes for one."""
    found = []
    first = 0
    while first < len(ids):
        end, text = first + 1, labels[first]
        if "\ufffd" in tokenizer.decode([ids[first]]):
            for longer in range(first + 2, min(first + 4, len(ids)) + 1):
                joined = tokenizer.decode(ids[first:longer])
                if "\ufffd" not in joined:
                    end, text = longer, joined
                    break
        found.append((first, end, text))
        first = end
    return found


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token; one that is only a part of a character is shown as its bytes, `<F0 9F 98>`."""
    text = tokenizer.decode([token_id])
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        # Ids that the model's table has room for and the tokenizer does not use.
        return f"<{token_id}>"
    if "\ufffd" in text:
        # SentencePiece writes a byte that it has no token for as <0xE4>.
        if fallback := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
            return f"<{fallback[1]}>"
        alphabet = _byte_alphabet()
        if all(character in alphabet for character in token):
            return f"<{' '.join(f'{alphabet[character]:02X}' for character in token)}>"
        return token
    # SentencePiece: a token by itself loses the space it begins with.
    return " " + text if token.startswith("▁") and not text.startswith(" ") else text


def visible(text: str) -> str:
    """With signs for white space, to stand in a table; what separates the bytes of a part of a character is none."""
    part = _BYTES.match(text)
    end = part.end() if part else 0
    return text[:end] + text[end:].replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


@cache
def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character in which byte-level BPE writes its tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
