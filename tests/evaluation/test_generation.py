"""Completions of many prompts, compared with `model.generate` on one after another."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation import generation
from chatgpt_hf.evaluation.generation import Completion, generate_completions


def random_model(tokenizer: Any, positions: str = "rope", size: int = 40) -> Any:
    """Returns a model whose greedy answers do not repeat one token."""
    torch.manual_seed(1)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=size,
        position_embedding_type=positions,
        tie_word_embeddings=False,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ChatGPTForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return random_model(tokenizer, size=128)


def completions(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> list[Completion]:
    options = {"max_new_tokens": 12, "batch_size": 8, "progress": False, "desc": "Test", "do_sample": False, **options}
    return generate_completions(model, tokenizer, prompts, **options)


def alone(model: Any, prompt: list[int], limit: int, **options: Any) -> list[int]:
    """Returns the completion of one prompt without padding, including the end mark if there is one."""
    ids = torch.tensor([prompt])
    room = min(limit, model.config.max_position_embeddings - len(prompt))
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False, **options)
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_batches_change_nothing(batch_size: int, positions: str, tokenizer: Any) -> None:
    model = random_model(tokenizer, positions)
    # The last prompts leave room for 12, 3, 3, 1 and 0 tokens.
    lengths = [7, 2, 19, 5, 11, 28, 37, 37, 39, 40, 55]
    prompts = [torch.randint(4, len(tokenizer), (length,)).tolist() for length in lengths]
    found = completions(model, tokenizer, prompts, batch_size=batch_size)
    for prompt, completion in zip(prompts[:9], found, strict=False):
        ids = alone(model, prompt, 12)
        ended = tokenizer.eos_token_id in ids
        ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
        assert completion == Completion(ids, tokenizer.decode(ids, skip_special_tokens=True), ended)
        assert ended or len(ids) == min(12, 40 - len(prompt))
    assert found[9:] == [Completion([], "", False)] * 2


def test_prompts_that_leave_no_room_are_counted(model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = completions(model, tokenizer, [[5] * 128, [5] * 200], noun="articles")
    assert "2 articles leave no room in the context of 128 and count as unanswered" in caplog.text
    assert found == [Completion([], "", False)] * 2


def test_end_marks(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("A cat")["input_ids"]
    (free,) = completions(model, tokenizer, [prompt], eos_token_id=None)
    assert len(free.ids) == 12
    assert not free.ended
    end = free.ids[5]
    (ended,) = completions(model, tokenizer, [prompt], eos_token_id=[end])
    assert ended.ids == free.ids[: free.ids.index(end)]
    assert ended.ended


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stop_strings_cut_where_they_begin(batch_size: int, model: Any, tokenizer: Any) -> None:
    prompts = [tokenizer(text)["input_ids"] for text in ("A cat", "The dog runs", "One small bird", "An")]
    whole = completions(model, tokenizer, prompts, eos_token_id=None, max_new_tokens=40)
    # Strings of several characters from the middle of two answers, one across a token boundary.
    stops = [whole[0].text[9:13], whole[2].text[20:25]]
    cut = completions(
        model, tokenizer, prompts, eos_token_id=None, max_new_tokens=40, batch_size=batch_size, stop=stops
    )
    for before, after in zip(whole, cut, strict=True):
        places = [place for place in map(before.text.find, stops) if place >= 0]
        assert after.text == before.text[: min(places, default=None)]
        assert after.ended == bool(places)
        assert after.ids == before.ids[: len(after.ids)]
        assert after.ended == (len(after.ids) < 40)
    assert any(completion.ended for completion in cut)


def test_a_stop_string_that_begins_in_the_prompt_does_not_count(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("A cat")["input_ids"]
    (whole,) = completions(model, tokenizer, [prompt], eos_token_id=None)
    assert whole.text
    (cut,) = completions(model, tokenizer, [prompt], eos_token_id=None, stop=["cat" + whole.text[0]])
    assert cut == whole


def test_sampling_options_reach_generate(model: Any, tokenizer: Any) -> None:
    prompts = [tokenizer("A cat")["input_ids"]] * 4
    options = {"do_sample": True, "temperature": 3.0, "eos_token_id": None}
    torch.manual_seed(0)
    first = completions(model, tokenizer, prompts, **options)
    torch.manual_seed(0)
    assert completions(model, tokenizer, prompts, **options) == first
    assert len({completion.text for completion in first}) > 1


def test_the_model_is_left_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    completions(model, tokenizer, [[5, 6]])
    assert model.training
    model.eval()


def test_a_prompt_without_tokens_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="Prompt 1 has no token"):
        completions(model, tokenizer, [[5], []])


def test_no_prompts(model: Any, tokenizer: Any) -> None:
    assert completions(model, tokenizer, []) == []


def test_the_bar_moves_with_every_token(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of long answers takes minutes: a bar that moves once a batch tells nothing."""
    bars = []

    class Bar(generation.tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.updates = 0
            bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.updates += 1
            return super().update(n)

    monkeypatch.setattr(generation, "tqdm", Bar)
    prompts = [[5, 6, 7], [8, 9], [10] * 125]
    completions(model, tokenizer, prompts, progress=True, batch_size=1, eos_token_id=None)
    (bar,) = bars
    assert bar.n == bar.total == 12 + 12 + 3
    assert bar.updates >= 27
