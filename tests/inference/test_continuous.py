"""Attention request by request gives the same as transformers' attention over all, and as separate prompts."""

import random
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.inference.continuous import prepare_batching
from chatgpt_hf.inference.cpu import attention
from chatgpt_hf.inference.cpu.attention import ATTENTION
from chatgpt_hf.inference.prompt_file import Prompt, answers
from chatgpt_hf.interpretability.attention_maps import attention_maps

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "grouped keys": {"num_key_value_heads": 2},
    "windows": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "windows alone, grouped keys": {
        "sliding_window": 24,
        "layer_types": ["sliding_attention"] * 3,
        "num_key_value_heads": 1,
    },
}
CONTEXT = 256


def tiny(**options: Any) -> ChatGPTForCausalLM:
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        # Large weights, so that another order of sums does not change the likeliest tokens.
        initializer_range=0.2,
        zero_init_residual=False,
        **options,
    )
    return ChatGPTForCausalLM(config).eval()


def requests() -> list[Prompt]:
    draw = random.Random(1)
    lengths = [1, 200, 3, 60, 25, 90, 24, 150]
    return [
        Prompt(line, {}, [draw.randrange(4, 300) for _ in range(length)], draw.randint(2, 40))
        for line, length in enumerate(lengths)
    ]


def batched(model: PreTrainedModel, **sizes: Any) -> dict[int, list[int]]:
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(use_cuda_graph=False, **sizes)
    found = {}
    for row, ids, error in answers(model, requests(), config, batching):
        assert error is None
        found[row.line] = ids
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers_own_attention_and_of_one_by_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(**KINDS[kind])
    alone = {}
    for row in requests():
        ids = torch.tensor([row.ids])
        made = model.generate(ids, max_new_tokens=row.max_new_tokens, do_sample=False, eos_token_id=None)
        alone[row.line] = made[0, len(row.ids) :].tolist()
    assert len({token for answer in alone.values() for token in answer}) > 20

    sizes = prepare_batching(model, CONTEXT, 3)
    assert model.config._attn_implementation == ATTENTION
    shapes = set()
    mask = attention._mask

    def watched(queries: int, keys: int, *others: Any) -> torch.Tensor | None:
        shapes.add((queries == 1, queries == keys))
        return mask(queries, keys, *others)

    monkeypatch.setattr(attention, "_mask", watched)
    # Few tokens per step, so that prompts are computed in pieces.
    ours = batched(model, **(sizes | {"max_batch_tokens": 64}))
    # One new token, a whole prompt, a piece of a prompt.
    assert {(True, False), (False, True), (False, False)} <= shapes
    model.config._attn_implementation = "sdpa"
    assert ours == batched(model, **sizes) == alone


def test_without_a_paged_cache_it_is_sdpa() -> None:
    model = tiny(**KINDS["windows"])
    ids = torch.randint(4, 300, (3, 70))
    mask = torch.ones_like(ids)
    mask[0, :40] = mask[1, :5] = 0
    made = []
    for implementation in ("sdpa", ATTENTION):
        model.config._attn_implementation = implementation
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits[mask == 1]
        packed = model(ids[:1], position_ids=torch.arange(70)[None] % 30).logits
        made.append((logits, packed, model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_an_implementation_that_somebody_chose_stays() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    prepare_batching(model, CONTEXT, 3)
    assert model.config._attn_implementation == "eager"


def test_a_model_that_is_batched_can_be_looked_into() -> None:
    model = tiny()
    ids = torch.randint(4, 300, (1, 9))
    expected = attention_maps(model, ids).weights
    prepare_batching(model, CONTEXT, 3)
    maps = attention_maps(model, ids)
    assert maps.switched_from == ATTENTION
    assert (maps.weights == expected).all()
    assert model.config._attn_implementation == ATTENTION
