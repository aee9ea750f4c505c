"""LoRA with peft, used as its documentation does."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import chatgpt_hf  # noqa: F401

IDS = torch.arange(4, 44).view(2, 20)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def train(model: nn.Module, ids: torch.Tensor = IDS, steps: int = 3) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})


@pytest.mark.works_with("PEFT", "LoRA: only the adapter is trained; the merged model computes the same", ("peft",))
@pytest.mark.parametrize("variant", ["modern", "gpt2", "memories"])
def test_lora_and_merge(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folders[variant])
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    plain = logits(base)
    model = peft.get_peft_model(base, lora())
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)

    losses = train(model)
    assert all(torch.tensor(losses).isfinite())
    assert losses[-1] < losses[0]
    for name, weight in model.state_dict().items():
        original = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(weight, before[original]), name
        elif "lora_B" in name:
            assert weight.abs().max() > 0, f"{name} was not trained"
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.01

    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*"))
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[variant]), tmp_path)
    torch.testing.assert_close(logits(again), adapted, rtol=0, atol=0)
    merged = again.merge_and_unload()
    assert type(merged).__name__ == "ChatGPTForCausalLM"
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.works_with("PEFT", "several adapters on one base: switched, weighted together, turned off", ("peft",))
def test_several_adapters(folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = logits(base)
    model = peft.get_peft_model(base, lora(), adapter_name="one")
    train(model)
    one = logits(model)
    model.add_adapter("two", lora(r=2, target_modules=["q_proj", "v_proj", "lm_head"]))
    model.set_adapter("two")
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    train(model, IDS.flip(1))
    two = logits(model)
    assert (two - one).abs().max() > 0.01
    model.set_adapter("one")
    torch.testing.assert_close(logits(model), one, rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "two", adapter_name="two"
    )
    again.load_adapter(tmp_path / "one", adapter_name="one")
    torch.testing.assert_close(logits(again), two, rtol=0, atol=0)
    again.set_adapter("one")
    torch.testing.assert_close(logits(again), one, rtol=0, atol=0)
    # Rows of one batch, each with an adapter of its own.
    with torch.no_grad():
        mixed = again.eval()(input_ids=IDS, adapter_names=["one", "two"]).logits
    torch.testing.assert_close(mixed, torch.stack((one[0], two[1])), rtol=1e-5, atol=1e-5)


@pytest.mark.works_with(
    "PEFT", "transformers' own adapter methods: add, load, enable, disable", ("peft", "transformers")
)
def test_adapters_of_transformers(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = logits(model)
    model.add_adapter(lora(), adapter_name="own")
    train(model)
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    model.disable_adapters()
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    again = AutoModelForCausalLM.from_pretrained(folder)
    again.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(again), adapted, rtol=0, atol=0)


@pytest.mark.works_with("PEFT", "DoRA, IA³ and prompt tuning: two steps, base untouched, saved and loaded", ("peft",))
@pytest.mark.parametrize("kind", ["dora", "ia3", "prompt"])
def test_other_methods(kind: str, folder: Path, tmp_path: Path) -> None:
    config = {
        "dora": lora(use_dora=True),
        "ia3": peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    }[kind]
    base = AutoModelForCausalLM.from_pretrained(folder)
    frozen = dict(base.named_parameters())
    before = {name: weight.clone() for name, weight in frozen.items()}
    model = peft.get_peft_model(base, config)
    start = logits(model)
    losses = train(model, steps=2)
    assert all(torch.tensor(losses).isfinite())
    assert all(torch.equal(frozen[name], weight) for name, weight in before.items())
    adapted = logits(model)
    assert (adapted - start).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    torch.testing.assert_close(logits(again), adapted, rtol=1e-5, atol=1e-5)
