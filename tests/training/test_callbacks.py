"""Runs that stop cleanly on SIGTERM and Ctrl-C, and runs that diverge, with stock `Trainer`."""

import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import TrainingDiverged
from chatgpt_hf.training.callbacks import DivergenceGuard, EpochOfStream, ProgressFromResume, StopOnSigterm
from chatgpt_hf.training.run_folder import last_whole_checkpoint

VOCAB = 32


def trainer(folder: Path, *callbacks: TrainerCallback, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, residual_dropout=0.1
    )
    ids = [[(start + step) % VOCAB for step in range(12)] for start in range(64)]
    settings: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_steps": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "use_cpu": True,
        "report_to": "none",
        "lr_scheduler_type": "constant",
        "disable_tqdm": True,
    }
    return Trainer(
        ChatGPTForCausalLM(config),
        TrainingArguments(str(folder), **{**settings, **changes}),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


class SpoilGradients(TrainerCallback):
    """Writes a value into a gradient at some steps. Must come before the guard."""

    def __init__(self, steps: set[int], value: float = math.nan) -> None:
        self.steps = steps
        self.value = value
        self.weights: dict[int, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step + 1] = kwargs["model"].lm_head.weight.detach().clone()
        if state.global_step + 1 in self.steps:
            kwargs["model"].lm_head.weight.grad[0, 0] = self.value


def checkpoints(folder: Path) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_step_changes_nothing_and_the_run_goes_on(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil = SpoilGradients({3, 5, 6}, value)
    run = trainer(tmp_path, spoil, DivergenceGuard())
    run.train()
    for step, weight in spoil.weights.items():
        if step < 8:
            assert torch.equal(weight, spoil.weights[step + 1]) == (step in spoil.steps), step
    assert "Step 6 is skipped: its gradients are not finite (2 in a row; 5 end the run)." in caplog.messages
    # Nothing is saved until the model is known to be sound.
    assert checkpoints(tmp_path) == {1, 2, 4, 7, 8}
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_several_bad_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, SpoilGradients({1, 3, 4, 5, 6, 7}), DivergenceGuard())
    with pytest.raises(
        TrainingDiverged,
        match=r"diverged at step 7: 5 steps in a row .* --learning_rate is 0.001: .*checkpoint-2, with --resume",
    ):
        run.train()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_loss_above_guessing_ends_the_run(tmp_path: Path) -> None:
    """AdamW at 100 times a reasonable learning rate: the gradients stay finite."""
    run = trainer(tmp_path, DivergenceGuard(), learning_rate=30.0, max_steps=40, warmup_steps=2)
    with pytest.raises(TrainingDiverged, match=r"the loss is .* uniform guessing gives 3\.466"):
        run.train()
    logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert all(loss > 1.5 * math.log(VOCAB) for loss in logged[-3:])
    assert not any((tmp_path / f"checkpoint-{run.state.global_step - back}").exists() for back in range(3))


def test_a_high_loss_while_warming_up_does_not(tmp_path: Path) -> None:
    run = trainer(tmp_path, DivergenceGuard(high=0.01), max_steps=6, warmup_steps=6)
    run.train()
    assert run.state.global_step == 6


def test_regression_has_its_own_guard(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=9)
    args, state, control = run.args, run.state, run.control
    state.global_step, state.max_steps = 5, 9
    guard = DivergenceGuard(first_loss=3600.0)
    for loss in (3450.0, 3600.0, 5300.0, 5500.0, 5500.0, 100.0, 9000.0, 9000.0):
        guard.on_log(args, state, control, logs={"loss": loss}, model=run.model)
    with pytest.raises(TrainingDiverged, match=r"the loss is 9000 .* above 5400 .* it begins below 3600"):
        guard.on_log(args, state, control, logs={"loss": 9000.0}, model=run.model)


class SpoilWeights(TrainerCallback):
    """Has the effect of an infinitely large step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            nn.init.constant_(kwargs["model"].lm_head.weight, math.inf)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged):
        trainer(tmp_path, SpoilWeights(3), DivergenceGuard()).train()
    assert checkpoints(tmp_path) == {1, 2}
    with pytest.raises(TrainingDiverged, match=r"at step 8: the run ended with weights that are not finite"):
        trainer(tmp_path, SpoilWeights(8), DivergenceGuard()).train()
    assert 8 not in checkpoints(tmp_path)


class Send(TrainerCallback):
    """Sends a signal in the middle of a step, or while a step is saved.

    To this thread: the kernel may give one that is sent to the process to another thread, whose turn comes later.
    """

    def __init__(self, number: signal.Signals, step: int, *, saving: bool = False) -> None:
        self.number = number
        self.step = step
        self.saving = saving

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.saving and state.global_step + 1 == self.step:
            signal.raise_signal(self.number)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.saving and state.global_step == self.step:
            signal.raise_signal(self.number)


@pytest.fixture(autouse=True)
def heeds_interrupts() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt`, also where pytest was started in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    handler = signal.getsignal(number)
    whole = trainer(tmp_path / "whole", save_steps=8)
    whole.train()
    stop = StopOnSigterm(interrupt=True)
    stopped = trainer(tmp_path / "stopped", stop, Send(number, 3), save_steps=8)
    stopped.train()
    assert (stop.stopped_at, stopped.state.global_step, stop.signal) == (3, 3, number)
    assert signal.getsignal(number) == handler
    assert last_whole_checkpoint(tmp_path / "stopped") == tmp_path / "stopped" / "checkpoint-3"
    resumed = trainer(tmp_path / "stopped", save_steps=8)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_signal_after_the_last_step_is_not_forgotten(tmp_path: Path) -> None:
    stop = StopOnSigterm(interrupt=True)
    trainer(tmp_path, stop, Send(signal.SIGINT, 8, saving=True), save_steps=8).train()
    assert stop.stopped_at == 8


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    stop = StopOnSigterm(interrupt=True)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, stop, Send(signal.SIGINT, 3), Send(signal.SIGINT, 3), save_steps=8).train()
    stop.restore()
    assert checkpoints(tmp_path) == set()
    # Without the option, Ctrl-C is left alone.
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, plain := StopOnSigterm(), Send(signal.SIGINT, 3), save_steps=8).train()
    plain.restore()


def test_a_run_in_the_background_goes_on_ignoring_interrupts(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = trainer(tmp_path, stop := StopOnSigterm(interrupt=True), Send(signal.SIGINT, 3), max_steps=4)
    run.train()
    assert (stop.stopped_at, run.state.global_step) == (None, 4)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_the_bar_goes_on_where_the_run_does(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=4).train()
    shown: list[dict[str, Any]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            shown.append(bar.training_bar.format_dict)

    bar = ProgressFromResume()
    run = trainer(tmp_path, disable_tqdm=False)
    run.remove_callback(ProgressCallback)
    run.add_callback(bar)
    run.add_callback(Look())
    run.train(resume_from_checkpoint=True)
    assert [(state["n"], state["initial"], state["total"]) for state in shown] == [(n, 4, 8) for n in (5, 6, 7, 8)]


def test_the_epoch_of_a_stream_is_its_share_of_the_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path, EpochOfStream(), max_steps=8, num_train_epochs=1)
    run.train()
    epochs = [entry["epoch"] for entry in run.state.log_history if "loss" in entry]
    assert epochs == [step / 8 for step in range(1, 9)]
