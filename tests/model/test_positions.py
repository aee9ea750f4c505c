"""Positions: rotary, learned and sinusoidal."""

from collections.abc import Callable

import pytest
import torch
from tiny_model import VOCAB, build, some_ids
from torch import nn


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_positions_past_the_table_are_refused(position: str) -> None:
    model = build(position_embedding_type=position, max_position_embeddings=10)
    assert model(some_ids(length=10)).logits.shape == (2, 10, VOCAB)
    with pytest.raises(ValueError, match=rf"position 11.*10 {position}.*max_position_embeddings"):
        model(some_ids(length=11))
    with pytest.raises(ValueError, match="position 11"):
        model(some_ids(length=2), position_ids=torch.tensor([[9, 10]]))
    cache = model(some_ids(length=10)).past_key_values
    with pytest.raises(ValueError, match="position 11"):
        model(some_ids(length=1), past_key_values=cache)
    # Padding and packed documents take no more positions than they have tokens.
    ids = some_ids(length=12)
    assert model(ids, attention_mask=(torch.arange(12) >= 4).long().expand(2, -1)).logits.isfinite().all()
    assert model(ids, position_ids=torch.arange(12)[None] % 6).logits.isfinite().all()


def test_rope_goes_past_the_trained_length() -> None:
    assert build(max_position_embeddings=10)(some_ids(length=20)).logits.isfinite().all()


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_a_cast_leaves_the_rotary_frequencies_exact(cast: Callable[[nn.Module], nn.Module]) -> None:
    model = build(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4})
    expected = model.model.rotary_emb.inv_freq.clone()
    cast(model)
    for name in ("inv_freq", "original_inv_freq"):
        buffer = getattr(model.model.rotary_emb, name)
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, expected)


def test_sinusoids_are_those_of_the_paper() -> None:
    table = build(position_embedding_type="sinusoidal").model.embed_positions.table
    for position, column in ((0, 0), (0, 1), (7, 4), (7, 5), (63, 30), (63, 31)):
        angle = torch.tensor(position / 10_000 ** (2 * (column // 2) / 32), dtype=torch.float64)
        expected = angle.cos() if column % 2 else angle.sin()
        assert table[position, column].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("position", "scale"), [("sinusoidal", 32**0.5), ("learned", 1.0)])
def test_positions_are_added_to_the_scaled_embeddings(position: str, scale: float) -> None:
    model = build(position_embedding_type=position)
    found = model(some_ids(), output_hidden_states=True).hidden_states[0]
    places = model.model.embed_positions(torch.arange(12))
    torch.testing.assert_close(found, model.get_input_embeddings()(some_ids()) * scale + places)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    model = build(num_hidden_layers=1).double()
    with torch.no_grad():
        near = model(some_ids(), position_ids=torch.arange(12)[None]).logits
        far = model(some_ids(), position_ids=torch.arange(12)[None] + 900).logits
    torch.testing.assert_close(near, far, rtol=0, atol=1e-3)
    assert not torch.equal(near, far)
