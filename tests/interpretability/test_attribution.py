"""Attributions, compared with plain loops and with the sums that theory demands."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from chatgpt_hf.errors import ConfigError, DataError, MissingDependency
from chatgpt_hf.interpretability.attribution import METHODS, attribute
from chatgpt_hf.interpretability.drawing import draw_attributions

pytest.importorskip("captum", reason="needs captum: pip install 'chatgpt-hf[explain]'")


def log_probability(model: PreTrainedModel, ids: list[int], begin: int, context: list[int]) -> float:
    """Returns log p of `ids[begin:]` if the model reads `context` instead of `ids[:-1]`."""
    with torch.no_grad():
        logs = model(torch.tensor([context])).logits[0].log_softmax(-1)
    return sum(logs[place - 1, ids[place]].item() for place in range(begin, len(ids)))


@pytest.mark.parametrize("begin", [11, 8])
def test_occlusion(model: PreTrainedModel, ids: torch.Tensor, begin: int) -> None:
    if getattr(model.config, "ngram_vocab_sizes", None):
        pytest.skip("n-grams are looked up by the ids, which stay")
    row = ids[0].tolist()
    found = attribute(model, row, begin, "occlusion", baseline_id=7)
    whole = log_probability(model, row, begin, row[:-1])
    assert found.log_probability == pytest.approx(whole, abs=1e-4)
    assert found.baseline_log_probability == pytest.approx(log_probability(model, row, begin, [7] * 11), abs=1e-4)
    for place in range(11):
        without = [*row[:place], 7, *row[place + 1 : -1]]
        assert found.scores[place] == pytest.approx(whole - log_probability(model, row, begin, without), abs=1e-3)
    assert found.scores[11] == 0


def test_gradient_x_input(model: PreTrainedModel, ids: torch.Tensor) -> None:
    row = ids[0].tolist()
    found = attribute(model, row, 9, "gradient_x_input", baseline_id=7)
    assert all(parameter.requires_grad for parameter in model.parameters())
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    with model.get_input_embeddings().register_forward_hook(keep):
        logs = model(ids[:, :-1]).logits[0].log_softmax(-1)
    total = sum(logs[place - 1, row[place]] for place in (9, 10, 11))
    (gradient,) = torch.autograd.grad(total, kept[0])
    np.testing.assert_allclose(found.scores[:-1], (gradient * kept[0]).sum(-1)[0].detach(), rtol=1e-3, atol=1e-4)


def test_integrated_gradients_add_up(model: PreTrainedModel, ids: torch.Tensor) -> None:
    for begin in (11, 6):
        found = attribute(model, ids[0].tolist(), begin, baseline_id=7)
        assert found.error <= 0.01, found.steps
        assert found.scores[11] == 0


def test_integrated_gradients_add_up_on_twenty_texts(chat_folder: Path, corpus_file: Path) -> None:
    documents = [json.loads(line)["text"] for line in corpus_file.read_text(encoding="utf-8").splitlines()]
    model = AutoModelForCausalLM.from_pretrained(chat_folder)
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    errors = []
    for text in [*documents[:72:4], "你好！我是一个小模型。", "😀👍🏽 yes 🎉"]:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)][:40]
        begin, baseline = len(ids) // 2, tokenizer.eos_token_id
        found = attribute(model, ids, begin, baseline_id=baseline)
        outputs = [log_probability(model, ids, begin, context) for context in (ids[:-1], [baseline] * (len(ids) - 1))]
        errors.append(abs(found.scores.sum() - (outputs[0] - outputs[1])) / abs(outputs[0] - outputs[1]))
        assert found.error == pytest.approx(errors[-1], abs=1e-4)
    assert len(errors) == 20
    assert max(errors) <= 0.01


def test_what_an_induction_head_copies(planted: Any) -> None:
    # The next token depends on its earlier occurrence and on its neighbor there, which shows the repetition.
    ids = planted.rows[0][:30]
    earlier = 29 - planted.length
    for method in ("occlusion", "integrated_gradients"):
        scores = attribute(planted.model, ids, 29, method, baseline_id=ids[0]).scores
        assert set(np.argsort(-scores)[:3]) >= {earlier}, method
    found = {method: attribute(planted.model, ids, 29, method, baseline_id=ids[0]) for method in METHODS}
    panels = draw_attributions([str(token) for token in ids], found).axes
    assert [axes.get_title() for axes in panels] == ["gradient x input", "integrated gradients", "occlusion"]


def test_mistakes(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no attribution method 'lime'"):
        attribute(model, [1, 2], 1, "lime", baseline_id=0)
    for begin in (0, 2):
        with pytest.raises(DataError, match=f"begin is {begin}"):
            attribute(model, [1, 2], begin, baseline_id=0)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(MissingDependency, match="pip install 'chatgpt-hf\\[explain\\]'"):
        attribute(model, [1, 2], 1, baseline_id=0)
