"""Attention maps compared with the equations, rollout and flow compared with the paper; the planted heads."""

from typing import Any

import networkx
import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.interpretability import attention_maps as module
from chatgpt_hf.interpretability.attention_maps import (
    attention_flow,
    attention_maps,
    attention_rollout,
    head_scores,
    repeated_tokens,
    with_residual,
)
from chatgpt_hf.interpretability.drawing import draw_attention, draw_head_scores, draw_tokens


def random_maps(layers: int, heads: int, length: int) -> np.ndarray:
    scores = np.random.default_rng(0).random((layers, heads, length, length)) * np.tril(np.ones((length, length)))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def test_maps(model: PreTrainedModel, ids: torch.Tensor) -> None:
    model.set_attn_implementation("sdpa")
    model.train()
    maps = attention_maps(model, ids)
    assert maps.weights.shape == (3, 4, 12, 12)
    # It reports the switch, and switches back.
    assert maps.switched_from == "sdpa"
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    np.testing.assert_allclose(maps.weights.sum(-1), 1, atol=1e-5)
    assert not maps.weights[..., np.triu_indices(12, 1)[0], np.triu_indices(12, 1)[1]].any()
    model.eval().set_attn_implementation("eager")
    again = attention_maps(model, ids)
    assert again.switched_from is None
    np.testing.assert_allclose(again.weights, maps.weights, atol=1e-6)


def test_a_model_without_attention() -> None:
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(ConfigError, match="MambaForCausalLM"):
        attention_maps(MambaForCausalLM(config), torch.tensor([[1, 2, 3]]))


def test_a_model_that_cannot_be_switched(
    ids: torch.Tensor, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers does this for a model with its own attention: it logs a warning and changes nothing.
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ConfigError, match="attn_implementation='eager'"):
        attention_maps(model, ids)


def test_rollout_of_uniform_attention() -> None:
    layers, length = 4, 5
    uniform = np.full((layers, 2, length, length), 1 / length, np.float32)
    rolled = attention_rollout(uniform)
    for layer in range(layers):
        # (0.5 U + 0.5 I)^l = (1 - 2^-l) U + 2^-l I, since U U = U.
        share = 0.5 ** (layer + 1)
        np.testing.assert_allclose(rolled[layer], (1 - share) / length + share * np.eye(length), atol=1e-7)
    causal = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    rolled = attention_rollout(np.tile(causal.astype(np.float32), (layers, 1, 1, 1)))
    expected = np.linalg.matrix_power(0.5 * causal + 0.5 * np.eye(length), layers)
    np.testing.assert_allclose(rolled[-1], expected, atol=1e-7)


@pytest.mark.parametrize("position", [-1, 2])
def test_flow_is_the_maximum_flow(position: int) -> None:
    maps = random_maps(3, 2, 6)
    steps = with_residual(maps)
    graph = networkx.DiGraph()
    for layer, query, key in zip(*np.nonzero(steps), strict=True):
        graph.add_edge((layer + 1, query), (layer, key), capacity=steps[layer, query, key])
    expected = [
        networkx.maximum_flow_value(graph, (3, position % 6), (0, key)) if key <= position % 6 else 0
        for key in range(6)
    ]
    np.testing.assert_allclose(attention_flow(maps, position), expected, atol=1e-7)


def test_flow_through_one_layer() -> None:
    maps = random_maps(1, 3, 5)
    np.testing.assert_allclose(attention_flow(maps), with_residual(maps)[0, -1], atol=1e-7)
    np.testing.assert_allclose(attention_flow(maps[..., :1, :1]), [1], atol=1e-7)
    with pytest.raises(ConfigError, match="no position 5"):
        attention_flow(maps, 5)


def test_repeated_tokens() -> None:
    rows = repeated_tokens(range(10, 40), rows=3, length=20, first=7)
    assert rows.shape == (3, 41)
    assert (rows[:, 0] == 7).all()
    assert torch.equal(rows[:, 1:21], rows[:, 21:])
    assert all(len(set(row[1:21].tolist())) == 20 for row in rows)
    assert set(rows[:, 1:].flatten().tolist()) <= set(range(10, 40))
    with pytest.raises(DataError, match="lower the length"):
        repeated_tokens(range(5), rows=1, length=6)


def test_scores_of_uniform_attention(model: PreTrainedModel) -> None:
    if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
        pytest.skip("a window is not uniform over all")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
            elif "c_attn" in name:
                parameter[..., :32] = 0
    scores = head_scores(model, range(50), rows=1, length=10, first=0)
    # Query i sees i + 1 positions; there are 21.
    everywhere = np.mean([1 / (query + 1) for query in range(2, 21)])
    np.testing.assert_allclose(scores.previous_token, everywhere, rtol=1e-5)
    np.testing.assert_allclose(scores.first_token, everywhere, rtol=1e-5)
    np.testing.assert_allclose(scores.induction, np.mean([1 / (query + 1) for query in range(11, 21)]), rtol=1e-5)
    # At most as many as the context has room for.
    assert head_scores(model, range(50), rows=1, length=1000).induction.shape == (3, 4)
    with pytest.raises(DataError, match="too few"):
        head_scores(model, range(3), rows=1)


def test_the_planted_heads_are_found(planted: Any) -> None:
    scores = head_scores(planted.model, planted.vocabulary, length=planted.length)
    assert scores.induction.max() > 0.6
    # Training rewarded no looking at the first or previous token, and not every head is an induction head.
    assert max(scores.previous_token.max(), scores.first_token.max()) < 0.3
    assert (scores.induction < 0.1).sum() >= (scores.induction > 0.3).sum()


def test_drawing(model: PreTrainedModel, ids: torch.Tensor) -> None:
    maps = attention_maps(model, ids)
    labels = ["你", " a", "\n", "$x", *"abcdefgh"]
    figure = draw_attention(maps, labels, 1)
    assert [axes.get_title() for axes in figure.axes] == [f"layer 1, head {head}" for head in range(4)]
    np.testing.assert_allclose(draw_attention(maps, labels, 2, 3).axes[0].images[0].get_array(), maps.weights[2, 3])
    for layer, head, wrong in ((3, 0, "no layer 3"), (-1, None, "no layer -1"), (0, 4, "no head 4")):
        with pytest.raises(ConfigError, match=wrong):
            draw_attention(maps, labels, layer, head)
    flow = attention_flow(maps.weights)
    bars = draw_tokens(labels, {"flow": flow}).axes[0].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], flow)
    assert len(draw_head_scores(head_scores(model, range(50), rows=1)).axes) == 3


def test_weights_that_take_too_much_memory_are_refused(
    model: PreTrainedModel, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WEIGHTS_BYTES", 4 * 12 * 11 * 11)
    with pytest.raises(DataError, match="weights of 12 tokens do not fit into memory: give at most 11 tokens"):
        attention_maps(model, ids)
    assert attention_maps(model, ids[:, :11]).weights.shape[-1] == 11
