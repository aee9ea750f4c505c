"""Tokenizers in GGUF files: llama.cpp gives the same ids, and what it cannot do is refused, with and without the check."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from chatgpt_hf import load_tokenizer
from chatgpt_hf.errors import ConversionError
from chatgpt_hf.export import gguf_tokenizer
from chatgpt_hf.export.export import export_model
from chatgpt_hf.export.llama_cpp_vocabularies import known_vocabulary

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python, which compiles for minutes"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
LLAMA3 = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(gguf_tokenizer._LLAMA3), "isolated"), BYTES])
QWEN2 = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(gguf_tokenizer._QWEN2), "isolated"), BYTES])
UNKNOWN = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated"), BYTES])


def foreign(
    pre_tokenizer: Any, *, bos: bool = False, normalizer: Any = None, ignore_merges: bool = False, **token: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer as other people make them, with a special token and one that is not special."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*gguf_tokenizer.TEXTS] * 4, trainer)
    backend.add_special_tokens([AddedToken("<|user|>", **token)])
    backend.add_tokens([AddedToken("<note>")])
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def export(saved: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Exports a model with the tokenizer; returns the file."""

    def run(tokenizer: PreTrainedTokenizerBase, check: bool = False) -> Path:
        special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
        return export_model(saved("llama", tokenizer, **special), tmp_path / "out", "gguf", check=check).files[0]

    return run


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (GPT2, False, "gpt-2"),
        (DIGITS, False, "smollm"),
        (LLAMA3, False, "smaug-bpe"),
        (LLAMA3, True, "llama-bpe"),
        (QWEN2, False, "qwen2"),
    ],
    ids=["gpt-2", "smollm", "smaug-bpe", "llama-bpe", "qwen2"],
)
@needs_llama_cpp
def test_llama_cpp_gives_the_same_ids(
    pre_tokenizer: Any, ignore_merges: bool, name: str, export: Callable[..., Path]
) -> None:
    from llama_cpp import Llama

    tokenizer = foreign(pre_tokenizer, ignore_merges=ignore_merges)
    model = Llama(str(export(tokenizer, check=True)), vocab_only=True, verbose=False)
    assert model.metadata["tokenizer.ggml.pre"] == name
    texts = st.lists(st.sampled_from([" ", "    ", "\n", "\t", "1", "23", "½", "x", "Hi", "'s", "é", "你", "<note>"]))
    characters = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)

    def check(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert model.tokenize(text.encode(), add_bos=False, special=False) == ids

    given(st.one_of(texts.map("".join), characters))(settings(max_examples=300)(check))()
    chat = "<s><|user|>\n  12 cats</s> <note>"
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    assert model.tokenize(chat.encode(), add_bos=False, special=True) == ids


def test_the_file_says_where_bos_stands(export: Callable[..., Path]) -> None:
    fields = read(export(foreign(DIGITS, bos=True)))
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (0, 1)


def test_a_tokenizer_that_puts_no_bos_has_one_all_the_same(export: Callable[..., Path]) -> None:
    fields = read(export(foreign(DIGITS)))
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.bos_token_id"]) == (False, 0)


def test_a_tokenizer_without_bos_has_none_in_the_file(export: Callable[..., Path]) -> None:
    tokenizer = foreign(QWEN2)
    tokenizer.bos_token = None
    fields = read(export(tokenizer))
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.bos_token_id" not in fields


def test_types_of_the_tokens(export: Callable[..., Path]) -> None:
    tokenizer = foreign(DIGITS)
    fields = read(export(tokenizer))
    types = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    # 1 is a normal token, 3 a special one, 4 one that is found in any text.
    assert [types[token] for token in ("<s>", "</s>", "<|user|>", "<note>", "Ġ", "1")] == [3, 3, 3, 4, 1, 1]


def twice_bos() -> PreTrainedTokenizerFast:
    tokenizer = foreign(GPT2)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (lambda: foreign(UNKNOWN), "a `pre_tokenizer` that llama.cpp does not know"),
        (lambda: foreign(DIGITS, ignore_merges=True), "a `pre_tokenizer` that llama.cpp does not know"),
        (lambda: foreign(pre_tokenizers.ByteLevel()), "a `pre_tokenizer` that llama.cpp does not know"),
        (lambda: foreign(GPT2, normalizer=normalizers.NFKC()), r"has a `normalizer` \(NFKC\)"),
        (lambda: foreign(GPT2, rstrip=True), r"cannot express `rstrip` of the token '<\|user\|>'"),
        (twice_bos, r"`post_processor` puts \[0, 0\] before it"),
    ],
    ids=["unknown", "ignore_merges", "prefix space", "normalizer", "rstrip", "two marks"],
)
def test_what_llama_cpp_does_not_know_is_refused_without_the_check_too(
    tokenizer: Callable[[], PreTrainedTokenizerBase], words: str, export: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=words):
        export(tokenizer(), check=False)
    assert not (tmp_path / "out").exists()


@needs_llama_cpp
def test_a_normalizer_that_composes_is_said(export: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp's own converter ignores it too: all Qwen models have it."""
    export(foreign(QWEN2, normalizer=normalizers.NFC()), check=True)
    assert "give llama.cpp composed text" in caplog.text


def test_known_vocabularies_are_recognized_by_their_ids(shared_data: Path) -> None:
    assert known_vocabulary(load_tokenizer(shared_data / "gpt2_tokenizer")) == "gpt-2"
    assert known_vocabulary(foreign(GPT2)) is None


@needs_llama_cpp
def test_a_wrong_type_of_a_token_is_found_out(export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    content = gguf_tokenizer._content

    def forgetful(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        changed = content(tokenizer)
        return {**changed, "added_tokens": [token for token in changed["added_tokens"] if token["special"]]}

    monkeypatch.setattr(gguf_tokenizer, "_content", forgetful)
    with pytest.raises(ConversionError, match="splits text differently from the tokenizer, for example 'x<s>x"):
        export(foreign(DIGITS), check=True)


def read(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}
