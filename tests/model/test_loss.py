"""The training loss: the chunked form against whole logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_model import VOCAB, assert_same_gradients, build, gradients_of, some_ids
from torch import nn

from chatgpt_hf import ChatGPTForCausalLM
from chatgpt_hf.model import loss_chatgpt


def loss_cases() -> dict[str, dict[str, Any]]:
    labels = some_ids().masked_fill(some_ids(seed=8) % 3 == 0, -100)
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    return {
        "labels": {"labels": labels},
        "int count": {"labels": labels, "num_items_in_batch": 31},
        "tensor count": {"labels": labels, "num_items_in_batch": torch.tensor(31)},
        "shifted": {"shift_labels": shifted},
        "shifted beside labels": {"labels": labels, "shift_labels": shifted, "num_items_in_batch": 5},
        "other ignore index": {"labels": some_ids(), "ignore_index": int(some_ids()[0, 3])},
        "a row of nothing": {"labels": labels.index_fill(0, torch.tensor([0]), -100)},
    }


@pytest.mark.parametrize("case", list(loss_cases()))
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("tied", [True, False])
def test_the_chunked_loss_is_the_loss(
    case: str, softcap: float | None, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 24 rows: three whole chunks and a part of one.
    monkeypatch.setattr(loss_chatgpt, "LOSS_CHUNK_ROWS", 7)
    model = build(final_logit_softcapping=softcap, tie_word_embeddings=tied).train()
    expected = model(some_ids(), skip_logits=False, **loss_cases()[case])
    # Not 1, so that a gradient that is not scaled by the one above it shows.
    (3.0 * expected.loss).backward()
    expected_gradients = gradients_of(model)
    found = model(some_ids(), **loss_cases()[case])
    (3.0 * found.loss).backward()
    assert found.logits is None
    assert expected.logits.shape == (2, 12, VOCAB)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    assert_same_gradients(gradients_of(model), expected_gradients)


@pytest.mark.parametrize("count", [None, 0, 7, torch.tensor(0), torch.tensor(7)], ids=str)
def test_nothing_to_learn_is_the_same_on_both_paths(count: Any) -> None:
    model = build().train()
    losses = []
    for skip_logits in (False, True):
        loss = model(
            some_ids(), labels=torch.full((2, 12), -100), num_items_in_batch=count, skip_logits=skip_logits
        ).loss
        loss.backward()
        losses.append(loss.detach())
        # A step after such a batch must not spoil the weights.
        assert all(not gradient.any() for gradient in gradients_of(model).values() if gradient is not None)
    torch.testing.assert_close(losses[0], losses[1], equal_nan=True)


def test_which_path_is_taken() -> None:
    model, ids = build(), some_ids()
    assert model(ids, labels=ids).logits is not None
    assert model(ids, labels=ids, skip_logits=True).logits is None
    model.train()
    assert model(ids, labels=ids).logits is None
    assert model(ids, labels=ids, skip_logits=False).logits is not None
    assert model(ids).logits is not None
    assert model(ids).loss is None
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(ids, labels=ids, logits_to_keep=3)


class DoublingHead(nn.Linear):
    """A head that is more than its matrix, as an adapter's."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(hidden_states)


def double_the_head(model: ChatGPTForCausalLM) -> None:
    weight = model.lm_head.weight
    model.lm_head = DoublingHead(32, VOCAB, bias=False)
    model.lm_head.weight = weight


@pytest.mark.parametrize(
    "change",
    [
        double_the_head,
        lambda model: model.lm_head.register_forward_hook(lambda module, args, output: 2.0 * output),
        lambda model: model.lm_head.register_forward_pre_hook(lambda module, args: (2.0 * args[0],)),
        lambda model: setattr(model.lm_head, "forward", lambda x: 2.0 * nn.functional.linear(x, model.lm_head.weight)),
        lambda model: setattr(model, "loss_function", lambda logits, labels, **kwargs: logits.square().mean()),
    ],
    ids=["adapter", "hook", "pre-hook", "replaced forward", "own loss"],
)
def test_a_head_or_loss_that_is_not_the_plain_one_gets_the_logits(change: Callable[[ChatGPTForCausalLM], Any]) -> None:
    model = build().train()
    plain = model(some_ids(), labels=some_ids()).loss
    change(model)
    output = model(some_ids(), labels=some_ids())
    expected = model.eval()(some_ids(), labels=some_ids()).loss
    assert output.logits is not None
    torch.testing.assert_close(output.loss, expected)
    assert (output.loss - plain).abs() > 1e-2


@pytest.mark.parametrize("frozen", ["head", "body", "all"])
def test_frozen_parts_get_no_gradient(frozen: str) -> None:
    model = build(tie_word_embeddings=False).train()
    if frozen in ("head", "all"):
        model.lm_head.requires_grad_(False)
    if frozen in ("body", "all"):
        model.model.requires_grad_(False)
    results = []
    for skip_logits in (False, True):
        loss = model(some_ids(), labels=some_ids(), skip_logits=skip_logits).loss
        assert loss.requires_grad == (frozen != "all")
        if loss.requires_grad:
            loss.backward()
        results.append(gradients_of(model))
    assert_same_gradients(results[1], results[0])
    assert (results[1]["lm_head.weight"] is None) == (frozen in ("head", "all"))


def test_without_autograd_no_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    forward = loss_chatgpt.ChunkedLinearCrossEntropy.forward

    def spy(ctx: Any, *args: Any) -> torch.Tensor:
        wanted.append(ctx.needs_input_grad[:2])
        return forward(ctx, *args)

    monkeypatch.setattr(loss_chatgpt.ChunkedLinearCrossEntropy, "forward", staticmethod(spy))
    model = build().train()
    with torch.no_grad():
        quiet = model(some_ids(), labels=some_ids()).loss
    loud = model(some_ids(), labels=some_ids()).loss
    assert wanted == [(False, False), (True, True)]
    assert torch.equal(quiet, loud)


def test_the_chunked_loss_under_autocast(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.setattr(loss_chatgpt, "LOSS_CHUNK_ROWS", 5)
    model = build(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_key_value_heads=1).train()
    results = []
    for skip_logits in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(some_ids(), labels=some_ids(), skip_logits=skip_logits).loss
        loss.backward()
        results.append((loss.detach(), gradients_of(model)))
    assert results[1][0].dtype == torch.float32
    # A norm of mixed types would leave the fused kernel, with a warning.
    assert not [str(warning.message) for warning in recwarn if "fused" in str(warning.message)]
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    assert {gradient.dtype for gradient in results[1][1].values()} == {torch.float32}
    # bfloat16 has eight bits, and the two paths round at different places.
    assert_same_gradients(results[1][1], results[0][1], tolerance=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_chunked_loss_in_other_dtypes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_chatgpt, "LOSS_CHUNK_ROWS", 5)
    model = build(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_key_value_heads=1).to(dtype).train()
    results = []
    for skip_logits in (False, True):
        loss = model(some_ids(), labels=some_ids(), skip_logits=skip_logits).loss
        loss.backward()
        results.append((loss.detach(), gradients_of(model)))
    assert {gradient.dtype for gradient in results[1][1].values()} == {dtype}
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    assert_same_gradients(results[1][1], results[0][1], tolerance=2e-2 if dtype == torch.bfloat16 else 1e-5)
