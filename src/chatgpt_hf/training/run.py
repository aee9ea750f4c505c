"""What every training run of ours does around stock `Trainer`: its folder, its recipe, resuming, and its results."""

import json
import logging
from pathlib import Path
from typing import Any

import yaml
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..checkpoints import (
    DATA_NAME,
    RECIPE_NAME,
    TRAINER_STATE_NAME,
    atomic_folder,
    check_checkpoint_fits,
    check_output_dir,
    clear_disk_errors,
    is_whole_checkpoint,
    last_whole_checkpoint,
    prepare_output_dir,
    read_data_record,
    write_atomically,
)
from ..errors import CheckpointError, ConfigError, TrainingInterrupted
from ..hub.connection import check_access
from ..hub.push import push
from .callbacks import DivergenceGuard, ProgressFromResume, StopOnSigterm
from .recipe import default_arguments, resolve_recipe

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.json"


def check_run(arguments: TrainingArguments) -> None:
    """Seeds, and refuses before any work what the run's folder does not allow. Writes nothing."""
    set_seed(arguments.seed)
    if arguments.process_index == 0:
        if arguments.push_to_hub:
            # A token that is wrong is better known before the training than after it.
            check_access(_hub_name(arguments), arguments.hub_token)
        _checkpoint(arguments, check_output_dir(arguments.output_dir, resume=resumes(arguments)))


def check_block_size(block_size: int, model: PreTrainedModel, *, field: str = "block_size") -> None:
    """Raises `ConfigError` where a training row would be longer than the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and block_size > limit:
        raise ConfigError(
            f"--{field} {block_size} is longer than the model's context: `max_position_embeddings` is {limit}. Give "
            f"--{field} {limit} or less."
        )


def start_run(
    model: PreTrainedModel, arguments: TrainingArguments, *others: Any, data: dict[str, Any] | None = None
) -> Path:
    """Makes the output folder and writes the recipe as resolved into it; called when nothing else can be wrong.

    Args:
        others: The other groups of arguments that the recipe is made of.
        data: What the rows are made of, for data.json; see `check_same_data`.

    Raises:
        CheckpointError: When the run is to go on from a checkpoint of another model, optimizer or data.
    """
    folder = Path(arguments.output_dir)
    if checkpoint := _checkpoint(arguments, folder):
        if data is not None:
            check_same_data(Path(checkpoint), data)
        _check_same_optimizer(Path(checkpoint), arguments)
        check_checkpoint_fits(Path(checkpoint), model)
    if arguments.process_index == 0:
        prepare_output_dir(folder, resume=resumes(arguments))
        # The recipe first: it makes the folder ours, which a run that is killed between the two goes on with.
        recipe = yaml.safe_dump(resolve_recipe(*others, arguments), sort_keys=False, allow_unicode=True)
        write_atomically(folder / RECIPE_NAME, lambda path: path.write_text(recipe, encoding="utf-8"))
        if data is not None:
            record = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
            write_atomically(folder / DATA_NAME, lambda path: path.write_text(record, encoding="utf-8"))
    return folder


def check_same_data(checkpoint: Path, data: dict[str, Any]) -> None:
    """Refuses to go on with other rows than those that a checkpoint has seen.

    Args:
        checkpoint: A checkpoint, with the data.json of its run beside it.
        data: `corpus`, `tokenizer`, `block_size`, `seed` and `stream` of the run that is to go on.

    Raises:
        CheckpointError: Saying what differs.
    """
    record = read_data_record(checkpoint.parent)
    if not record:
        logger.warning("%s does not say which data its run had; it is taken to be this run's.", checkpoint)
        return
    names = {"corpus": "the corpus", "tokenizer": "the tokenizer", "block_size": "--block_size", "seed": "--seed"}
    differing = [
        f"{title} was {record.get(name)} and is {data[name]}"
        for name, title in {**names, "stream": "the reading of the stream"}.items()
        if record.get(name) != data[name]
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint} is of a run on other data: {'; '.join(differing)}. Go on with what the run was begun with, or "
            "begin a new one; --model_name_or_path takes the weights of the old."
        )


def train_and_save(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, *, model_folder: Path | None = None
) -> dict[str, float]:
    """Trains, from the newest whole checkpoint where that was asked for, and leaves a plain model folder.

    Args:
        folder: Of the run.
        model_folder: Where the model is saved, if not there.

    Returns:
        `Trainer`'s training metrics.

    Raises:
        CheckpointError: When the run is to go on from a checkpoint that is not whole.
        OutputError: When the disk is full; the checkpoints written before are intact.
        TrainingDiverged: When the loss or the gradients do not come back; the last sound checkpoint stays.
        TrainingInterrupted: When SIGTERM ended the run, with a checkpoint and no final model.
    """
    checkpoint = _checkpoint(trainer.args, folder)
    stop = StopOnSigterm()
    trainer.add_callback(stop)
    # After the others, so that it has the last word on what is saved.
    trainer.add_callback(DivergenceGuard())
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressFromResume())
    metrics: dict[str, float] = {}
    with clear_disk_errors(folder):
        if checkpoint is None or not _is_finished(trainer, Path(checkpoint)):
            try:
                metrics = dict(trainer.train(resume_from_checkpoint=checkpoint).metrics)
            finally:
                stop.restore()
    if stop.stopped_at is not None:
        raise TrainingInterrupted(
            f"SIGTERM at step {stop.stopped_at}; {last_whole_checkpoint(folder)} is whole. Add --resume to go on from it."
        )
    if trainer.is_world_process_zero():
        save_model_folder(trainer.accelerator.unwrap_model(trainer.model), tokenizer, model_folder or folder)
    if checkpoint is not None:
        # The mean over the steps of this process, which is no figure of the run.
        metrics.pop("train_loss", None)
    return metrics


def save_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, config, generation config and tokenizer, written whole or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if model.can_generate():
            # With an adapter it would be left out.
            model.generation_config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_results(folder: Path, results: dict[str, Any]) -> None:
    """The run's figures. The file comes last: where it lies, the run was finished."""
    content = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / RESULTS_NAME, lambda path: path.write_text(content, encoding="utf-8"))


def push_run(arguments: TrainingArguments, folder: Path) -> None:
    """Sends what a finished run left to the Hub, where `--push_to_hub` asks for it; called after everything is written.

    `Trainer` sends checkpoints while it trains, as `hub_strategy` says; the finished folder, with report and card, it knows
    nothing of.
    """
    if arguments.push_to_hub:
        pushed = push(
            folder,
            _hub_name(arguments),
            private=arguments.hub_private_repo,
            revision=arguments.hub_revision,
            token=arguments.hub_token,
        )
        logger.info("The model is at %s", pushed.url)


def _hub_name(arguments: TrainingArguments) -> str:
    return arguments.hub_model_id or Path(arguments.output_dir).resolve().name


def resumes(arguments: TrainingArguments) -> bool:
    """Whether the run is to go on from a checkpoint."""
    return str(arguments.resume_from_checkpoint).lower() not in ("none", "false", "")


def _is_finished(trainer: Trainer, checkpoint: Path) -> bool:
    """Whether a checkpoint is of the last step; its state is then the trainer's. `Trainer` would take another step."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    *_, max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if state.global_step < max_steps:
        return False
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    return True


def _check_same_optimizer(checkpoint: Path, arguments: TrainingArguments) -> None:
    file = checkpoint.parent / RECIPE_NAME
    if not file.is_file():
        return
    recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    before = recipe.get("optim", default_arguments(type(arguments)).optim)
    if before != arguments.optim:
        raise CheckpointError(
            f"{checkpoint} was written with --optim {before}, whose state --optim {arguments.optim} cannot go on with. Give "
            f"--optim {before}, or begin a new run; --model_name_or_path takes the weights of the old."
        )


def _checkpoint(arguments: TrainingArguments, folder: Path) -> str | None:
    if not resumes(arguments):
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
