"""`Trainer.hyperparameter_search` with Optuna."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import chatgpt_hf  # noqa: F401

RATES = [1e-6, 1e-2]


@pytest.mark.works_with(
    "Optuna", "`Trainer.hyperparameter_search` finds the better of two learning rates", ("optuna", "transformers")
)
def test_hyperparameter_search(folder: Path, tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(3, 60, (16, 16))]

    def space(trial: optuna.Trial) -> dict[str, Any]:
        return {"learning_rate": trial.suggest_categorical("learning_rate", RATES)}

    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=8,
        eval_strategy="steps",
        eval_steps=6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    seen: dict[float, float] = {}

    class Recorder(Trainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = super().evaluate(*args, **kwargs)
            seen[self.args.learning_rate] = metrics["eval_loss"]
            return metrics

    trainer = Recorder(
        args=arguments,
        model_init=lambda: AutoModelForCausalLM.from_pretrained(folder),
        train_dataset=rows,
        eval_dataset=rows,
    )
    best = trainer.hyperparameter_search(
        hp_space=space,
        direction="minimize",
        backend="optuna",
        n_trials=2,
        sampler=optuna.samplers.GridSampler({"learning_rate": RATES}, seed=0),
    )
    assert set(seen) == set(RATES)
    assert seen[1e-2] < seen[1e-6] - 0.05
    assert best.hyperparameters["learning_rate"] == 1e-2
    assert best.objective == seen[1e-2]
