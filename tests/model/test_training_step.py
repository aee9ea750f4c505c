"""A training step compiled, and with gradient checkpointing."""

import pytest
import torch
from tiny_model import POSITIONS, assert_same_gradients, build, gradients_of, some_ids

from chatgpt_hf.model import loss_chatgpt


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_a_training_step_compiles_to_one_graph(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_chatgpt, "LOSS_CHUNK_ROWS", 7)
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1}
    model = build(final_logit_softcapping=3.0, **small).train()
    labels = some_ids().masked_fill(some_ids(seed=8) % 3 == 0, -100)
    torch.compiler.reset()
    results = []
    # Not inductor: what is tested is that forward and backward are whole graphs, and C++ builds take half a minute.
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = run(some_ids(), labels=labels, num_items_in_batch=torch.tensor(9))
        assert output.logits is None
        output.loss.backward()
        results.append((output.loss.detach(), gradients_of(model)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    assert_same_gradients(results[1][1], results[0][1], tolerance=2e-2 if autocast else 1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_gradient_checkpointing_changes_nothing(reentrant: bool, position: str) -> None:
    model = build(position_embedding_type=position, sliding_window=5).train()
    model(some_ids(), labels=some_ids()).loss.backward()
    expected = gradients_of(model)
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(some_ids(), labels=some_ids()).loss.backward()
    assert len(calls) == 2, "the layer was not computed again in the backward pass"
    assert_same_gradients(gradients_of(model), expected)
