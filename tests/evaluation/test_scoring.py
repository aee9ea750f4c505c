"""Likelihoods of tokens, compared with one forward pass per row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from peft import LoraConfig, get_peft_model
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_model, load_tokenizer
from chatgpt_hf.evaluation import scoring
from chatgpt_hf.evaluation.scoring import continuation, negative_log_likelihoods, next_log_probs

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
# Ids and the first token that counts.
PIECES = [
    (torch.randint(50, (length,), generator=torch.Generator().manual_seed(length)).tolist(), first)
    for length, first in ((40, 1), (9, 3), (30, 12), (2, 1), (33, 20))
]


@pytest.fixture(scope="module")
def model(base_folder: Path) -> Any:
    return load_model(base_folder).eval()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(batch_size: int, model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    pieces = [
        (torch.randint(5, 200, (length,), generator=generator).tolist(), first)
        for length, first in ((9, 1), (4, 3), (30, 12), (2, 1))
    ]
    expected = []
    for ids, first in pieces:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(-sum(logits[place - 1, ids[place]].item() for place in range(first, len(ids))))
    found = negative_log_likelihoods(model, pieces, pad_token_id=0, batch_size=batch_size, progress=False)
    assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("make", ["adapted", "Whole"])
@pytest.mark.parametrize("batch_size", [2, None])
def test_the_next_token(batch_size: int | None, make: str) -> None:
    model = adapted() if make == "adapted" else Whole(LlamaConfig(**SIZES)).eval()
    rows, tokens = [ids for ids, _ in PIECES], [[3, 7, index] for index in range(len(PIECES))]
    found = next_log_probs(model, rows, tokens, pad_token_id=0, batch_size=batch_size, progress=False)
    for row, chosen, log_probs in zip(rows, tokens, found, strict=True):
        with torch.no_grad():
            expected = model.eval()(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)[chosen]
        assert_allclose(log_probs, expected, rtol=1e-4)


def test_a_mask_says_what_counts(model: Any) -> None:
    ids = PIECES[0][0]
    masks = [[int(3 <= place < 9 or place > 30) for place in range(len(ids))], [0] * 3 + [1] * (len(ids) - 3)]
    found = negative_log_likelihoods(model, [(ids, mask) for mask in masks], pad_token_id=0, progress=False)
    each = [
        negative_log_likelihoods(model, [(ids[: place + 1], place)], pad_token_id=0, progress=False)[0]
        for place in range(3, len(ids))
    ]
    assert_allclose(
        found, [sum(nats for place, nats in enumerate(each, 3) if mask[place]) for mask in masks], rtol=1e-4
    )


@pytest.mark.parametrize(("context", "text"), [("The cat", " sits."), ("The cat ", "sits."), ("", "sits.")])
def test_what_counts_of_a_continuation(context: str, text: str, base_folder: Path) -> None:
    tokenizer = load_tokenizer(str(base_folder))
    ids, first = continuation(tokenizer, context, text, max_length=64)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == context + text
    assert tokenizer.decode(ids[first:]).strip() == "sits."


def test_a_long_context_loses_its_beginning(base_folder: Path) -> None:
    tokenizer = load_tokenizer(str(base_folder))
    ids, first = continuation(tokenizer, "one two three " * 20, "four", max_length=16)
    assert len(ids) == 16
    assert tokenizer.decode(ids[first:]).strip() == "four"


def test_a_model_that_is_trained_goes_on_so(model: Any) -> None:
    model.train()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="this model knows 0 to 299"):
        negative_log_likelihoods(model, [([10**9] * 3, 1)], pad_token_id=0, progress=False)
    assert [module.training for module in model.modules()] == modes
    model.eval()


def adapted() -> PreTrainedModel:
    """Returns a model with an adapter on its head, too."""
    config = LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), config)


class Shifted(LlamaForCausalLM):
    """A model whose logits depend on more than the body's hidden states."""

    def forward(self, input_ids: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        output = super().forward(input_ids, logits_to_keep=logits_to_keep, **kwargs)
        output.logits[..., 7] += input_ids.sum()
        return output


class Whole(LlamaForCausalLM):
    """A model that always computes all logits."""

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        return super().forward(input_ids, attention_mask=attention_mask, use_cache=use_cache)


@pytest.mark.parametrize(
    ("make", "in_parts"),
    [
        (lambda: ChatGPTForCausalLM(ChatGPTConfig(**SIZES, final_logit_softcapping=2.0)), True),
        (lambda: ChatGPTForCausalLM(ChatGPTConfig(**SIZES, ngram_vocab_sizes=[64], conv_kernel_size=3)), True),
        (lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)), True),
        (adapted, True),
        (lambda: Shifted(LlamaConfig(**SIZES)), False),
        (lambda: Whole(LlamaConfig(**SIZES)), False),
    ],
    ids=["soft-capped", "short-memories", "scaled", "adapted", "shifted", "whole"],
)
def test_the_head_in_parts(
    make: Callable[[], PreTrainedModel], in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make().eval()
    expected = negative_log_likelihoods(model, PIECES, pad_token_id=0, progress=False)
    # Room for the logits of seven positions.
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * 50 * 7)
    sizes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:-1].numel()))
    found = negative_log_likelihoods(model, PIECES, pad_token_id=0, progress=False)
    handle.remove()
    assert_allclose(found, expected, rtol=1e-6)
    if in_parts:
        assert max(sizes) <= 7
        counted = sum(len(ids) - first for ids, first in PIECES)
        # Positions that do not count need no logits; twice the last position of each row is for the check of the head.
        assert sum(sizes) == counted + 2 * len(PIECES)
    else:
        assert max(sizes) == 40 * len(PIECES)
    modules = list(model.modules())
    assert not [module for module in modules if "forward" in vars(module) or module._forward_hooks]


def test_long_rows_come_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 80)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    negative_log_likelihoods(model, PIECES, pad_token_id=0, progress=False)
    assert shapes == [(2, 40), (2, 30), (1, 2)]
    shapes.clear()
    negative_log_likelihoods(model, PIECES, pad_token_id=0, batch_size=5, progress=False)
    assert shapes == [(5, 40)], "a batch size that was asked for is obeyed"


def test_the_bar_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of very different lengths: a bar that counts batches would be wrong about the time that is left."""
    bars = []

    class Bar(scoring.tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seen: list[float] = []
            bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.seen.append(n or 0)
            return super().update(n)

    monkeypatch.setattr(scoring, "tqdm", Bar)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    negative_log_likelihoods(model, PIECES, pad_token_id=0, batch_size=2)
    (bar,) = bars
    assert bar.total == sum(len(ids) for ids, _ in PIECES)
    assert bar.seen == [73, 39, 2]
