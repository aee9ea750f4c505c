"""SmolLM2-135M-Instruct as our architecture, beside transformers' own Llama, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from chatgpt_hf import ChatGPTForCausalLM, convert_checkpoint, load_tokenizer

pytestmark = pytest.mark.slow
TEXTS = ["The capital of France is Paris, and", "def add(a, b):\n    return", "In 1969 people"]


@pytest.fixture(scope="module")
def source(real_model: Callable[..., Path]) -> Path:
    return real_model("float32")


@pytest.fixture(scope="module")
def theirs(source: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    assert type(model) is LlamaForCausalLM
    return model


@pytest.fixture(scope="module")
def ours(source: Path) -> PreTrainedModel:
    return ChatGPTForCausalLM.from_pretrained(source).eval()


@pytest.fixture(scope="module")
def rows(source: Path) -> dict[str, torch.Tensor]:
    """Texts of different lengths, (3, seq), padded on the left."""
    tokenizer = load_tokenizer(source)
    tokenizer.padding_side = "left"
    return dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))


@torch.no_grad()
def test_logits(theirs: PreTrainedModel, ours: PreTrainedModel) -> None:
    ids = torch.randint(49152, (1, 600), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_left_padding(theirs: PreTrainedModel, ours: PreTrainedModel, rows: dict[str, torch.Tensor]) -> None:
    seen = rows["attention_mask"].bool()
    assert not seen.all()
    whole = ours(**rows).logits
    # transformers' Llama counts positions from the row's beginning; relative positions make that no difference.
    torch.testing.assert_close(whole[seen], theirs(**rows).logits[seen], rtol=0, atol=2e-4)
    for row, mask, logits in zip(rows["input_ids"], seen, whole, strict=True):
        torch.testing.assert_close(logits[mask], ours(row[mask][None]).logits[0], rtol=0, atol=2e-4)


def test_loss_and_gradients(theirs: PreTrainedModel, ours: PreTrainedModel) -> None:
    ids = torch.randint(49152, (2, 48), generator=torch.Generator().manual_seed(1))
    losses = []
    for model in (theirs, ours):
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert difference < 1e-4, name
    for model in (theirs, ours):
        model.zero_grad()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
        {"cache_implementation": "static"},
    ],
    ids=["greedy", "beam", "sampling", "static cache"],
)
def test_generated_ids(
    options: dict[str, Any], theirs: PreTrainedModel, ours: PreTrainedModel, rows: dict[str, torch.Tensor]
) -> None:
    made = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        # A static cache compiles on a GPU only.
        made.append(model.generate(**rows, **{"do_sample": False, **options}, max_new_tokens=16).tolist())
    assert made[1] == made[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_come_back(dtype: str, real_model: Callable[..., Path], tmp_path: Path) -> None:
    source = real_model(dtype)
    assert convert_checkpoint(source, tmp_path / "ours") < 1e-4
    assert convert_checkpoint(tmp_path / "ours", tmp_path / "again", "llama") == 0
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes(), name
