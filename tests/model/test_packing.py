"""Packed documents: no document in a row sees another, whichever attention computes it."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from tiny_model import POSITIONS, VOCAB, assert_same_gradients, build, gradients_of, some_ids

from chatgpt_hf import ChatGPTForCausalLM
from chatgpt_hf.model.modeling_chatgpt import document_bounds

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
