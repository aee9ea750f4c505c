"""Prompts and completions that are too long are counted, and bits per byte divide by the bytes that were scored."""

import logging
import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.tasks.arguments import TaskArguments
from chatgpt_hf.tasks.generation.evaluation import evaluate_likelihood, scored_bytes
from chatgpt_hf.tasks.generation.task import Generation
from chatgpt_hf.tokenization_chatgpt import train_tokenizer

TEXTS = [
    "The cat sat on the mat, and the dog sat there too.",
    "北京是中国的首都，人口很多。",
    "naïve 👩‍👩‍👧 café",
    "ab",
]
LENGTHS = {"max_length": 40, "max_new_tokens": 10}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["the cat sat on the mat and the dog sat there"] * 3, 280)


@pytest.fixture(scope="module")
def model() -> Any:
    config = ChatGPTConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128
    )
    return ChatGPTForCausalLM(config).eval()


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_the_first_tokens(text: str, tokenizer: Any) -> None:
    """As many as the decoded tokens have; a part of a character does not count."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for number in range(len(ids) + 2):
        kept = tokenizer.decode(ids[:number], clean_up_tokenization_spaces=False).rstrip("�")
        assert scored_bytes(tokenizer, text, number) == len(kept.encode()), number


def test_cut_completions_have_the_bits_of_what_was_scored(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Dataset.from_dict({"prompt": ["Q\n"] * 4, "completion": TEXTS})
    with caplog.at_level(logging.WARNING):
        found = evaluate_likelihood(model, tokenizer, rows, data="x", progress=False, **LENGTHS)
    measure = found.measures["bits_per_byte"]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in TEXTS]
    assert sum(length > 10 for length in lengths) == 3
    assert measure.statistics[:3, 1].tolist() == [scored_bytes(tokenizer, text, 10) for text in TEXTS[:3]]
    assert measure.statistics[3, 1] == 2
    # A model that knows nothing needs about as many bits for each byte, cut or not. Dividing by all bytes gave a third.
    short = evaluate_likelihood(
        model, tokenizer, rows, data="x", progress=False, max_length=128, max_new_tokens=90
    ).measures["bits_per_byte"]
    each = [float(m.statistics[0, 0] / m.statistics[0, 1] / math.log(2)) for m in (measure, short)]
    assert each[0] == pytest.approx(each[1], rel=0.25)
    assert found.settings == {**LENGTHS, "cut_prompts": 0, "cut_completions": 3}
    assert "3 of 4 completions were cut at --max_new_tokens 10: perplexity and bits per byte are of" in caplog.text
    assert np.isfinite(measure.value)


def test_training_counts_what_it_cuts(tokenizer: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        "prompt,completion\n" + "long " * 40 + ",yes\nshort,no\nthird," + "no " * 30 + "\n", encoding="utf-8"
    )
    task = Generation(
        TaskArguments(
            task="text-generation", dataset=[str(file)], test_fraction=0.0, eval_dataset=str(file), **LENGTHS
        ),
        0,
    )
    with caplog.at_level(logging.WARNING):
        rows = task.tokenize(task.train, tokenizer)
    assert "1 of 3 prompts were cut to 30 tokens (--max_length 40 less --max_new_tokens 10)" in caplog.text
    assert "1 of 3 completions were cut at --max_new_tokens 10: the model learns only their beginning" in caplog.text
    assert set(rows.column_names) == {"input_ids", "labels", "position_ids"}
