"""Scores of text, compared with scoring one token at a time after all tokens before it."""

import lzma
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.evaluation.language_modeling import (
    LanguageModelingResult,
    evaluate_language_modeling,
    scoring_windows,
    window_and_stride,
    xz_bits_per_byte,
)
from chatgpt_hf.tokenization_chatgpt import encode_documents

TEXTS = ["The cat sits.", "你好 👍🏽", "x", "One small bird runs around the garden, red.\n"]
LONG = "An old horse looks at the river and the dog. " * 6
CONTEXT = 40


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(params=["rope", "learned"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> ChatGPTForCausalLM:
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        position_embedding_type=request.param,
        initializer_range=0.3,
        residual_dropout=0.5,
    )
    return ChatGPTForCausalLM(config)


@torch.no_grad()
def naive(model: ChatGPTForCausalLM, ids: list[int], first_seen: dict[int, int]) -> float:
    """Returns -log p of each token but the first, given `ids[first_seen[i]:i]`, by one forward pass each."""
    total = 0.0
    for index in range(1, len(ids)):
        seen = ids[first_seen[index] : index]
        assert len(seen) < CONTEXT
        total -= model.eval()(input_ids=torch.tensor([seen])).logits[0, -1].log_softmax(-1)[ids[index]].item()
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_short_texts_are_scored_in_full_context(model: Any, tokenizer: Any, batch_size: int) -> None:
    documents = encode_documents(tokenizer, TEXTS)
    assert max(map(len, documents)) <= CONTEXT
    expected = sum(naive(model, ids, dict.fromkeys(range(len(ids)), 0)) for ids in documents)
    result = evaluate_language_modeling(model, tokenizer, TEXTS, batch_size=batch_size, progress=False)
    assert result.negative_log_likelihood == pytest.approx(expected, rel=1e-5)
    assert result.tokens == sum(len(ids) - 1 for ids in documents)
    assert result.bytes == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("stride", [None, 1, 7, CONTEXT - 1])
def test_long_texts_are_scored_in_the_documented_windows(model: Any, tokenizer: Any, stride: int | None) -> None:
    (ids,) = encode_documents(tokenizer, [LONG])
    assert len(ids) > 3 * CONTEXT
    step = CONTEXT // 2 if stride is None else stride
    # The first window scores all of its tokens; each later one begins `step` tokens further.
    first_seen = {}
    for index in range(1, len(ids)):
        later = max(0, math.ceil((index + 1 - CONTEXT) / step))
        first_seen[index] = later * step
        assert index < CONTEXT or index - first_seen[index] >= CONTEXT - step, "the context that is promised"
    result = evaluate_language_modeling(model, tokenizer, [LONG, TEXTS[0]], stride=stride, progress=False)
    (short,) = encode_documents(tokenizer, [TEXTS[0]])
    expected = naive(model, ids, first_seen) + naive(model, short, dict.fromkeys(range(len(short)), 0))
    assert result.negative_log_likelihood == pytest.approx(expected, rel=1e-5)
    assert result.tokens == len(ids) + len(short) - 2


@given(st.integers(1, 200), st.integers(2, 40), st.data())
def test_windows_score_each_token_once(length: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size - 1))
    scored = []
    for start, end, first in scoring_windows(length, size, stride):
        assert 0 <= start < first <= max(end, 1)
        assert end - start <= size
        scored += range(first, end)
        assert start == 0 or first - start >= size - stride
    assert scored == list(range(1, length))


def test_padding_makes_no_difference(model: Any, tokenizer: Any, base_folder: Path) -> None:
    expected = evaluate_language_modeling(model, tokenizer, TEXTS, progress=False)
    other = AutoTokenizer.from_pretrained(base_folder, padding_side="left")
    other.pad_token = None
    assert_allclose(evaluate_language_modeling(model, other, TEXTS, progress=False).nats, expected.nats, rtol=0)


def test_the_model_is_left_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    first = evaluate_language_modeling(model, tokenizer, TEXTS, progress=False)
    assert model.training
    again = evaluate_language_modeling(model, tokenizer, TEXTS, progress=False)
    assert_allclose(again.nats, first.nats, rtol=0, err_msg="dropout was on")
    model.eval()
    evaluate_language_modeling(model, tokenizer, TEXTS, progress=False)
    assert not model.training


def test_arithmetic() -> None:
    nats = np.array([5, 3]) * math.log(2)
    result = LanguageModelingResult(nats, document_tokens=np.array([3, 1]), document_bytes=np.array([1, 1]))
    assert result.bits_per_byte == pytest.approx(4)
    assert result.perplexity == pytest.approx(4)
    values = {name: measure.value for name, measure in result.measures().items()}
    assert values == pytest.approx(
        {
            "bits_per_byte": 4,
            "perplexity": 4,
            "nats_per_token": 2 * math.log(2),
            "nats_per_byte": 4 * math.log(2),
        }
    )
    assert result.as_dict() == {"bits_per_byte": result.bits_per_byte, "perplexity": result.perplexity, "tokens": 4}


def test_a_model_that_knows_nothing_needs_all_the_bits(tokenizer: Any) -> None:
    config = ChatGPTConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = ChatGPTForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    result = evaluate_language_modeling(model, tokenizer, TEXTS, progress=False)
    assert result.perplexity == pytest.approx(len(tokenizer), rel=1e-4)


def test_xz() -> None:
    seen, new = ["abc" * 50, "something else"], ["abc" * 50, "äöü"]

    def size(texts: list[str]) -> int:
        return len(lzma.compress("\n\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME))

    bits = 8 * (size([*seen, *new]) - size(seen))
    assert xz_bits_per_byte(seen, new) == bits / (150 + 6)
    assert xz_bits_per_byte(iter(seen), iter(new)) == bits / (150 + 6)
    # Text that it has seen costs next to nothing.
    assert xz_bits_per_byte(["".join(map(chr, range(40, 120)))] * 3, ["".join(map(chr, range(40, 120)))]) < 1


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_score(texts: list[str], model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no held-out text"):
        evaluate_language_modeling(model, tokenizer, texts, progress=False)


@pytest.mark.parametrize("stride", [0, -1, CONTEXT])
def test_strides_that_leave_a_token_without_context(stride: int, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=rf"stride is {stride} and the model's context {CONTEXT}: give 1 to 39"):
        evaluate_language_modeling(model, tokenizer, TEXTS, stride=stride, progress=False)


def test_a_window_that_is_chosen(model: Any, tokenizer: Any) -> None:
    """A model that sees 24 tokens at a time scores like one whose context is 24."""
    (ids,) = encode_documents(tokenizer, [LONG])
    first_seen = {}
    for index in range(1, len(ids)):
        later = max(0, math.ceil((index + 1 - 24) / 10))
        first_seen[index] = later * 10
    result = evaluate_language_modeling(model, tokenizer, [LONG], window=24, stride=10, progress=False)
    assert result.negative_log_likelihood == pytest.approx(naive(model, ids, first_seen), rel=1e-5)


@pytest.mark.parametrize(
    ("context", "window", "stride", "expected"),
    [
        (256, None, None, (256, 128)),
        (2048, None, None, (2048, 1024)),
        (8192, None, None, (2048, 1024)),
        (131_072, None, 512, (2048, 512)),
        (131_072, 8192, None, (8192, 4096)),
        # Mamba names no limit.
        (None, None, None, (2048, 1024)),
    ],
)
def test_windows_of_long_contexts(
    context: int | None, window: int | None, stride: int | None, expected: tuple[int, int]
) -> None:
    config = SimpleNamespace(max_position_embeddings=context)
    model: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    assert window_and_stride(model, window, stride) == expected


@pytest.mark.parametrize("window", [0, 1, CONTEXT + 1])
def test_windows_that_do_not_fit(window: int, model: Any, tokenizer: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"window is {window} and the model's context {CONTEXT}: give 2 to 40 tokens"
    ):
        evaluate_language_modeling(model, tokenizer, TEXTS, window=window, progress=False)
    with pytest.raises(ConfigError, match="stride is 20 and the window 20: give 1 to 19"):
        evaluate_language_modeling(model, tokenizer, TEXTS, window=20, stride=20, progress=False)
