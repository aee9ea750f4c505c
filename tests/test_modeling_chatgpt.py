"""The model: padding, packing, caches, the chunked loss, compilation and what transformers and PEFT do with it."""

import copy
import importlib.util
import inspect
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    CompileConfig,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    StaticCache,
    modeling_utils,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, local_context_chatgpt, loss_chatgpt, modeling_chatgpt
from chatgpt_hf.modeling_chatgpt import (
    CACHE_NAME,
    ChatGPTForQuestionAnswering,
    ChatGPTForSequenceClassification,
    ChatGPTForTokenClassification,
    ChatGPTModel,
    document_bounds,
)

VOCAB = 67
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
POSITIONS = ["rope", "learned", "sinusoidal"]


def build(seed: int = 0, **overrides: Any) -> ChatGPTForCausalLM:
    """A tiny model with grouped keys, whose weights are wide enough for every part to show in the logits."""
    torch.manual_seed(seed)
    return ChatGPTForCausalLM(ChatGPTConfig(**{**TINY, **overrides})).eval()


def some_ids(rows: int = 2, length: int = 12, seed: int = 5) -> torch.Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor | None]:
    """The gradients by name, taken off the model."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(
    found: dict[str, torch.Tensor | None], expected: dict[str, torch.Tensor | None], tolerance: float = 1e-5
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            assert (found[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-3), name


# Padding and positions.


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [None, 4])
def test_a_padded_row_gives_its_own_logits(position: str, attention: str, window: int | None) -> None:
    model = build(position_embedding_type=position, sliding_window=window, attn_implementation=attention)
    lengths, width = [11, 3, 7], 11
    ids = some_ids(3, width)
    for side in ("left", "right"):
        columns = torch.arange(width)
        counts = torch.tensor(lengths)[:, None]
        mask = (columns >= width - counts) if side == "left" else (columns < counts)
        padded = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            padded[row, mask[row]] = ids[row, :length]
        with torch.no_grad():
            batch = model(padded, attention_mask=mask.long())
            assert batch.logits.isfinite().all()
            for row, length in enumerate(lengths):
                alone = model(ids[row : row + 1, :length])
                torch.testing.assert_close(batch.logits[row, mask[row]], alone.logits[0], rtol=0, atol=1e-4)
            if side == "right":
                continue
            # Continued with the cache, and still without position ids.
            step, mask = some_ids(3, 2, seed=9), torch.cat((mask, torch.ones(3, 2, dtype=torch.bool)), dim=1)
            more = model(step, attention_mask=mask.long(), past_key_values=batch.past_key_values)
            for row, length in enumerate(lengths):
                alone = model(torch.cat((ids[row, :length], step[row]))[None])
                torch.testing.assert_close(more.logits[row], alone.logits[0, -2:], rtol=0, atol=1e-4)


def test_padding_leaves_no_trace_in_the_gradients() -> None:
    model = build(position_embedding_type="learned").train()
    ids = some_ids(1, 6)
    model(ids, labels=ids).loss.backward()
    expected = gradients_of(model)
    padded = nn.functional.pad(ids, (4, 0))
    mask = padded.ne(0).long()
    # The padding before it would learn the first token, which nothing predicts when the row is alone.
    labels = padded.masked_fill(torch.arange(10) < 5, -100)
    model(padded, attention_mask=mask, labels=labels).loss.backward()
    assert_same_gradients(gradients_of(model), expected)


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


@pytest.mark.parametrize("bad", [-1, VOCAB, 50_000])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    ids = some_ids()
    ids[1, 3] = bad
    with pytest.raises(ValueError, match=rf"{bad}.*0 to {VOCAB - 1} \(`vocab_size`\)"):
        build()(ids)


def test_exactly_one_kind_of_input() -> None:
    model = build()
    embeds = model.get_input_embeddings()(some_ids())
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, model(some_ids()).logits)
    for inputs in ({}, {"input_ids": some_ids(), "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(**inputs)


# Packed documents.

LENGTHS = [[5, 4, 3], [1, 8, 3]]


def packed_positions() -> torch.Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in LENGTHS])


def documents_alone(model: ChatGPTForCausalLM, ids: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Row and start of each document, and its logits when it is the whole input."""
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            yield row, start, model(ids[row : row + 1, start : start + length]).logits[0]
            start += length


@pytest.fixture
def plain_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention as torch computes it uncompiled: the same masks and the same autograd without C++ builds.

    torch refuses gradients of flex_attention on a CPU, though its uncompiled form has them: the check is taken out.
    """
    from torch.nn.attention import flex_attention as flex
    from transformers import masking_utils
    from transformers.integrations.flex_attention import WrappedFlexAttention

    make_mask = masking_utils.create_block_mask
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda *a, **k: make_mask(*a, **{**k, "_compile": False}))
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda self: flex.flex_attention)
    monkeypatch.setattr(flex, "_validate_device", lambda *args: None)


def flash_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float = 1.0,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What `flash_attn_func` computes, (batch, seq, heads, head_dim), by plain arithmetic: a CPU has no such kernel."""
    assert causal
    steps = torch.arange(q.shape[1])
    distance = steps[:, None] - steps
    seen = distance >= 0
    if window_size[0] >= 0:
        seen &= distance <= window_size[0]
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k, v))
    scores = q.transpose(1, 2) @ k.transpose(2, 3) * softmax_scale
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def flash_packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float = 1.0,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What `flash_attn_varlen_func` computes: each stretch between two bounds alone, (tokens, heads, head_dim)."""
    assert cu_seqlens_q.dtype == torch.int32
    assert int(cu_seqlens_q.diff().max()) == max_seqlen_q
    stretches = itertools.pairwise(cu_seqlens_q.tolist())
    how = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size}
    return torch.cat([flash_dense(q[None, a:b], k[None, a:b], v[None, a:b], **how)[0] for a, b in stretches])


@pytest.fixture
def reference_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_flash_attention_utils as flash

    kernels = (flash_dense, flash_packed, None, None, None)
    arguments = (flash._lazy_define_process_function(flash_packed), dict)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *args, **kwargs: (kernels, arguments))


@pytest.mark.usefixtures("plain_flex", "reference_flash")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
def test_packed_documents_do_not_see_each_other(position: str, window: int | None, attention: str) -> None:
    layer_types = None if window is None else ["full_attention", "sliding_attention"]
    model = build(position_embedding_type=position, sliding_window=window, layer_types=layer_types, use_cache=True)
    ids, weights = some_ids(), torch.randn(2, 12, VOCAB)
    expected = torch.zeros(2, 12, VOCAB)
    for row, start, logits in documents_alone(model, ids):
        (logits * weights[row, start : start + len(logits)]).sum().backward()
        expected[row, start : start + len(logits)] = logits.detach()
    expected_gradients = gradients_of(model)

    model.config._attn_implementation = attention
    packed = model(ids, position_ids=packed_positions())
    torch.testing.assert_close(packed.logits.detach(), expected, rtol=0, atol=1e-5)
    (packed.logits * weights).sum().backward()
    assert_same_gradients(gradients_of(model), expected_gradients)


@pytest.mark.usefixtures("reference_flash")
def test_one_document_per_row_needs_no_bounds() -> None:
    model = build()
    with torch.no_grad():
        expected = model(some_ids()).logits
        model.config._attn_implementation = "flash_attention_2"
        for position_ids in (None, torch.arange(12)[None]):
            torch.testing.assert_close(
                model(some_ids(), position_ids=position_ids).logits, expected, rtol=0, atol=1e-5
            )
    assert document_bounds(torch.arange(12).expand(2, -1)) == {}


def test_document_bounds_count_over_the_rows() -> None:
    # The second row goes on in the middle of a document, as a streamed one may.
    bounds = document_bounds(torch.tensor([[0, 1, 2, 0, 1], [7, 8, 0, 0, 1]]))
    assert bounds["cu_seq_lens_q"].tolist() == bounds["cu_seq_lens_k"].tolist() == [0, 3, 5, 7, 8, 10]
    assert bounds["max_length_q"] == bounds["max_length_k"] == 3


# Caches.


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_continues_where_it_stopped(position: str, window: int | None, kind: str) -> None:
    model = build(position_embedding_type=position, sliding_window=window)
    ids = some_ids(length=14)
    cache = (
        DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=20)
    )
    with torch.no_grad():
        whole = model(ids).logits
        parts = []
        for piece in ids.split([6, 1, 4, 3], dim=1):
            parts.append(model(piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


@pytest.mark.works_with(
    "transformers", "`generate`: dynamic and static caches, left padding, embeddings", ("transformers",)
)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("position", POSITIONS)
def test_generation_is_the_same_with_every_cache(position: str, window: int | None) -> None:
    model = build(position_embedding_type=position, sliding_window=window)
    ids = some_ids(3, 7)
    mask = (torch.arange(7) >= torch.tensor([[0], [4], [2]])).long()
    how = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=mask, use_cache=False, **how).tolist()
    assert model.generate(ids, attention_mask=mask, **how).tolist() == expected
    assert model.generate(ids, attention_mask=mask, cache_implementation="static", **how).tolist() == expected
    embeds = model.get_input_embeddings()(ids)
    from_embeds = model.generate(inputs_embeds=embeds, attention_mask=mask, **how)
    assert from_embeds.tolist() == [row[7:] for row in expected]
    for row in range(3):
        alone = model.generate(ids[row : row + 1, mask[row] == 1], **how)[0]
        assert alone[-9:].tolist() == expected[row][-9:]


def test_decoding_compiles_with_a_static_cache() -> None:
    model = build()
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(some_ids(), **how)
    # Not inductor: what is tested is that the forward is one graph, and C++ builds take half a minute.
    compile_config = CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
    compile_config._compile_all_devices = True
    found = model.generate(some_ids(), cache_implementation="static", compile_config=compile_config, **how)
    assert found.tolist() == expected.tolist()


# Outputs.


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
        "chatgpt_hf.another_modeling_chatgpt", modeling_chatgpt.__file__
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.slice_logits_to_keep.__module__ == module.__name__
    assert module.slice_logits_to_keep(states, kept).equal(expected)


# The training loss.


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


# Numbers.


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


# Initial weights and buffers.


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


# Auto classes, heads, embeddings.


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
        assert {"input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels"} <= set(named)
        # transformers' own heads call it `cache` from 5.24 on.
        assert {"past_key_values", CACHE_NAME} & set(named)
    model = ChatGPTForSequenceClassification(ChatGPTConfig(**TINY, num_labels=3, pad_token_id=0)).eval()
    embeds = model.get_input_embeddings()(some_ids())
    positions = torch.arange(12).flip(0)[None]
    with torch.no_grad():
        found = model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
        assert torch.equal(found.logits, model(some_ids(), position_ids=positions).logits)
        assert not torch.equal(found.logits, model(some_ids()).logits)
    assert found.past_key_values is None


def test_a_cache_goes_by_either_name() -> None:
    model, ids = build(), some_ids()
    with torch.no_grad():
        expected = model(ids).logits[:, 6:]
        for name in {"past_key_values", CACHE_NAME}:
            first = model(ids[:, :6], use_cache=True)
            assert first[CACHE_NAME].get_seq_length() == 6
            torch.testing.assert_close(model(ids[:, 6:], **{name: first[CACHE_NAME]}).logits, expected)


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


# Adapters.


@pytest.mark.works_with("PEFT", "LoRA on a GPT-2 checkpoint as it is read; the head as a target", ("peft",))
@pytest.mark.parametrize("origin", ["fresh", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["q_proj", "lm_head"]], ids=str)
def test_lora(origin: str, targets: str | list[str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    if origin == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=False
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    else:
        build(tie_word_embeddings=False).save_pretrained(tmp_path / "base")

    def base() -> ChatGPTForCausalLM:
        return ChatGPTForCausalLM.from_pretrained(tmp_path / "base", residual_dropout=0.0)

    plain = base()(some_ids()).logits.detach()
    model = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        output = model(input_ids=some_ids(), labels=some_ids())
        assert (output.logits is not None) == ("lm_head" in targets)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    trained = model(input_ids=some_ids()).logits.detach()
    assert (trained - plain).abs().max() > 1e-2

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    torch.testing.assert_close(again(input_ids=some_ids()).logits, trained)
    merged = again.merge_and_unload()
    assert type(merged) is ChatGPTForCausalLM
    torch.testing.assert_close(merged(some_ids()).logits, trained, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(some_ids()).logits, trained, rtol=1e-4, atol=1e-4
    )
    # And by transformers' own adapter support, which renames keys by the registered mapping.
    own = base()
    own.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(own(some_ids()).logits, trained)


def test_a_deep_copy_is_the_same_model() -> None:
    model = build()
    clone = copy.deepcopy(model)
    assert torch.equal(clone(some_ids()).logits, model(some_ids()).logits)
    assert clone.lm_head.weight is clone.model.embed_tokens.weight
    assert clone.lm_head.weight is not model.lm_head.weight


# What the recipe of the records adds: n-gram tables, the embeddings in every layer, layers that begin as the identity.

RECORD: dict[str, Any] = {
    "embedding_norm": True,
    "embedding_residual": True,
    "ngram_vocab_sizes": [(VOCAB + 1) ** 2, 101, 53],
    "conv_kernel_size": 4,
}
# Each memory of the last tokens alone, and both.
MEMORIES: dict[str, dict[str, Any]] = {
    "ngrams": {"conv_kernel_size": None},
    "convolutions": {"ngram_vocab_sizes": None},
    "both": {},
}


def build_record(**overrides: Any) -> ChatGPTForCausalLM:
    """A tiny model with all of it, in which every part shows in the logits."""
    model = build(**{**RECORD, **overrides})
    with torch.no_grad():
        for layer in model.model.layers:
            if layer.embedding_scale is not None:
                layer.embedding_scale.fill_(0.5)
            for conv in (layer.attention_conv, layer.mlp_conv):
                if conv is not None:
                    conv.weight.normal_()
    return model


def naive_ngram_embedding(model: ChatGPTForCausalLM, document: list[int]) -> torch.Tensor:
    """The sum of the n-grams' embeddings of one document, (seq, hidden), token by token in Python's integers."""
    embedding = model.model.ngram_embedding
    rows = []
    for index in range(len(document)):
        key, total = document[index], torch.zeros(model.config.hidden_size)
        for distance, table in enumerate(embedding.tables, start=1):
            before = document[index - distance] if index >= distance else VOCAB
            key = key * (VOCAB + 1) + before
            size = table.num_embeddings
            product = (key * local_context_chatgpt.HASH_FACTOR + 2**63) % 2**64 - 2**63
            total = total + table.weight[key if (VOCAB + 1) ** (distance + 1) <= size else (product >> 20) % size]
        rows.append(total)
    return torch.stack(rows)


def test_ngrams_are_looked_up_as_written_out() -> None:
    model = build_record()
    ids = some_ids(2, 10)
    positions = torch.arange(10)[None]
    found = model.model.ngram_embedding(nn.functional.pad(ids, (3, 0)), positions)
    for row, document in zip(found, ids.tolist(), strict=True):
        assert torch.allclose(row, naive_ngram_embedding(model, document), atol=1e-6)
    # Every bigram has a row of its own where the table has room for all.
    pairs = torch.cartesian_prod(torch.arange(VOCAB + 1), torch.arange(VOCAB))
    assert len({(b * (VOCAB + 1) + a) for a, b in pairs.tolist()}) == len(pairs)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("memory", MEMORIES)
def test_short_memories_see_neither_padding_nor_the_neighbor(memory: str, window: int | None) -> None:
    model = build_record(sliding_window=window, **MEMORIES[memory])
    ids = some_ids(2, 9)
    alone = model(ids).logits
    for side in ("left", "right"):
        poison = some_ids(2, 5, seed=9)
        rows = torch.cat((poison, ids) if side == "left" else (ids, poison), dim=1)
        mask = torch.ones_like(rows)
        own = slice(5, None) if side == "left" else slice(0, 9)
        mask[:, :5] = 0 if side == "left" else 1
        mask[:, 9:] = 1 if side == "left" else 0
        assert torch.allclose(model(rows, attention_mask=mask).logits[:, own], alone, atol=1e-5)
    packed = model(ids.view(1, -1), position_ids=torch.arange(9).repeat(2)[None]).logits
    assert torch.allclose(packed.view(2, 9, -1), alone, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("first", [1, 2, 7])
@pytest.mark.parametrize("memory", MEMORIES)
def test_short_memories_go_on_from_a_cache(memory: str, window: int | None, kind: str, first: int) -> None:
    model = build_record(sliding_window=window, **MEMORIES[memory])
    ids = some_ids(2, 12)
    expected = model(ids).logits
    cache: Any = (
        DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=16)
    )
    found = [model(ids[:, :first], past_key_values=cache).logits]
    for start in range(first, 12):
        found.append(model(ids[:, start : start + 1], past_key_values=cache).logits)
    assert torch.allclose(torch.cat(found, dim=1), expected, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("memory", MEMORIES)
def test_short_memories_generate_the_same_on_every_path(memory: str, window: int | None) -> None:
    model = build_record(sliding_window=window, **MEMORIES[memory])
    ids = some_ids(2, 7)
    rows = torch.cat((some_ids(2, 4, seed=3), ids), dim=1)
    mask = torch.ones_like(rows)
    mask[:, :4] = 0
    for options in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}):
        expected = model.generate(ids, max_new_tokens=12, use_cache=False, **options)
        assert torch.equal(model.generate(ids, max_new_tokens=12, **options), expected)
        assert torch.equal(model.generate(ids, max_new_tokens=12, cache_implementation="static", **options), expected)
        padded = model.generate(rows, attention_mask=mask, max_new_tokens=12, **options)
        assert torch.equal(padded[:, 4:], expected)
    expected = model.generate(ids[:1], max_new_tokens=12, do_sample=False, use_cache=False)
    # Assisted decoding takes tokens back, and with them what is kept of them for their neighbors.
    if window is None:
        lookup = model.generate(ids[:1], max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
        assert torch.equal(lookup, expected)
        helper = build_record(num_hidden_layers=1, **MEMORIES[memory])
        assert torch.equal(
            model.generate(ids[:1], max_new_tokens=12, do_sample=False, assistant_model=helper), expected
        )


def test_ngrams_need_ids() -> None:
    model = build_record()
    embeddings = model.get_input_embeddings()(some_ids())
    with pytest.raises(ValueError, match="ngram_vocab_sizes"):
        model(inputs_embeds=embeddings)
    # Convolutions do not mind.
    model = build_record(ngram_vocab_sizes=None)
    embeddings = model.get_input_embeddings()(some_ids())
    assert torch.allclose(model(inputs_embeds=embeddings).logits, model(some_ids()).logits)


@pytest.mark.parametrize("attention", ["paged|sdpa", "vllm"])  # what `generate_batch` sets, and what vLLM does
@pytest.mark.parametrize("memory", MEMORIES)
def test_short_memories_refuse_paged_attention(memory: str, attention: str) -> None:
    model = build_record(**MEMORIES[memory])
    model.config._attn_implementation = attention
    with pytest.raises(ValueError, match="continuous batching"):
        model(some_ids())


@pytest.mark.parametrize("head", [ChatGPTForCausalLM, ChatGPTForSequenceClassification])
def test_the_records_model_survives_saving(head: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = head(ChatGPTConfig(**TINY, **RECORD, zero_init_residual=True, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    loaded = head.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(some_ids()).logits, model(some_ids()).logits)
    assert loaded.config.layer_types == ["hybrid", "hybrid"]


def test_the_records_model_trains_compiled() -> None:
    torch.compiler.reset()
    model = build_record().train()
    ids = some_ids(2, 12)
    positions = torch.cat((torch.arange(5), torch.arange(7))).expand(2, -1)
    expected = model(ids, position_ids=positions, labels=ids, use_cache=False).loss
    expected.backward()
    gradients = gradients_of(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(ids, position_ids=positions, labels=ids, use_cache=False).loss
    loss.backward()
    assert torch.allclose(loss, expected)
    assert_same_gradients(gradients_of(model), gradients)


def test_a_convolution_is_torchs_own() -> None:
    model = build_record(ngram_vocab_sizes=None)
    conv = model.model.layers[1].mlp_conv
    x = torch.randn(2, 9, 32)
    reach = (torch.arange(9)[None, :, None] >= torch.arange(1, 4)).float()
    padded = nn.functional.pad(x.transpose(1, 2), (3, 0))
    expected = x + nn.functional.conv1d(padded, conv.weight, groups=32).transpose(1, 2)
    assert torch.allclose(conv(x, reach, None), expected, atol=1e-5)


def test_layers_that_begin_as_the_identity() -> None:
    model = build(**RECORD, zero_init_residual=True)
    ids = some_ids()
    states = model(ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(state, states[0]) for state in states[:-1])
    assert all(float(layer.embedding_scale) == 0 for layer in model.model.layers)


def test_the_embeddings_come_back_in_every_layer() -> None:
    model = build(embedding_residual=True, embedding_norm=True, zero_init_residual=True)
    with torch.no_grad():
        for layer, scale in zip(model.model.layers, (0.5, 2.0), strict=True):
            layer.embedding_scale.fill_(scale)
    ids = some_ids()
    embeddings = model.model.embedding_norm(model.model.embed_tokens(ids))
    expected = model.lm_head(model.model.norm(embeddings * (1 + 0.5 + 2.0)))
    assert torch.allclose(model(ids).logits, expected, atol=1e-5)
