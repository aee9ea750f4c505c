"""The time that an explanation will take, and what is left out of it for deep models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from chatgpt_hf import load_tokenizer
from chatgpt_hf.interpretability import ablation, attention_maps, attribution, budget, lens
from chatgpt_hf.interpretability.budget import Duration, estimate, sentence
from chatgpt_hf.interpretability.explanation import PARTS, explain
from chatgpt_hf.interpretability.page import render_page
from chatgpt_hf.interpretability.passage import passage_of_text

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": 50, "num_hidden_layers": 3, **SIZES, **options})).eval()


def test_the_estimate_counts_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second for each token of a forward pass, the estimate is the number of tokens that pass through the model."""
    model = llama()
    monkeypatch.setattr(budget, "_seconds_per_token", lambda model: (1.0, 0.0))
    rows = [list(range(20))] * 4
    passage = list(range(9))
    found = estimate(model, len(passage), lens_tokens=80, ablation_tokens=80, parts=PARTS)
    assert list(found) == list(PARTS)
    tokens = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal tokens
        tokens += kwargs["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)

    def counted(call: Any) -> int:
        nonlocal tokens
        tokens = 0
        call()
        return tokens

    ids = torch.tensor([passage])
    parts = [(part,) for part in ablation.all_parts(model)]
    assert counted(lambda: ablation.ablation_effects(model, rows, parts)) == found["ablation"].least
    assert counted(lambda: attention_maps.attention_maps(model, ids)) == found["attention"].least
    assert counted(lambda: attention_maps.head_scores(model, range(50))) == found["heads"].least
    assert counted(lambda: lens.look_through(model, ids)) == found["lens"].least
    # One more row is for the check of the head.
    assert counted(lambda: lens.train_tuned_lens(model, rows, steps=1)) == found["tuned_lens"].least + 20
    pytest.importorskip("captum")
    explained = [*passage, 1]
    took = sum(
        counted(lambda m=m: attribution.attribute(model, explained, 9, m, baseline_id=0)) for m in attribution.METHODS
    )
    # Gradients cost as much again, which is not a forward pass; each method also scores the two ends.
    assert found["attribution"].least / 2 < took < found["attribution"].most


def test_the_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"lens_tokens": 80, "parts": ["ablation"]}
    measured = estimate(llama(), 16, ablation_tokens=80, **options)
    assert list(measured) == ["ablation"]
    assert measured["ablation"].least > 0
    # Two measurements on a busy machine may differ by any factor.
    monkeypatch.setattr(budget, "_seconds_per_token", lambda model: (1e-3, 1e-4))
    small, large = (estimate(llama(), 16, ablation_tokens=tokens, **options) for tokens in (80, 8000))
    assert large["ablation"].least == pytest.approx(100 * small["ablation"].least)
    # Models that are built in another way are refused by the parts themselves.
    mamba = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1))
    assert estimate(mamba, 4, lens_tokens=1, ablation_tokens=1, parts=PARTS) == {}


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ({"lens": Duration(0.2, 0.2), "ablation": Duration(0.4, 0.4)}, "This takes about 1 s."),
        (
            {"attribution": Duration(4, 240), "tuned_lens": Duration(660, 660), "ablation": Duration(7200, 7200)},
            "This takes about 2.2 h: attribution 4 s to 4 min, tuned lens about 11 min, ablation about 2.0 h. "
            "Parts can be left out: --without ablation.",
        ),
        ({}, "How long this takes is not known for a model like this."),
    ],
)
def test_what_is_said(durations: dict[str, Duration], expected: str) -> None:
    assert sentence(durations) == expected


@pytest.mark.parametrize(("layers", "shown"), [(2, True), (30, False)])
def test_rollout_is_shown_only_if_it_says_something(layers: int, shown: bool, base_folder: Path) -> None:
    """After many layers the first token has everything, because each layer takes a little more from it."""
    tokenizer = load_tokenizer(base_folder)
    model = llama(vocab_size=len(tokenizer), num_hidden_layers=layers)
    passage = passage_of_text(model, tokenizer, "A cat sits in the garden.")
    found = explain(model, tokenizer, passage, name="a model", without=set(PARTS) - {"attention"})
    assert (found.rollout is not None) == shown
    notes = [note for note in found.notes if "rollout" in note]
    assert notes == ([] if shown else [notes[0]])
    page = render_page(found, tokenizer)
    assert ("<b>Rollout</b>" in page) == shown
    assert 'id="attention-maps"' in page
    if not shown:
        assert "Attention rollout is left out: after 30 layers it gives the first token" in page
