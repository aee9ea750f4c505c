"""Outputs: hidden states, attentions, the logits that are kept, and their precision."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_model import POSITIONS, build, some_ids
from transformers import modeling_utils

from chatgpt_hf.model import modeling_chatgpt


@pytest.mark.parametrize("window", [None, 4])
def test_recorded_outputs(window: int | None) -> None:
    model = build(attn_implementation="eager", sliding_window=window)
    output = model(some_ids(), output_attentions=True, output_hidden_states=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, 12, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 12, 12)] * 2
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(some_ids()))
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 12))
        assert not weights.triu(1).any()
        assert window is None or not weights.tril(-window).any()
    plain = model(some_ids())
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert isinstance(model(some_ids(), return_dict=False), tuple)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (1, lambda logits: logits[:, -1:]),
        (5, lambda logits: logits[:, -5:]),
        (0, lambda logits: logits),
        (torch.tensor([2, 7]), lambda logits: logits[:, [2, 7]]),
        (torch.arange(24).view(2, 12) % 5 == 0, lambda logits: logits[torch.arange(24).view(2, 12) % 5 == 0]),
    ],
    ids=["last", "last five", "all", "indices", "boolean"],
)
def test_logits_to_keep(kept: Any, expected: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = build()
    with torch.no_grad():
        torch.testing.assert_close(model(some_ids(), logits_to_keep=kept).logits, expected(model(some_ids()).logits))


@pytest.mark.parametrize("kept", [0, 3, torch.tensor([0, 2])], ids=["all", "last three", "these"])
def test_kept_positions_are_those_of_releases_that_have_the_function(
    kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model file brings its own for transformers before 5.23."""
    states = torch.randn(2, 5, 4)
    expected = modeling_utils.slice_logits_to_keep(states, kept)
    monkeypatch.delattr(modeling_utils, "slice_logits_to_keep")
    specification = importlib.util.spec_from_file_location(
        "chatgpt_hf.model.another_modeling_chatgpt", modeling_chatgpt.__file__
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.slice_logits_to_keep.__module__ == module.__name__
    assert module.slice_logits_to_keep(states, kept).equal(expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("position", POSITIONS)
def test_float64_stays_float64(attention: str, position: str) -> None:
    model = build(position_embedding_type=position, attn_implementation=attention).double()
    with torch.no_grad():
        output = model(some_ids(), output_hidden_states=True)
    assert {states.dtype for states in (*output.hidden_states, output.logits)} == {torch.float64}
    # Through float32 anywhere, the last digits of two ways to the same number would differ at 1e-7.
    with torch.no_grad():
        start = model(some_ids()[:, :7])
        rest = model(some_ids()[:, 7:], past_key_values=start.past_key_values)
    torch.testing.assert_close(rest.logits, output.logits[:, 7:], rtol=0, atol=1e-12)


def test_backends_agree_in_float64() -> None:
    model = build(sliding_window=5).double()
    found = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            found[attention] = model(some_ids()).logits
    torch.testing.assert_close(found["eager"], found["sdpa"], rtol=0, atol=1e-12)
