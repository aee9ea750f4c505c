"""Heads and their Auto classes."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import TINY, VOCAB, gradients_of, some_ids
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.model.modeling_chatgpt import (
    ChatGPTForQuestionAnswering,
    ChatGPTForSequenceClassification,
    ChatGPTForTokenClassification,
    ChatGPTModel,
)


@pytest.mark.works_with(
    "transformers", "the Auto classes of every head: made, trained, saved, loaded", ("transformers",)
)
@pytest.mark.parametrize(
    ("auto_class", "model_class", "labels", "shape"),
    [
        (AutoModel, ChatGPTModel, {}, (2, 12, 32)),
        (AutoModelForCausalLM, ChatGPTForCausalLM, {"labels": some_ids()}, (2, 12, VOCAB)),
        (
            AutoModelForSequenceClassification,
            ChatGPTForSequenceClassification,
            {"labels": torch.tensor([0, 2])},
            (2, 3),
        ),
        (AutoModelForTokenClassification, ChatGPTForTokenClassification, {"labels": some_ids() % 3}, (2, 12, 3)),
        (
            AutoModelForQuestionAnswering,
            ChatGPTForQuestionAnswering,
            {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
            (2, 12),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_head_through_its_auto_class(
    auto_class: type, model_class: type, labels: dict[str, torch.Tensor], shape: tuple[int, ...], tmp_path: Path
) -> None:
    config = ChatGPTConfig(**TINY, num_labels=3, pad_token_id=0)
    model = auto_class.from_config(config).eval()
    assert type(model) is model_class
    assert getattr(sys.modules["transformers"], model_class.__name__) is model_class
    model.save_pretrained(tmp_path)
    again, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [model_class.__name__]
    with torch.no_grad():
        found, expected = again(some_ids(), **labels), model(some_ids(), **labels)
    assert tuple(found[1 if labels else 0].shape) == shape
    for one, other in zip(found.to_tuple(), expected.to_tuple(), strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
    if labels:
        model.train()
        model(some_ids(), **labels).loss.backward()
        assert all(gradient is not None for gradient in gradients_of(model).values())


def test_transformers_has_the_classes_whenever_it_was_imported() -> None:
    # While it is imported, transformers puts a second module of its name in place: what was imported before and what
    # is imported after are not the same, and libraries look architectures up in either.
    script = """
import transformers
import chatgpt_hf
early = transformers
import transformers
for module in (early, transformers):
    assert module.ChatGPTForCausalLM is chatgpt_hf.ChatGPTForCausalLM
    assert module.ChatGPTConfig is chatgpt_hf.ChatGPTConfig
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_sequence_is_scored_by(side: str, pooling: str) -> None:
    config = ChatGPTConfig(**TINY, num_labels=3, pad_token_id=0, classifier_pooling=pooling)
    model = ChatGPTForSequenceClassification(config).eval()
    ids = some_ids(1, 6)
    padded = nn.functional.pad(ids, (3, 0) if side == "left" else (0, 3))
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        alone = model.score(hidden[:, -1] if pooling == "last" else hidden.mean(1))
        batch = model(padded, attention_mask=padded.ne(0).long()).logits
        torch.testing.assert_close(model(ids).logits, alone, rtol=0, atol=1e-4)
        torch.testing.assert_close(batch, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_may_hold_the_pad_token(side: str) -> None:
    model = ChatGPTForSequenceClassification(ChatGPTConfig(**TINY, num_labels=3, pad_token_id=0)).eval()
    ids = some_ids(1, 6).clone()
    ids[0, 2] = ids[0, -1] = 0
    pad = (3, 0) if side == "left" else (0, 3)
    padded, mask = nn.functional.pad(ids, pad), nn.functional.pad(torch.ones_like(ids), pad)
    with torch.no_grad():
        body = model.model(ids).last_hidden_state[:, -1]
        batch = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(batch, model.score(body), rtol=0, atol=1e-4)


def test_a_batch_without_a_pad_token_needs_a_mask() -> None:
    model = ChatGPTForSequenceClassification(ChatGPTConfig(**TINY, num_labels=3, pad_token_id=None)).eval()
    ids = some_ids(2, 6)
    with pytest.raises(ValueError, match=r"attention_mask.*pad_token_id"):
        model(ids)
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 3)


def test_every_head_names_what_it_takes() -> None:
    # `Trainer` drops the columns that a signature does not name.
    for head in (ChatGPTForCausalLM, ChatGPTForSequenceClassification, ChatGPTForTokenClassification):
        named = inspect.signature(head.forward).parameters
        assert {"input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels"} <= set(
            named
        )
    model = ChatGPTForSequenceClassification(ChatGPTConfig(**TINY, num_labels=3, pad_token_id=0)).eval()
    embeds = model.get_input_embeddings()(some_ids())
    positions = torch.arange(12).flip(0)[None]
    with torch.no_grad():
        found = model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
        assert torch.equal(found.logits, model(some_ids(), position_ids=positions).logits)
        assert not torch.equal(found.logits, model(some_ids()).logits)
    assert found.past_key_values is None
