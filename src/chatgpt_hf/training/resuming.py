"""Checks that a resumed run shares with the run it continues what it must; steps and optimizer settings may change."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import distributed, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import CheckpointError, OutputError
from ..files import read_yaml
from .recipe import default_arguments
from .run_folder import (
    RECIPE_NAME,
    TRAINER_STATE_NAME,
    begin_checkpoint,
    find_fault,
    last_whole_checkpoint,
    read_data_record,
    remove_old_checkpoints,
    seal_checkpoint,
)
from .sharding import ShardedTrainer

logger = logging.getLogger(__name__)

# In a record: facts that say why the rows differ. They are reported, but rows that are the same do not depend on them.
READ_WITH = "read_with"
# In a record: how many rows a step takes, and how they are split.
STEP = "step"
# In a record and not compared.
_NOT_COMPARED = ("command", "sources", READ_WITH, STEP)
_TITLES = {
    "corpus": "the corpus",
    "rows": "the set of training rows",
    "held_out": "the set of held-out rows",
    "dataset": "the data",
    "tokenizer": "the tokenizer",
    "template": "the chat template",
    "labels": "the list of labels",
    "base": "the base model",
    "stream": "how the stream is read",
}
# Settings of an optimizer's groups that a checkpoint holds too; those of the arguments win.
_SETTINGS = ("initial_lr", "weight_decay", "momentum", "betas", "eps")
# Arguments that a resumed run may change.
_CHANGEABLE = (
    *("learning_rate", "embedding_learning_rate", "weight_decay", "muon_momentum", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
)
# Schedules whose rate depends on the course of the run, and not on the number of the step.
_ADAPTIVE_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
_NEW_RUN = "start a new run; --model_name_or_path takes the weights of the old one."


def rows_fingerprint(rows: Dataset) -> str:
    """A hash of all values of a data set in their order; it does not depend on how they are stored."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(rows.column_names):
        digest.update(name.encode() + b"\0")
        for table in rows.select_columns([name]).with_format("arrow").iter(batch_size=1000):
            _digest(digest, table[name].combine_chunks())
    return digest.hexdigest()


def text_fingerprint(text: str | None) -> str | None:
    """A hash of a text; None for None."""
    return None if text is None else hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def template_fingerprint(template: str | Mapping[str, str] | None) -> str | None:
    """A hash of a chat template, or of several with names."""
    return text_fingerprint(template if template is None or isinstance(template, str) else json.dumps(dict(template)))


def order_of(arguments: TrainingArguments) -> dict[str, Any]:
    """Returns the settings that decide, besides rows and seed, which rows a step takes; part of a run's record."""
    return {
        "data_seed": _data_seed(arguments),
        "train_sampling_strategy": arguments.train_sampling_strategy,
        "dataloader_drop_last": arguments.dataloader_drop_last,
        STEP: {
            "batch_size": arguments.train_batch_size,
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
            "processes": arguments.world_size,
        },
    }


def _data_seed(arguments: TrainingArguments) -> int:
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


def check_same_run(folder: Path, command: str, checkpoint: Path | None = None) -> None:
    """Raises if a folder holds the run of another command, or if a checkpoint of another run would be mixed into it.

    Args:
        folder: `output_dir` of the run that resumes.
        checkpoint: The checkpoint to resume from.

    Raises:
        CheckpointError: If another command wrote the checkpoint.
        OutputError: If the folder is that of another run.
    """
    for path in (folder, checkpoint.parent if checkpoint else folder):
        record = read_data_record(path)
        # Release 0.1 wrote a record only for pretraining.
        before = record.get("command", "pretrain" if "corpus" in record else command)
        if before != command:
            raise CheckpointError(
                f"{path} contains a run of `chatgpt-hf {before}`, which `chatgpt-hf {command}` cannot continue: resume it "
                f"with `chatgpt-hf {before}`, or name another folder."
            )
    if checkpoint and checkpoint.is_symlink() and checkpoint.parent.resolve() == folder.resolve():
        raise OutputError(
            f"{checkpoint} is a link to {os.path.realpath(checkpoint)}, which belongs to another run. Remove the link, or put the "
            "checkpoint itself there."
        )
    if checkpoint and checkpoint.resolve().parent != folder.resolve() and last_whole_checkpoint(folder):
        raise OutputError(
            f"{checkpoint} belongs to another run than the one that --output_dir {folder} already contains: name a new "
            "folder, or give --resume to continue the run that is there."
        )


def check_same_data(checkpoint: Path, data: dict[str, Any]) -> None:
    """Raises if the run would resume on other data, or read it otherwise, than the checkpoint was trained on.

    Args:
        checkpoint: A checkpoint; the data.json of its run is next to it.
        data: The record of the run that resumes; see `Run.data`.

    Raises:
        CheckpointError: If anything differs; the message says what.
    """
    record = read_data_record(checkpoint.parent)
    if not record:
        logger.warning("%s has no record of its data; it is assumed to be the same as this run's.", checkpoint)
        return
    data = json.loads(json.dumps(data))
    # What an earlier release did not record cannot be compared.
    differing = [name for name in data if name in record and name not in _NOT_COMPARED and record[name] != data[name]]
    reasons = [f"{_title(name)} was {record[name]} and is {data[name]}" for name in differing]
    if "rows" in differing or "held_out" in differing:
        before, now = record.get(READ_WITH, {}), data.get(READ_WITH, {})
        reasons += [
            f"{_title(name)} was {before[name]} and is {now[name]}"
            for name in now
            if name in before and before[name] != now[name]
        ]
    if reasons:
        raise CheckpointError(
            f"{checkpoint} was trained on other data: {'; '.join(reasons)}. Resume with the original data, or start "
            "a new run; --model_name_or_path takes the weights of the old one."
        )


def check_same_optimizer(checkpoint: Path, arguments: TrainingArguments) -> None:
    """Raises `CheckpointError` if the state of optimizer or schedule in a checkpoint is of another kind."""
    settings = _settings_before(checkpoint, arguments)
    before = settings["optim"]
    if before != arguments.optim:
        raise CheckpointError(
            f"{checkpoint} was written with --optim {before}, whose state --optim {arguments.optim} cannot use. Give "
            f"--optim {before}, or {_NEW_RUN}"
        )
    before, now = settings["lr_scheduler_type"], _plain(arguments.lr_scheduler_type)
    if before != now and {before, now} & set(_ADAPTIVE_SCHEDULES):
        raise CheckpointError(
            f"{checkpoint} was written with --lr_scheduler_type {before}, whose state {now} cannot use. Give "
            f"--lr_scheduler_type {before}, or {_NEW_RUN}"
        )
    rates = [
        name
        for name in ("learning_rate", "embedding_learning_rate")
        if settings.get(name) != getattr(arguments, name, None)
    ]
    if rates and now in _ADAPTIVE_SCHEDULES:
        raise CheckpointError(
            f"--{rates[0]} was {settings.get(rates[0])} and is {getattr(arguments, rates[0])}, but "
            f"with --lr_scheduler_type {now} the rate continues from where {checkpoint} left it: give the old value, or {_NEW_RUN}"
        )


def check_same_step(checkpoint: Path, arguments: TrainingArguments, *, streaming: bool) -> None:
    """Raises if the steps would take another number of rows: `Trainer` would continue elsewhere in the data.

    The same number may be split differently into batches, accumulated steps and processes: each step takes the same
    rows, and only sums are rounded differently. Streams without shards are read batch by batch, and a last batch that is left out
    depends on the split, so both need the same one.

    Raises:
        CheckpointError: With both numbers.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    now = order_of(arguments)[STEP]
    settings = _settings_before(checkpoint, arguments)
    recorded = read_data_record(checkpoint.parent).get(STEP)
    before = recorded or {**now, "gradient_accumulation_steps": settings["gradient_accumulation_steps"]}
    if state.train_batch_size and (recorded is None or settings["auto_find_batch_size"]):
        # `auto_find_batch_size` takes what fits into memory.
        before = {**before, "batch_size": state.train_batch_size}
    if arguments.auto_find_batch_size and state.train_batch_size:
        # What `Trainer` itself begins with.
        now = {**now, "batch_size": state.train_batch_size}
    if _rows(before) != _rows(now):
        raise CheckpointError(
            f"{checkpoint} was trained with {_split(before)} and this run would take {_split(now)}, so it would continue "
            f"elsewhere in the data. {_same_rows(_rows(before), now)}, or {_NEW_RUN}"
        )
    if before != now:
        if streaming or arguments.dataloader_drop_last:
            option = "--streaming" if streaming else "--dataloader_drop_last"
            raise CheckpointError(
                f"{checkpoint} was trained with {_split(before)} and this run would take {_split(now)}: with {option} the "
                f"place in the data depends on how a step is split. Split it as before, or {_NEW_RUN}"
            )
        logger.warning(
            "A step was %s and is %s. It takes the same rows; sums are rounded differently, and dropout draws other numbers.",
            _split(before),
            _split(now),
        )
        if before["processes"] != now["processes"]:
            logger.warning(
                "Several processes repeat rows at the end of an epoch to have equally many: that step may differ."
            )


def check_steps_left(checkpoint: Path, arguments: TrainingArguments) -> None:
    """Raises `CheckpointError` if a checkpoint was written after the last step that the arguments ask for."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    done, epochs = state.global_step, state.epoch or 0.0
    if arguments.max_steps > 0:
        wanted, beyond = f"--max_steps {arguments.max_steps}", done > arguments.max_steps
    else:
        # The last step may end a little after the last epoch.
        wanted = f"--num_train_epochs {arguments.num_train_epochs:g}"
        beyond = done > 0 and epochs * (done - 1) / done > arguments.num_train_epochs - 1e-6
    if beyond:
        raise CheckpointError(
            f"{checkpoint} is at step {done} (epoch {epochs:.4g}), beyond {wanted}: ask for more, or name an earlier checkpoint "
            "with --resume_from_checkpoint."
        )


class ResumableTrainer(ShardedTrainer):
    """`Trainer` that seals its checkpoints, and remembers the settings of its optimizer before it loads those of one.

    Attributes:
        settings: Of each parameter group, what the arguments ask for.
    """

    settings: list[dict[str, Any]]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            begin_checkpoint(folder)
        # `Trainer` removes old checkpoints by the times of their folders, and before the new one is on the disk.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.world_size > 1:
            # The other processes write files too.
            distributed.barrier()
        if self.args.should_save:
            seal_checkpoint(folder)
            remove_old_checkpoints(folder, limit, self.state.best_model_checkpoint)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if (fault := find_fault(best)) is not None:
            raise CheckpointError(
                f"{fault.reason}, and its model is the best of this run. Copy the file back and add --resume, or resume "
                "without --load_best_model_at_end to take the model of the last step."
            )
        super()._load_best_model()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        """As in `Trainer`, which loads the checkpoint next."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        groups = getattr(self.optimizer, "param_groups", ())
        self.settings = [{name: group[name] for name in _SETTINGS if name in group} for group in groups]
        return scheduler


class EpochSampler(Sampler[int]):
    """TRL's `RepeatSampler` in an order that follows from seed and epoch: its own begins anew in a run that resumes in a later one.

    Args:
        sampler: A `RepeatSampler`.
        arguments: Their `data_seed`, or else their `seed`, decides the order.
    """

    def __init__(self, sampler: Any, arguments: TrainingArguments) -> None:
        self.sampler = sampler
        self.seed = _data_seed(arguments)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; accelerate calls it before each."""
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class ContinuedSchedule(TrainerCallback):
    """Continues a run with the settings and the schedule of its arguments, and says so.

    `Trainer` takes settings and the rate of the next step from the checkpoint. So a new learning rate would be ignored,
    and the first step after a finished run would have the rate 0.

    Args:
        trainer: The trainer that resumes.
        checkpoint: Where it resumes from.
    """

    def __init__(self, trainer: ResumableTrainer, checkpoint: Path) -> None:
        self.trainer = trainer
        self.checkpoint = checkpoint
        self.before = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_batch_size(args, kwargs.get("train_dataloader"))
        optimizer, scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]
        groups = getattr(optimizer, "param_groups", [])
        # DeepSpeed makes its own groups.
        if len(groups) == len(self.trainer.settings):
            for group, chosen in zip(groups, self.trainer.settings, strict=True):
                group.update(chosen)
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            wanted = [
                base * factor(scheduler.last_epoch)
                for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            if wanted != [group["lr"] for group in groups]:
                # Computes the rates of the same step again.
                scheduler.last_epoch -= 1
                scheduler.step()
        if not args.auto_find_batch_size:
            # `Trainer` keeps the number of the checkpoint.
            state.train_batch_size = args.train_batch_size
        if not state.is_world_process_zero:
            return
        total = f"{state.max_steps}"
        if state.max_steps != self.before.max_steps:
            total += f" (was {self.before.max_steps})"
        rate = f"; the learning rate continues from {groups[0]['lr']:.3g}" if groups else ""
        logger.log(
            logging.INFO if state.max_steps == self.before.max_steps else logging.WARNING,
            "The run continues at step %d of %s%s.",
            state.global_step,
            total,
            rate,
        )

    def _check_batch_size(self, args: TrainingArguments, loader: Any) -> None:
        """`auto_find_batch_size` may have to take a smaller one than before."""
        taken, before = getattr(loader, "total_batch_size", None), self.before.train_batch_size
        if args.auto_find_batch_size and taken and before and taken != before * args.world_size:
            raise CheckpointError(
                f"{self.checkpoint} was trained with batches of {before * args.world_size} rows, which no longer fit into "
                f"memory; with {taken} the run would continue at another place in the data. Free memory, or {_NEW_RUN}"
            )


def log_changes(checkpoint: Path, arguments: TrainingArguments) -> None:
    """Logs which settings of optimizer and schedule differ from those that the checkpoint was trained with."""
    settings = _settings_before(checkpoint, arguments)
    now = {name: _plain(getattr(arguments, name)) for name in _CHANGEABLE if hasattr(arguments, name)}
    changes = [
        f"--{name} was {settings.get(name)} and is {value}"
        for name, value in now.items()
        if settings.get(name) != value
    ]
    if changes:
        logger.warning("From here on, other settings hold: %s.", "; ".join(changes))


def _digest(digest: Any, array: pa.Array) -> None:
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _digest(digest, pc.cast(pc.list_value_length(array), pa.int64()))
        _digest(digest, array.flatten())
    elif pa.types.is_struct(kind) and not array.null_count:
        for field, values in zip(kind, array.flatten(), strict=True):
            digest.update(field.name.encode() + b"\0")
            _digest(digest, values)
    elif (pa.types.is_integer(kind) or pa.types.is_boolean(kind)) and not array.null_count:
        digest.update(pc.cast(array, pa.int64()).to_numpy(zero_copy_only=False).tobytes())
    elif pa.types.is_floating(kind) and not array.null_count:
        digest.update(pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False).tobytes())
    else:
        digest.update(json.dumps(array.to_pylist(), sort_keys=True, default=str).encode())


def _settings_before(checkpoint: Path, arguments: TrainingArguments) -> dict[str, Any]:
    """The arguments that a checkpoint was trained with, from the recipe next to it; those of this run without a recipe."""
    file = checkpoint.parent / RECIPE_NAME
    if not file.is_file():
        return {name: _plain(value) for name, value in vars(arguments).items()}
    recipe = read_yaml(file)
    defaults = vars(default_arguments(type(arguments)))
    return {name: _plain(value) for name, value in defaults.items()} | recipe


def _plain(value: Any) -> Any:
    """A value as a recipe has it."""
    return getattr(value, "value", value)


def _title(name: str) -> str:
    return _TITLES.get(name, f"--{name}")


def _rows(step: dict[str, int]) -> int:
    return step["batch_size"] * step["gradient_accumulation_steps"] * step["processes"]


def _same_rows(wanted: int, step: dict[str, int]) -> str:
    """Says how a step takes as many rows as before: by its accumulation if that is possible."""
    batch, processes = step["batch_size"], step["processes"]
    if wanted % (batch * processes) == 0:
        kept = f"Give --gradient_accumulation_steps {wanted // (batch * processes)}, which keeps the"
    elif wanted % processes == 0:
        batch = math.gcd(wanted // processes, batch)
        accumulated = wanted // (batch * processes)
        kept = f"Give --per_device_train_batch_size {batch} and --gradient_accumulation_steps {accumulated}, which keep the"
    else:
        return f"{processes} processes cannot take {wanted} rows per step: start a number that divides them"
    return f"{kept} {wanted} rows per step"


def _split(step: dict[str, int]) -> str:
    processes = f" x {step['processes']} processes" if step["processes"] > 1 else ""
    return (
        f"{_rows(step)} rows per step (batch {step['batch_size']} x accumulation {step['gradient_accumulation_steps']}"
        f"{processes})"
    )
