"""Inputs: ids or embeddings within the vocabulary, and padding that changes nothing."""

import pytest
import torch
from tiny_model import POSITIONS, VOCAB, assert_same_gradients, build, gradients_of, some_ids
from torch import nn


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
