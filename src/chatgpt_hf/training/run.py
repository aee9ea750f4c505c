"""What every training run of ours does around stock `Trainer`: its folder, its recipe, resuming, and its results."""

import json
from pathlib import Path
from typing import Any

import yaml
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..checkpoints import (
    RECIPE_NAME,
    atomic_folder,
    clear_disk_errors,
    last_whole_checkpoint,
    prepare_output_dir,
    write_atomically,
)
from ..errors import CheckpointError
from .arguments import resolve_recipe

RESULTS_NAME = "results.json"


class BitsPerByte(TrainerCallback):
    """Adds `eval_bits_per_byte` to what `Trainer` reports: its mean loss per token, times tokens, over bytes."""

    def __init__(self, tokens: int, num_bytes: int) -> None:
        self.bits_per_nat_and_token = tokens / num_bytes / 0.6931471805599453

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        bits = kwargs["metrics"]["eval_loss"] * self.bits_per_nat_and_token
        kwargs["metrics"]["eval_bits_per_byte"] = bits
        state.log_history[-1]["eval_bits_per_byte"] = bits


def start_run(arguments: TrainingArguments, *others: Any) -> Path:
    """Seeds, makes the output folder and writes the recipe as resolved into it."""
    set_seed(arguments.seed)
    folder = prepare_output_dir(arguments.output_dir, resume=bool(arguments.resume_from_checkpoint))
    recipe = yaml.safe_dump(resolve_recipe(*others, arguments), sort_keys=False, allow_unicode=True)
    write_atomically(folder / RECIPE_NAME, lambda path: path.write_text(recipe, encoding="utf-8"))
    return folder


def train_and_save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
    """Trains, from the newest whole checkpoint where that was asked for, and leaves a plain model folder.

    Returns:
        `Trainer`'s training metrics.

    Raises:
        CheckpointError: When the run is to go on from a checkpoint that is not whole.
        OutputError: When the disk is full; the checkpoints written before are intact.
    """
    with clear_disk_errors(folder):
        output = trainer.train(resume_from_checkpoint=_checkpoint(trainer.args, folder))
    if trainer.is_world_process_zero():
        save_model_folder(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)
    return dict(output.metrics)


def save_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, config, generation config and tokenizer, written whole or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_results(folder: Path, results: dict[str, Any]) -> None:
    """The run's figures. The file comes last: where it lies, the run was finished."""
    content = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / RESULTS_NAME, lambda path: path.write_text(content, encoding="utf-8"))


def _checkpoint(arguments: TrainingArguments, folder: Path) -> str | None:
    wanted = arguments.resume_from_checkpoint
    if wanted in (None, False, "false", "False"):
        return None
    if wanted not in (True, "true", "True"):
        checkpoint = Path(str(wanted))
        if last_whole_checkpoint(checkpoint.parent) is None or not checkpoint.is_dir():
            raise CheckpointError(f"--resume_from_checkpoint {checkpoint} is no whole checkpoint of a run.")
        return str(checkpoint)
    newest = last_whole_checkpoint(folder)
    return str(newest) if newest else None
