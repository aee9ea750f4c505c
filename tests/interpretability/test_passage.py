"""Valid passages, and the labels of their tokens."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from chatgpt_hf.errors import DataError, TokenizerError
from chatgpt_hf.interpretability.passage import passage_of_answer, passage_of_text, token_text, visible
from chatgpt_hf.interpretability.surprise import token_probabilities


@pytest.fixture(scope="module")
def both(chat_folder: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(chat_folder), AutoTokenizer.from_pretrained(chat_folder)


def test_a_text(both: tuple) -> None:
    model, tokenizer = both
    passage = passage_of_text(model, tokenizer, "A cat sits.")
    assert passage.ids[0] == tokenizer.bos_token_id
    assert (passage.begin, passage.is_answer) == (1, False)
    assert "".join(passage.labels[1:]) == "A cat sits."
    assert "".join(text for _, _, text in passage.units[1:]) == "A cat sits."
    # A special token in the text is read as plain text.
    assert tokenizer.eos_token_id not in passage_of_text(model, tokenizer, tokenizer.eos_token).ids[1:]


@pytest.mark.parametrize("text", ["🦥", "a🦥龘b", "x 🦥🦥"])
def test_parts_of_characters(both: tuple, text: str) -> None:
    model, tokenizer = both
    passage = passage_of_text(model, tokenizer, text)
    # Labels are each token's bytes; tokens that together form a character make a unit with this character.
    assert "".join(unit for _, _, unit in passage.units[1:]) == text
    places = [place for first, end, _ in passage.units for place in range(first, end)]
    assert places == list(range(len(passage.ids)))
    first, end = next((first, end) for first, end, unit in passage.units if "🦥" in unit)
    assert end - first > 1
    hexadecimal = " ".join(label[1:-1] for label in passage.labels[first:end])
    assert bytes.fromhex(hexadecimal).decode() == "🦥"
    # An incomplete character stays bytes.
    alone = passage_of_answer(model, tokenizer, passage.ids[:1], passage.ids[first : first + 1])
    assert alone.units[1][2] == passage.labels[first]


def test_visible() -> None:
    assert visible(" a b\n\t") == "␣a␣b↵⇥"
    # The spaces between a token's bytes are not spaces of the text.
    assert visible("<F0 9F>") == "<F0 9F>"
    assert visible("<A6 A5>=🦥 ") == "<A6 A5>=🦥␣"
    assert visible("<F0 is> ") == "<F0␣is>␣"


def test_sentencepiece_bytes() -> None:
    vocabulary = {"a": 0, "▁b": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    inner = Tokenizer(BPE(vocabulary, [], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    ids = tokenizer.encode("你", add_special_tokens=False)
    assert [token_text(tokenizer, token_id) for token_id in ids] == ["<E4>", "<BD>", "<A0>"]


def test_one_token(both: tuple) -> None:
    model, tokenizer = both
    token_id = tokenizer.encode("A", add_special_tokens=False)[0]
    passage = passage_of_answer(model, tokenizer, [tokenizer.bos_token_id], [token_id])
    assert (len(passage.ids), passage.begin) == (2, 1)
    (token,) = token_probabilities(model, tokenizer, passage.ids[:1], passage.ids[1:])
    assert token.token_id == token_id


def test_mistakes(both: tuple) -> None:
    model, tokenizer = both
    with pytest.raises(DataError, match="empty"):
        passage_of_text(model, tokenizer, "")
    with pytest.raises(DataError, match="answer is empty"):
        passage_of_answer(model, tokenizer, [1], [])
    with pytest.raises(DataError, match="prompt is empty"):
        passage_of_answer(model, tokenizer, [], [1])
    with pytest.raises(DataError, match=r"but the model's context is 128: shorten it"):
        passage_of_text(model, tokenizer, "word " * 200)
    small = AutoModelForCausalLM.from_pretrained(model.name_or_path)
    small.resize_token_embeddings(20)
    with pytest.raises(TokenizerError):
        passage_of_text(small, tokenizer, "A")
