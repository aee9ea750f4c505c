"""Removed parts, compared with weights set to zero; the planted heads, which the model cannot do without."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.interpretability.ablation import (
    Part,
    ablation_effects,
    all_parts,
    mean_contributions,
    removed,
)
from chatgpt_hf.interpretability.anatomy import anatomy
from chatgpt_hf.interpretability.attention_maps import head_scores
from chatgpt_hf.interpretability.drawing import draw_ablation


def silence(model: PreTrainedModel, part: Part) -> None:
    """Zeroes the weights with which a part writes to the residual stream: the reference implementation."""
    parts = anatomy(model)
    attention = parts.output_projection(part.layer)
    mlp = parts.mlp(part.layer)
    writer = mlp.c_proj if hasattr(mlp, "c_proj") else mlp.down_proj
    with torch.no_grad():
        if part.kind == "head":
            place = slice(part.head * parts.head_dim, (part.head + 1) * parts.head_dim)
            # The rows of Conv1D's weight are its inputs.
            where = (place, slice(None)) if type(attention).__name__ == "Conv1D" else (slice(None), place)
            attention.weight[where] = 0
            return
        for module in (writer,) if part.kind == "mlp" else (writer, attention):
            for parameter in module.parameters():
                parameter.zero_()


@pytest.mark.parametrize("part", [Part("head", 1, 2), Part("mlp", 0), Part("layer", 2)], ids=str)
def test_removed_is_as_with_weights_of_zero(model: PreTrainedModel, ids: torch.Tensor, part: Part) -> None:
    with torch.no_grad():
        before = model(ids).logits
        with removed(model, [part]):
            without = model(ids).logits
        assert torch.equal(model(ids).logits, before)
        silence(model, part)
        np.testing.assert_allclose(without, model(ids).logits, atol=1e-5)
    assert not torch.allclose(without, before, atol=1e-2)


def test_means(model: PreTrainedModel, ids: torch.Tensor) -> None:
    parts = [Part("head", 1, 2), Part("mlp", 1), Part("layer", 1)]
    means = mean_contributions(model, parts, ids.expand(2, -1).tolist())
    hidden = model(ids, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(means[parts[2]], (hidden[2] - hidden[1])[0].mean(0).detach(), atol=1e-5)
    assert [len(means[part]) for part in parts] == [8, 32, 32]
    # With a single position, the mean contribution is the contribution.
    one = ids[:, :1]
    alone = mean_contributions(model, parts, one.tolist())
    for part in parts:
        with torch.no_grad(), removed(model, [part], alone):
            without = model(one).logits
        np.testing.assert_allclose(without, model(one).logits.detach(), atol=1e-4)


def test_effects(model: PreTrainedModel) -> None:
    rows = torch.randint(50, (6, 16), generator=torch.Generator().manual_seed(2)).tolist()
    rows[0] = rows[0][:9]
    parts = all_parts(model)
    assert len(parts) == 3 * (4 + 1 + 1)
    effects = ablation_effects(model, rows, [(part,) for part in parts])
    assert effects.ablations == tuple((part,) for part in parts)
    place = parts.index(Part("mlp", 0))

    def nats() -> np.ndarray:
        with torch.no_grad():
            losses = [
                model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() * (len(row) - 1) for row in rows
            ]
        return np.array(losses)

    tokens = sum(len(row) - 1 for row in rows)
    before = nats()
    with removed(model, [Part("mlp", 0)]):
        after = nats()
    assert effects.loss == pytest.approx(before.sum() / tokens, rel=1e-4)
    assert effects.differences[place] == pytest.approx((after - before).sum() / tokens, rel=1e-3)
    assert (effects.low <= effects.differences).all()
    assert (effects.differences <= effects.high).all()
    # Paired, so the differences between texts are not in the error bars.
    chosen = np.random.default_rng(1).integers(6, size=(2000, 6))
    lengths = np.array([len(row) - 1 for row in rows])
    drawn = (after - before)[chosen].sum(1) / lengths[chosen].sum(1)
    width = effects.high[place] - effects.low[place]
    assert width == pytest.approx(np.subtract(*np.quantile(drawn, [0.975, 0.025])), rel=0.15)
    by_mean = ablation_effects(model, rows, [(part,) for part in parts], how="mean")
    assert by_mean.differences[place] != pytest.approx(effects.differences[place], abs=1e-4)
    figure = draw_ablation(effects, top=5)
    assert len(figure.axes[0].patches) == 5
    assert figure.axes[0].get_yticklabels()[0].get_text() == str(parts[int(effects.differences.argmax())])


def test_without_the_planted_heads(planted: Any) -> None:
    scores = head_scores(planted.model, planted.vocabulary, length=planted.length)
    found = [Part("head", int(layer), int(head)) for layer, head in np.argwhere(scores.induction > 0.3)]
    others = [part for part in all_parts(planted.model, ["head"]) if part not in found]
    assert found
    assert 2 * len(found) <= len(others)
    choices = list(combinations(others, len(found)))
    random = [choices[index] for index in np.random.default_rng(0).choice(len(choices), 8, replace=False)]
    assert len({frozenset(draw) for draw in random}) == 8
    # Removing all the other heads at once exceeds every random draw of them.
    effects = ablation_effects(planted.model, planted.rows, [found, *random, others], begin=planted.length + 1)
    assert effects.loss < 0.2
    # The model knows nothing any more: a guess among 64 tokens costs 4.16 nats.
    assert effects.low[0] > 3
    assert effects.high[1:].max() < 1


def test_mistakes(model: PreTrainedModel) -> None:
    rows = [[1, 2, 3]] * 3
    for part, wrong in (
        (Part("head", 3, 0), "no layer 3"),
        (Part("layer", -1), "no layer -1"),
        (Part("head", 0, 4), "no head 4"),
        (Part("head", 0), "not a part that can be removed"),
        (Part("mlp", 0, 1), "not a part that can be removed"),
        (Part("layer", 0, 1), "not a part that can be removed"),
        (Part("norm", 0), "not a part that can be removed"),
    ):
        with pytest.raises(ConfigError, match=wrong):
            ablation_effects(model, rows, [[part]])
    with pytest.raises(ConfigError, match="how is 'median'"):
        ablation_effects(model, rows, [[Part("mlp", 0)]], how="median")
    for few in ([[1, 2, 3]], [[1, 2, 3], [1]]):
        with pytest.raises(DataError, match="two or more texts"):
            ablation_effects(model, few, [[Part("mlp", 0)]])
