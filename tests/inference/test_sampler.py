"""Samples are those of a plain loop over one row, and their log-probabilities those of a training."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import CheckpointError, ConfigError, DataError
from chatgpt_hf.inference import sampler as module
from chatgpt_hf.inference.cpu.layers import PackedLinear
from chatgpt_hf.inference.cpu.packed_linear import packed_copy
from chatgpt_hf.inference.sampler import Reply, Sample, sample_completions

VOCAB, ENDS = 64, {3, 5, 26, 40, 41}
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Each sets something that changes what a model says, none of it an argument of the sampler.
POISON = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_p": 0.5, "top_k": 1, "temperature": 0.1}


def ours(**fields: Any) -> PreTrainedModel:
    return ChatGPTForCausalLM(ChatGPTConfig(**SIZES, max_position_embeddings=64, initializer_range=0.2, **fields))


def llama(**fields: Any) -> PreTrainedModel:
    own = {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, **own, **fields))


def gemma() -> PreTrainedModel:
    own = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.2}
    caps = {"sliding_window": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, intermediate_size=64, **own, **caps))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "ours": lambda: ours(num_key_value_heads=2),
    "learned": lambda: ours(position_embedding_type="learned"),
    "window": lambda: ours(sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
    "soft cap": lambda: ours(final_logit_softcapping=3.0),
    "n-grams": lambda: ours(conv_kernel_size=3, ngram_vocab_sizes=[32, 32]),
    "llama": llama,
    "gemma2": gemma,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.1)
    ),
}
PROMPTS = [[7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20], [21, 22, 23, 24, 25]]


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.update(**POISON)
    return model


def sample(model: PreTrainedModel, prompts: Sequence[Sequence[int]] = PROMPTS, **options: Any) -> list[list[Sample]]:
    fixed: dict[str, Any] = {"samples": 2, "max_new_tokens": 12, "end_ids": ENDS}
    return sample_completions(model, prompts, **{**fixed, "generator": torch.Generator().manual_seed(4), **options})


def by_hand(
    model: PreTrainedModel,
    prompt: Sequence[int],
    draws: list[float],
    temperature: float,
    replies: Sequence[list[int]] = (),
) -> list[int]:
    """One row, without a cache or padding: the token at which the sum of probabilities passes the draw.

    An end mark is followed by the first of the replies, the next one by the second; where it leaves no room, the row is cut before
    the end mark. A token of a reply uses up a draw.
    """
    ids, replies = list(prompt), list(replies)
    for at, draw in enumerate(draws):
        if len(ids) > len(prompt) + at:
            continue
        scores = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).tolist()
        weights = [math.exp(score) for score in scores]
        token = next(token for token, total in enumerate(itertools.accumulate(weights)) if total > draw * sum(weights))
        ids.append(token)
        if token in ENDS:
            if not replies:
                break
            if len(ids) + len(replies[0]) >= len(prompt) + len(draws):
                ids.pop()
                break
            ids += replies.pop(0)
    return ids[len(prompt) :]


def trained_log_probs(
    model: PreTrainedModel, prompt: Sequence[int], ids: list[int], temperature: float
) -> torch.Tensor:
    """What a training computes: all tokens in one row, padded on the right."""
    row = torch.tensor([[*prompt, *ids, 0, 0]])
    mask = torch.ones_like(row)
    mask[:, -2:] = 0
    log_probs = (model(row, attention_mask=mask).logits[0].float() / temperature).log_softmax(-1)
    return log_probs[len(prompt) - 1 : -3].gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize(
    ("name", "packed"), [*((name, False) for name in MODELS), *((name, True) for name in ("ours", "n-grams", "llama"))]
)
@torch.no_grad()
def test_the_same_tokens_and_log_probabilities_as_by_hand(name: str, packed: bool) -> None:
    model = make(name)
    found = sample(packed_copy(model) if packed else model, temperature=1.3)
    # The sampler leaves a model in the mode in which it was.
    assert packed or model.training
    model.eval()
    draws = torch.rand(4, 2, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    lengths = set()
    for prompt, answers, own in zip(PROMPTS, found, draws, strict=True):
        for answer, numbers in zip(answers, own.tolist(), strict=True):
            assert answer.ids == by_hand(model, prompt, numbers, 1.3)
            assert answer.ended == (answer.ids[-1] in ENDS)
            expected = trained_log_probs(model, prompt, answer.ids, 1.3)
            torch.testing.assert_close(torch.tensor(answer.log_probs), expected, rtol=0, atol=1e-5)
            lengths.add(len(answer.ids))
    assert max(lengths) == 12
    assert len(lengths) > 1


@torch.no_grad()
def test_greedy_tokens_are_those_of_generate(llama_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    answers = sample(model, temperature=0, samples=2, end_ids={2, 3})
    neutral = {"repetition_penalty": 1.0, "do_sample": False, "eos_token_id": [2, 3], "pad_token_id": 0}
    for prompt, (first, second) in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, **neutral)
        assert first == second
        assert first.ids == expected[0, len(prompt) :].tolist()
        found = trained_log_probs(model, prompt, first.ids, 1.0)
        torch.testing.assert_close(torch.tensor(first.log_probs), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_the_division_into_batches_changes_nothing(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("ours")
    expected = [[answer.ids for answer in answers] for answers in sample(model)]
    for share in (0.0, 1.0):
        monkeypatch.setattr(module, "_LEFT", share)
        found = sample(model, batch_size=batch_size)
        assert [[answer.ids for answer in answers] for answers in found] == expected


@pytest.mark.parametrize(("name", "batch_size"), [("ours", 5), ("n-grams", 8)])
@torch.no_grad()
def test_replies_are_read_and_not_sampled(name: str, batch_size: int) -> None:
    """A row goes on after each reply; an end mark in a reply ends nothing."""
    model = make(name)
    given = [[30, 3, 31], [32]]
    turns: list[list[int]] = []

    def replying(turn: list[int], before: int) -> Reply | None:
        turns.append(turn)
        return Reply(given[before], [{"role": "tool", "content": str(before)}]) if before < len(given) else None

    options: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.3, "batch_size": batch_size}
    found = sample(packed_copy(model) if name == "ours" else model, **options, replying=replying)
    model.eval()
    draws = torch.rand(4, 2, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    said = []
    for prompt, answers, own in zip(PROMPTS, found, draws, strict=True):
        for answer, numbers in zip(answers, own.tolist(), strict=True):
            assert answer.ids == by_hand(model, prompt, numbers, 1.3, given)
            mask = torch.tensor(answer.tool_mask).bool()
            assert [token for reply in answer.replies for token in reply.ids] == torch.tensor(answer.ids)[
                ~mask
            ].tolist()
            assert [reply.messages[0]["content"] for reply in answer.replies] == ["0", "1"][: len(answer.replies)]
            expected = trained_log_probs(model, prompt, answer.ids, 1.3).where(mask, 0.0)
            torch.testing.assert_close(torch.tensor(answer.log_probs), expected, rtol=0, atol=1e-5)
            assert answer.ended == (len(answer.replies) == 2 and answer.ids[-1] in ENDS)
            begins = [0, *(reply.begin + len(reply.ids) for reply in answer.replies)]
            ends = [*(reply.begin for reply in answer.replies), len(answer.ids)]
            said += [answer.ids[begin:end] for begin, end in zip(begins, ends, strict=True)]
    # What was asked for replies: whole turns, also those that were cut because there was no room.
    assert all((turn in said or turn[:-1] in said) and turn[-1] in ENDS for turn in turns)
    assert any(answer.ended for answers in found for answer in answers)


def test_an_answer_without_room_for_the_reply_is_cut_before_its_end_mark() -> None:
    model = make("ours")
    ordinary = sample(model)
    ended = [answer for answers in ordinary for answer in answers if answer.ended]
    assert 0 < len(ended) < 8
    # No reply at all; one that fills the rest; and one that leaves a token.
    for ids, goes_on in (
        ([], False),
        ([30] * (12 - len(ended[0].ids)), False),
        ([30] * (11 - len(ended[0].ids)), True),
    ):
        turn = ended[0].ids
        found = sample(
            model, replying=lambda asked, before, ids=ids, turn=turn: Reply(ids, []) if asked == turn else None
        )
        for before, after in zip(itertools.chain(*ordinary), itertools.chain(*found), strict=True):
            if goes_on and before.ids == turn:
                assert after.ids[:-1] == turn + ids
                continue
            expected = before if before.ids != turn else Sample(turn[:-1], before.log_probs[:-1], ended=False)
            # Rows leave the batch at other steps, and some processors round a product by the number of its rows.
            assert after.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
            assert dataclasses.replace(after, log_probs=[]) == dataclasses.replace(expected, log_probs=[])


def test_each_prompt_can_have_its_own_generator() -> None:
    model = make("ours")
    generators = [torch.Generator().manual_seed(index) for index in range(4)]
    together = sample(model, generator=generators)
    alone = sample(model, PROMPTS[2:3], generator=[torch.Generator().manual_seed(2)])
    assert [answer.ids for answer in alone[0]] == [answer.ids for answer in together[2]]


@torch.no_grad()
def test_filters_leave_out_tokens_and_keep_the_log_probabilities() -> None:
    model = make("ours")
    plain = sample(model, samples=64, max_new_tokens=1, end_ids=())
    options: dict[str, dict[str, Any]] = {"top_k": {"top_k": 3}, "top_p": {"top_p": 0.4}, "min_p": {"min_p": 0.3}}
    found = {name: sample(model, samples=64, max_new_tokens=1, end_ids=(), **own) for name, own in options.items()}
    model.eval()
    for index, prompt in enumerate(PROMPTS):
        log_probs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        order = log_probs.argsort(descending=True).tolist()
        before = (log_probs.exp()[order].cumsum(0) - log_probs.exp()[order]).tolist()
        allowed = {
            "top_k": set(order[:3]),
            "top_p": {token for token, sum_before in zip(order, before, strict=True) if sum_before < 0.4},
            "min_p": {token for token in order if log_probs[token].exp() >= 0.3 * log_probs.exp().max()},
        }
        assert len({answer.ids[0] for answer in plain[index]}) > 10
        for name, tokens in allowed.items():
            said = {answer.ids[0] for answer in found[name][index]}
            assert said <= tokens
            assert len(said) > 1 or len(tokens) == 1
            for answer in found[name][index]:
                assert answer.log_probs[0] == pytest.approx(log_probs[answer.ids[0]].item(), abs=1e-5)


@torch.no_grad()
def test_frequencies_are_the_probabilities() -> None:
    model = make("ours").eval()
    answers = sample(model, [PROMPTS[0]], samples=4000, max_new_tokens=1, end_ids=())
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in answers[0]]), minlength=VOCAB)
    expected = 4000 * model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    # Chi-squared with at most 63 degrees of freedom: 120 comes once in 100,000 seeds.
    assert ((counts - expected) ** 2 / expected.clamp(min=1e-6))[expected > 5].sum() < 120


def test_the_ends_of_the_range_reach_no_token_without_probability() -> None:
    never = float("-inf")
    logits = torch.tensor([[never, 0.0, 1.0, never]]).repeat(2, 1)
    draws = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    chosen, _ = module._choose(logits, draws, module._Settings(1.0, 0, 1.0, 0.0))
    assert chosen.tolist() == [1, 2]


def test_answers_end_where_the_context_does() -> None:
    prompt = list(range(6, 61))
    answers = sample(make("ours"), [prompt, [7]], end_ids=(), max_new_tokens=40)
    assert {len(answer.ids) for answer in answers[0]} == {9}
    assert {len(answer.ids) for answer in answers[1]} == {40}
    assert not any(answer.ended for answers in answers for answer in answers)


def test_a_packed_copy_shares_what_it_does_not_pack() -> None:
    model = make("ours").train()
    copy = packed_copy(model)
    assert any(isinstance(layer, PackedLinear) for layer in copy.modules())
    assert not any(isinstance(layer, PackedLinear) for layer in model.modules())
    assert copy.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert not copy.training
    assert packed_copy(copy) is copy
    # The model can still be trained after it was sampled from.
    sample(model)
    model(torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_adapters_take_part() -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model = get_peft_model(make("ours"), LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    found = sample(packed_copy(model))
    model.eval()
    for prompt, answers in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            expected = trained_log_probs(model, prompt, answers[0].ids, 1.0)
        torch.testing.assert_close(torch.tensor(answers[0].log_probs), expected, rtol=0, atol=1e-5)
    with torch.no_grad(), model.disable_adapter():
        assert (trained_log_probs(model, prompt, answers[0].ids, 1.0) - expected).abs().max() > 0.01
    tuned = get_peft_model(make("ours"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match="PROMPT_TUNING"):
        sample(tuned)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        sample(make("ours"), **options)


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(DataError, match="Prompt 1 has 0 tokens"):
        sample(make("ours"), [[7], []])
    with pytest.raises(DataError, match="Prompt 0 has 64 tokens: 1 to 63"):
        sample(make("ours"), [[7] * 64])
    state = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ConfigError, match="MambaForCausalLM does not"):
        sample(state)
    broken = make("ours")
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        sample(broken)
