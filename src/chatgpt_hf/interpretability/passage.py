"""The text to explain: its ids, checked against the model, and the labels of its tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import check_tokenizer_fits, context_length
from ..errors import DataError
from ..tokenization_chatgpt import document_marks, encode_texts

_BYTES = re.compile(r"<[0-9A-F]{2}( [0-9A-F]{2})*>(=|$)")


@dataclass(frozen=True)
class Passage:
    """The tokens to explain.

    Attributes:
        ids: All tokens that the model sees.
        begin: The position of the first token after the prompt. At least 1, unless there is only one token.
        is_answer: True if the tokens from `begin` on are the model's answer to those before.
        labels: Text of each token, (tokens,); the bytes for a part of a character.
        units: Ranges `(first, end, text)` that make up the passage: one token each, or the tokens that together form one or
            several characters.
    """

    ids: tuple[int, ...]
    begin: int
    is_answer: bool
    labels: tuple[str, ...]
    units: tuple[tuple[int, int, str], ...]

    def tensor(self, model: PreTrainedModel) -> torch.Tensor:
        """Returns the ids (1, tokens) on the model's device."""
        return torch.tensor([self.ids], device=model.device)


def passage_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Passage:
    """Returns the passage of a text, which begins like a document: after bos, if the tokenizer puts it there.

    Special tokens in the text are read as plain text.

    Raises:
        DataError: If the text is empty, or longer than the model's context.
        TokenizerError: If the tokenizer does not fit the model.
    """
    (ids,) = encode_texts(tokenizer, [text])
    marks = len(document_marks(tokenizer).begin)
    if len(ids) == marks:
        raise DataError("The text is empty: there is nothing to explain. Give at least one character.")
    return _passage(model, tokenizer, ids[:marks], ids[marks:], is_answer=False)


def passage_of_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> Passage:
    """Returns the passage of a prompt and its answer.

    Raises:
        DataError: If one of them is empty, or together they are longer than the model's context.
        TokenizerError: If the tokenizer does not fit the model.
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
        raise DataError(f"The text has {len(ids)} tokens, but the model's context is {limit}: shorten it.")
    labels = tuple(token_text(tokenizer, token_id) for token_id in ids)
    begin = min(max(len(prompt_ids), 1), len(ids) - 1)
    return Passage(tuple(ids), begin, is_answer, labels, tuple(_units(tokenizer, ids, labels)))


def _units(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], labels: Sequence[str]
) -> list[tuple[int, int, str]]:
    """Joins tokens that are parts of characters if together they form characters, of at most four bytes in UTF-8."""
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
    """Returns the text of one token, or its bytes, `<F0 9F 98>`, if it is only a part of a character."""
    text = tokenizer.decode([token_id])
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        # The model's table may have more ids than the tokenizer uses.
        return f"<{token_id}>"
    if "\ufffd" in text:
        # SentencePiece has tokens like <0xE4> for single bytes.
        if fallback := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
            return f"<{fallback[1]}>"
        alphabet = _byte_alphabet()
        if all(character in alphabet for character in token):
            return f"<{' '.join(f'{alphabet[character]:02X}' for character in token)}>"
        return token
    # SentencePiece drops the leading space when it decodes a single token.
    return " " + text if token.startswith("▁") and not text.startswith(" ") else text


def visible(text: str) -> str:
    """Replaces white space by visible signs, for tables; spaces between the bytes of a part of a character stay."""
    part = _BYTES.match(text)
    end = part.end() if part else 0
    return text[:end] + text[end:].replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


@cache
def _byte_alphabet() -> dict[str, int]:
    """Returns the byte for each character in which byte-level BPE writes its tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
