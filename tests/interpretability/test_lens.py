"""The lens at the last layer equals the model; earlier ones equal norm and head by hand; a tuned lens is better."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.interpretability.anatomy import anatomy, residual_streams
from chatgpt_hf.interpretability.drawing import draw_lens
from chatgpt_hf.interpretability.lens import TunedLens, look_through, train_tuned_lens


def test_the_last_layer_is_the_model(model: PreTrainedModel, ids: torch.Tensor) -> None:
    lens = look_through(model, ids, top_k=4)
    with torch.no_grad():
        own = model(ids).logits[0].log_softmax(-1)
    assert lens.top_ids.shape == lens.top_probabilities.shape == (4, 12, 4)
    np.testing.assert_allclose(lens.top_probabilities[-1], own.topk(4).values.exp(), atol=1e-6)
    assert lens.top_ids[-1].tolist() == own.topk(4).indices.tolist()
    assert lens.targets.tolist() == [*ids[0, 1:].tolist(), own[-1].argmax().item()]
    np.testing.assert_allclose(lens.probabilities[-1], own.exp()[range(12), lens.targets], atol=1e-6)
    order = own.argsort(-1, descending=True).tolist()
    assert lens.ranks[-1].tolist() == [row.index(target) + 1 for row, target in zip(order, lens.targets, strict=True)]
    np.testing.assert_allclose(lens.divergences[-1], 0, atol=1e-6)
    # All logits, too.
    parts = anatomy(model)
    with torch.no_grad():
        found = parts.unembed(residual_streams(parts, ids)[-1])
    np.testing.assert_allclose(found, model(ids).logits.detach(), atol=1e-5)


def test_an_early_layer(model: PreTrainedModel, ids: torch.Tensor) -> None:
    lens = look_through(model, ids)
    hidden = model(ids, output_hidden_states=True).hidden_states[1]
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    logits = model.lm_head(norm(hidden))[0]
    if softcap := getattr(model.config, "final_logit_softcapping", None):
        logits = softcap * torch.tanh(logits / softcap)
    early, own = logits.log_softmax(-1).detach(), model(ids).logits[0].log_softmax(-1).detach()
    assert lens.top_ids[1].tolist() == early.topk(5).indices.tolist()
    np.testing.assert_allclose(lens.probabilities[1], early.exp()[range(12), lens.targets], atol=1e-6)
    np.testing.assert_allclose(lens.divergences[1], (own.exp() * (own - early)).sum(-1), atol=1e-5)
    untrained = look_through(model, ids, tuned=TunedLens(3, 32))
    np.testing.assert_array_equal(untrained.top_ids, lens.top_ids)


def test_a_tuned_lens_sees_more(planted: Any) -> None:
    half = len(planted.rows) // 2
    tuned = train_tuned_lens(planted.model, planted.rows[:half], steps=80, learning_rate=3e-3)
    before, after = (
        [look_through(planted.model, torch.tensor([row]), tuned=lens) for row in planted.rows[half:]]
        for lens in (None, tuned)
    )
    # On rows not seen in training, at every layer but the last, which is the model itself.
    far, near = (np.mean([lens.divergences[:-1].mean(1) for lens in lenses], axis=0) for lenses in (before, after))
    assert (near < 0.9 * far).all()
    np.testing.assert_array_equal(after[0].probabilities[-1], before[0].probabilities[-1])
    again = train_tuned_lens(planted.model, planted.rows[:half], steps=80, learning_rate=3e-3)
    assert torch.equal(again.translators[1].weight, tuned.translators[1].weight)
    assert all(parameter.grad is None for parameter in planted.model.parameters())
    for rows in ([], [[1, 2], []]):
        with pytest.raises(DataError, match="needs one or more training texts"):
            train_tuned_lens(planted.model, rows)


def test_more_than_a_norm_and_a_head() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    model = GraniteForCausalLM(
        GraniteConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, logits_scaling=3.0)
    )
    with torch.no_grad():
        model.lm_head.weight.normal_()
    with pytest.raises(ConfigError, match="GraniteForCausalLM"):
        look_through(model, torch.tensor([[1, 2, 3]]))


def test_drawing(chat_folder: Any, ids: torch.Tensor, model: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    figure = draw_lens(look_through(model, ids), ["$", *"abcdefghijk"], tokenizer)
    assert len(figure.axes[0].texts) == 4 * 12


class Silent(nn.Module):
    """A head that excludes some tokens."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        logits[..., :7] = -torch.inf
        return logits


def test_excluded_tokens_are_no_divergence(ids: torch.Tensor) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=64)).eval()
    model.lm_head = Silent(model.lm_head)
    lens = look_through(model, ids)
    assert np.isfinite(lens.divergences).all()
    np.testing.assert_allclose(lens.divergences[-1], 0, atol=1e-6)


def test_dropout_is_off_while_it_is_looked_through(ids: torch.Tensor) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=64))
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    lens = look_through(model, ids)
    train_tuned_lens(model, [ids[0].tolist()], steps=1)
    assert [module.training for module in model.modules()] == modes
    np.testing.assert_array_equal(lens.probabilities, look_through(model.eval(), ids).probabilities)
