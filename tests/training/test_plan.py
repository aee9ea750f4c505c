"""Compares a plan with the model, recipe and run that it describes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from chatgpt_hf import ChatGPTForCausalLM
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training import plan as plan_module
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.plan import PlanArguments, plan
from chatgpt_hf.training.scaling import flops_per_token, model_config

TYPES = (ModelArguments, ArchitectureArguments, CorpusArguments, PlanArguments, PretrainArguments)
SMALL = "--depth 2 --vocab_size 300 --block_size 64 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_steps 30"


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "REPETITIONS", 3)


def make(options: str) -> dict[str, Any]:
    return plan(*parse_recipe(TYPES, None, options.split()))


def test_a_plan_is_that_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = make(f"{SMALL} --gradient_accumulation_steps 3 --gpu a100 --mfu 0.5")
    shape = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "vocab_size": 300}
    config = model_config({**shape, "block_size": 64})
    assert figures["parameters"] == ChatGPTForCausalLM(config).num_parameters()
    assert figures["tokens_per_step"] == 2 * 3 * 64
    assert figures["tokens"] == 30 * 2 * 3 * 64
    assert figures["flops"] == figures["tokens"] * flops_per_token(config, 64)
    here = figures["here"]
    assert here["step_cpu_seconds"] > 0
    assert here["total_seconds"] == pytest.approx(30 * here["step_seconds"])
    assert here["threads"] == torch.get_num_threads()
    assert 0 < here["mfu"] < 1
    assert figures["gpu"]["total_seconds"] == pytest.approx(figures["flops"] / (312e12 * 0.5))
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_time_grows_with_depth_rows_and_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--block_size 64 --hidden_size 128 --max_steps 10"
    counter = FlopCounterMode(display=False)
    # Count operations instead of seconds, because other work on the machine does not change them.
    operations = SimpleNamespace(perf_counter=counter.get_total_flops, process_time=counter.get_total_flops)
    monkeypatch.setattr(plan_module, "time", operations)
    monkeypatch.setattr(plan_module, "REPETITIONS", 1)

    def step_of(shape: str) -> float:
        with counter:
            return make(f"{options} {shape}")["here"]["step_cpu_seconds"]

    small = step_of("--depth 2 --vocab_size 512 --per_device_train_batch_size 4")
    for shape in (
        "--depth 8 --vocab_size 512 --per_device_train_batch_size 4",
        "--depth 2 --vocab_size 32768 --per_device_train_batch_size 4",
        "--depth 2 --vocab_size 512 --per_device_train_batch_size 16",
    ):
        assert step_of(shape) > 1.5 * small, shape


def test_a_slow_measurement_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "REPETITIONS", 500)
    monkeypatch.setattr(plan_module, "SECONDS", 0.0)
    steps = []
    watching = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        assert make(SMALL)["here"]["step_seconds"] > 0
    finally:
        watching.remove()
    # Two steps of each of three models instead of 500.
    assert len(steps) == 2 * 3


def test_sliding_layers_can_be_measured() -> None:
    assert make(f"{SMALL} --sliding_window 16")["here"]["step_seconds"] > 0


def test_an_existing_model_is_planned_with_its_own_shape(base_folder: Path) -> None:
    figures = make(f"--model_name_or_path {base_folder} --block_size 64 --max_steps 5")
    assert (figures["layers"], figures["width"]) == (1, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--depth 2 --gpu abacus", "--gpu abacus is unknown; choose from"),
        ("--depth 2 --mfu 40", "--mfu must be above 0"),
        ("--hidden_size 64", "give --max_steps, or --depth"),
        ("--depth 2 --num_train_epochs 2", "give --max_steps, or --depth"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(options)
