"""N-gram tables, short convolutions and embedding residuals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import TINY, VOCAB, assert_same_gradients, build, gradients_of, some_ids
from torch import nn
from transformers import DynamicCache, StaticCache

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.model import local_context_chatgpt
from chatgpt_hf.model.modeling_chatgpt import ChatGPTForSequenceClassification

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
