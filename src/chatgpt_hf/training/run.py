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
    check_checkpoint_fits,
    check_output_dir,
    clear_disk_errors,
    is_whole_checkpoint,
    last_whole_checkpoint,
    prepare_output_dir,
    write_atomically,
)
from ..errors import CheckpointError, ConfigError
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


def check_run(arguments: TrainingArguments) -> None:
    """Seeds, and refuses before any work what the run's folder does not allow. Writes nothing."""
    set_seed(arguments.seed)
    if arguments.process_index == 0:
        _checkpoint(arguments, check_output_dir(arguments.output_dir, resume=_resumes(arguments)))


def check_block_size(block_size: int, model: PreTrainedModel) -> None:
    """Raises `ConfigError` where a training row would be longer than the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and block_size > limit:
        raise ConfigError(
            f"--block_size {block_size} is longer than the model's context: `max_position_embeddings` is {limit}. Give "
            f"--block_size {limit} or less."
        )


def start_run(model: PreTrainedModel, arguments: TrainingArguments, *others: Any) -> Path:
    """Makes the output folder and writes the recipe as resolved into it; called when nothing else can be wrong."""
    folder = Path(arguments.output_dir)
    if checkpoint := _checkpoint(arguments, folder):
        check_checkpoint_fits(Path(checkpoint), model)
    if arguments.process_index == 0:
        prepare_output_dir(folder, resume=_resumes(arguments))
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
    checkpoint = _checkpoint(trainer.args, folder)
    with clear_disk_errors(folder):
        output = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        save_model_folder(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)
    metrics = dict(output.metrics)
    if checkpoint is not None:
        # `Trainer` divides what this process summed up by the steps of the whole run.
        metrics.pop("train_loss", None)
    return metrics


def save_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, config, generation config and tokenizer, written whole or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_results(folder: Path, results: dict[str, Any]) -> None:
    """The run's figures. The file comes last: where it lies, the run was finished."""
    content = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / RESULTS_NAME, lambda path: path.write_text(content, encoding="utf-8"))


def _resumes(arguments: TrainingArguments) -> bool:
    return str(arguments.resume_from_checkpoint).lower() not in ("none", "false", "")


def _checkpoint(arguments: TrainingArguments, folder: Path) -> str | None:
    if not _resumes(arguments):
        return None
    wanted = str(arguments.resume_from_checkpoint)
    if wanted.lower() != "true":
        if not is_whole_checkpoint(Path(wanted)):
            raise CheckpointError(
                f"--resume_from_checkpoint {wanted} is no whole checkpoint of a run: name a folder checkpoint-N, or say "
                "true for the newest one of --output_dir."
            )
        return wanted
    newest = last_whole_checkpoint(folder)
    return str(newest) if newest else None
