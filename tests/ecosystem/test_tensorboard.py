"""What stock `Trainer` and our own runs log, read back from TensorBoard's event files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def scalars(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.works_with(
    "TensorBoard", "`report_to=\"tensorboard\"` of stock `Trainer`: the event files hold the logged losses",
    ("tensorboard", "transformers"),
)  # fmt: skip
def test_stock_trainer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(3, 200, (8, 16))]
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to="tensorboard",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(folder), arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    for name, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        logged = {row["step"]: row[key] for row in trainer.state.log_history if key in row}
        assert scalars(tmp_path / "events", name) == pytest.approx(logged, rel=1e-6)
        assert logged


@pytest.mark.works_with("TensorBoard", "`chatgpt-hf pretrain --report_to tensorboard`", ("tensorboard",))
def test_our_own_run(
    pretrain_options: list[str], cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    result = cli("pretrain", *pretrain_options, "--output_dir", tmp_path / "run", "--report_to", "tensorboard")
    assert result.code == 0, result.err
    losses = scalars(tmp_path / "events", "train/loss")
    assert sorted(losses) == [1, 2, 3, 4]
    assert losses[4] < losses[1]
