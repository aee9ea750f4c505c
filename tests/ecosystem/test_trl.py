"""TRL's trainers, two steps each, as its documentation calls them: a folder, a dataset, a config."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer

import chatgpt_hf  # noqa: F401

ANIMALS = ["cat", "dog", "bird", "horse"]


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


QUESTIONS = [turn("user", f"Where is the {animal}?") for animal in ANIMALS]
GOOD = [turn("assistant", f"The {animal} sits in the garden.") for animal in ANIMALS]
BAD = [turn("assistant", f"I am no {animal}!") for animal in ANIMALS]
PAIRS = Dataset.from_dict({"prompt": QUESTIONS, "chosen": GOOD, "rejected": BAD})


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    common = {
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return {**common, **more}


def two_steps(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Trains, checks that the losses are numbers, and gives what was logged at each step."""
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2]
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in logged)
    return iter(logged)


def changed(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    """Names of the weights that differ."""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.works_with("TRL", "`SFTTrainer`: conversations, loss only on the answers", ("trl",))
@pytest.mark.parametrize("variant", ["modern", "gpt2", "memories"])
def test_sft(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    rows = Dataset.from_dict({"messages": [asked + said for asked, said in zip(QUESTIONS, GOOD, strict=True)]})
    arguments = trl.SFTConfig(**settings(tmp_path, assistant_only_loss=True, max_length=64))
    trainer = trl.SFTTrainer(str(folders[variant]), args=arguments, train_dataset=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    text = trainer.processing_class.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert text.startswith("The ")
    assert "Where" not in text
    first, second = two_steps(trainer)
    assert second["loss"] < first["loss"]
    before = AutoModelForCausalLM.from_pretrained(folders[variant])
    assert changed(before, trainer.model) == set(before.state_dict())


@pytest.mark.works_with("TRL", "`SFTTrainer` with packing and with LoRA", ("trl", "peft"))
def test_sft_packed_with_lora(folder: Path, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": [f"The {animal} sits in the garden." for animal in ANIMALS] * 8})
    arguments = trl.SFTConfig(**settings(tmp_path, packing=True, max_length=64, padding_free=True))
    trainer = trl.SFTTrainer(
        str(folder),
        args=arguments,
        train_dataset=rows,
        peft_config=peft.LoraConfig(),
    )
    assert "position_ids" in next(iter(trainer.get_train_dataloader()))
    list(two_steps(trainer))
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert changed(base, trainer.model.unload()) == set()


@pytest.mark.works_with("TRL", "`DPOTrainer`, the model and its reference from a folder", ("trl",))
@pytest.mark.parametrize("variant", ["modern", "gpt2", "memories"])
def test_dpo(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    arguments = trl.DPOConfig(**settings(tmp_path, per_device_train_batch_size=4))
    trainer = trl.DPOTrainer(str(folders[variant]), args=arguments, train_dataset=PAIRS)
    first, second = two_steps(trainer)
    # Model and reference are the same at first, so the loss is that of a fair coin; then the chosen answers win.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert second["loss"] < first["loss"]
    assert second["rewards/margins"] > 0
    before = AutoModelForCausalLM.from_pretrained(folders[variant])
    assert changed(before, trainer.model)
    assert not changed(before, trainer.accelerator.unwrap_model(trainer.ref_model))


@pytest.mark.works_with("TRL", "`RewardTrainer` on a sequence classifier with one score", ("trl",))
@pytest.mark.parametrize("variant", ["modern", "gpt2"])
def test_reward(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folders[variant], num_labels=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    arguments = trl.RewardConfig(**settings(tmp_path, per_device_train_batch_size=4))
    trainer = trl.RewardTrainer(model, args=arguments, train_dataset=PAIRS)
    first, second = two_steps(trainer)
    assert second["loss"] < first["loss"]
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())
    # From the folder alone, with a fresh head.
    trainer = trl.RewardTrainer(str(folders[variant]), args=arguments, train_dataset=PAIRS)
    list(two_steps(trainer))
    assert trainer.model.config.num_labels == 1


def many_letters(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.mark.works_with("TRL", "`GRPOTrainer` with a reward function, generation by transformers", ("trl",))
@pytest.mark.parametrize("variant", ["modern", "memories"])
def test_grpo(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    arguments = trl.GRPOConfig(
        **settings(tmp_path, per_device_train_batch_size=4, num_generations=4, max_completion_length=8, beta=0.1)
    )
    trainer = trl.GRPOTrainer(
        str(folders[variant]),
        reward_funcs=many_letters,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": QUESTIONS}),
    )
    first, second = two_steps(trainer)
    assert first["reward"] > 0
    assert max(first["completions/max_length"], second["completions/max_length"]) <= 8
    # The reference is the model as it was: no distance at the first step, some after it.
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert second["kl"] > 1e-6
    before = AutoModelForCausalLM.from_pretrained(folders[variant])
    assert changed(before, trainer.model)
