"""Weights and buffers: initialized, loaded, resized and copied."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_model import POSITIONS, TINY, VOCAB, build, some_ids
from transformers import AutoModelForCausalLM

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM


def measured_stds(model: ChatGPTForCausalLM) -> tuple[list[float], list[float]]:
    writing, others = [], []
    for layer in model.model.layers:
        writing += [layer.self_attn.o_proj.weight.std().item(), layer.mlp.down_proj.weight.std().item()]
        others += [layer.self_attn.q_proj.weight.std().item(), layer.mlp.up_proj.weight.std().item()]
    return writing, others


def test_projections_into_the_residual_stream_start_smaller(tmp_path: Path) -> None:
    config = ChatGPTConfig(**{**TINY, "hidden_size": 128, "num_hidden_layers": 3, "initializer_range": 0.02})
    model = ChatGPTForCausalLM(config)
    writing, others = measured_stds(model)
    assert others == pytest.approx([0.02] * 6, rel=0.05)
    assert writing == pytest.approx([0.02 / 6**0.5] * 6, rel=0.05)

    # And where `from_pretrained` makes what a checkpoint lacks: here everything but the embeddings.
    model.save_pretrained(tmp_path, state_dict={"model.embed_tokens.weight": model.model.embed_tokens.weight})
    again, report = ChatGPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert "model.layers.2.mlp.down_proj.weight" in report["missing_keys"]
    writing, others = measured_stds(again)
    assert others == pytest.approx([0.02] * 6, rel=0.05)
    assert writing == pytest.approx([0.02 / 6**0.5] * 6, rel=0.05)
    assert (again.model.norm.weight == 1).all()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_buffers_are_right_after_loading(position: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(position_embedding_type=position)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    expected = dict(model.named_buffers())
    found = dict(again.named_buffers())
    assert found.keys() == expected.keys()
    assert len(found) == {"rope": 2, "learned": 0, "sinusoidal": 1}[position]
    for name, buffer in expected.items():
        assert torch.equal(found[name].float(), buffer), name
    if dtype == torch.float32:
        assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [VOCAB + 9, VOCAB - 7])
def test_resizing_the_vocabulary(tied: bool, size: int, tmp_path: Path) -> None:
    model = build(tie_word_embeddings=tied, position_embedding_type="learned")
    ids = some_ids() % (VOCAB - 7)
    before = model(ids).logits.detach()
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.lm_head.out_features == model.model.embed_tokens.num_embeddings == size
    assert model.model.embed_positions.num_embeddings == 64
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    common = min(size, VOCAB)
    assert torch.equal(model(ids).logits[..., :common], before[..., :common])
    model.train()
    assert model(ids, labels=ids).logits is None
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model.eval()(ids).logits)


def test_a_deep_copy_is_the_same_model() -> None:
    model = build()
    clone = copy.deepcopy(model)
    assert torch.equal(clone(some_ids()).logits, model(some_ids()).logits)
    assert clone.lm_head.weight is clone.model.embed_tokens.weight
    assert clone.lm_head.weight is not model.lm_head.weight
