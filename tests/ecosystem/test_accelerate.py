"""Models larger than memory with accelerate: empty ones, device maps, parts on disk. And its own training loop."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import chatgpt_hf  # noqa: F401

IDS = torch.arange(4, 44).view(2, 20)
VARIANTS = ["modern", "gpt2", "memories"]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, attention_mask=torch.ones_like(IDS)).logits


def split(whole: nn.Module) -> dict[str, Any]:
    """The second layer, the last norm and an untied head on disk, the rest in memory."""
    device_map: dict[str, Any] = {
        f"model.{name}": "cpu" for name, _ in whole.model.named_children() if name != "layers"
    }
    device_map |= {f"model.layers.{index}": "cpu" for index in range(3)}
    head = "cpu" if whole.config.tie_word_embeddings else "disk"
    return {**device_map, "lm_head": head, "model.layers.1": "disk", "model.norm": "disk"}


@pytest.mark.works_with(
    "accelerate", "`init_empty_weights` and `load_checkpoint_and_dispatch`, parts on disk", ("accelerate",)
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_model_is_filled(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folders[variant])
    with accelerate.init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folders[variant]))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    model.tie_weights()
    model = accelerate.load_checkpoint_and_dispatch(
        model, str(folders[variant]), device_map=split(whole), offload_folder=str(tmp_path)
    )
    assert {weight.device.type for weight in model.model.layers[1].parameters()} == {"meta"}
    assert list(tmp_path.glob("model.layers.1.*.dat"))
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=0)


@pytest.mark.works_with(
    "accelerate", "`from_pretrained(device_map=…)`, parts on disk; generates the same", ("accelerate", "transformers")
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_device_map(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folders[variant])
    model = AutoModelForCausalLM.from_pretrained(
        folders[variant], device_map=split(whole), offload_folder=str(tmp_path)
    )
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert {weight.device.type for weight in model.model.layers[1].parameters()} == {"meta"}
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=0)
    generation = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(model.generate(IDS, **generation), whole.generate(IDS, **generation))
    # With labels too, where the head's weight is read without its forward.
    with torch.no_grad():
        losses = [each.train()(IDS, labels=IDS).loss for each in (model, whole)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)


@pytest.mark.works_with(
    "accelerate", "`infer_auto_device_map` splits between layers, never within one", ("accelerate",)
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_inferred_device_map(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folders[variant])
    with accelerate.init_empty_weights():
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folders[variant]))
    empty.tie_weights()
    sizes = accelerate.utils.compute_module_sizes(empty)
    room = sizes[""] - sizes["model.layers.2"]
    device_map = accelerate.infer_auto_device_map(
        empty, max_memory={"cpu": room, "disk": 10**9}, no_split_module_classes=empty._no_split_modules
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    assert not [name for name in device_map if name.startswith("model.layers.") and name.count(".") > 2]
    model = accelerate.load_checkpoint_and_dispatch(
        empty, str(folders[variant]), device_map=device_map, offload_folder=str(tmp_path)
    )
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=0)


@pytest.mark.works_with(
    "accelerate", "`disk_offload` of a whole model: one layer in memory at a time", ("accelerate",)
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_on_disk(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folders[variant])
    model = accelerate.disk_offload(
        AutoModelForCausalLM.from_pretrained(folders[variant]), str(tmp_path), execution_device=torch.device("cpu")
    )
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=0)


@pytest.mark.works_with(
    "accelerate", "`Accelerator` in a custom loop: accumulation, saved and loaded state", ("accelerate",)
)
def test_a_loop_of_ones_own(folder: Path, tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(3, 200, (8, 16))]

    def prepared() -> tuple[accelerate.Accelerator, Any, Any, Any]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        loader = torch.utils.data.DataLoader(rows, batch_size=2)
        return (accelerator, *accelerator.prepare(model, optimizer, loader))

    def epoch(accelerator: accelerate.Accelerator, model: Any, optimizer: Any, loader: Any) -> list[float]:
        losses = []
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses

    first = prepared()
    losses = epoch(*first)
    # Two batches make a step: the first two see the same weights.
    plain = AutoModelForCausalLM.from_pretrained(folder)
    plain.train()
    for index, (loss, batch) in enumerate(zip(losses, first[3], strict=True)):
        assert (plain(**batch).loss.item() == pytest.approx(loss, abs=1e-6)) == (index < 2)
    first[0].save_state(str(tmp_path))
    rest = epoch(*first)
    assert sum(rest) < sum(losses)
    second = prepared()
    second[0].load_state(str(tmp_path))
    assert epoch(*second) == rest
