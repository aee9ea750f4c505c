"""The order that every training follows around stock `Trainer`: check, start, train, save, measure, report, push."""

import json
import logging
import shlex
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..checkpoints import (
    BASE_SAMPLE_NAME,
    check_named,
    context_of,
    load_config,
    refuse_adapter,
    repair_generation_config,
)
from ..errors import CheckpointError, ConfigError, OutputError, TrainingInterrupted
from ..files import atomic_folder, clear_disk_errors, make_folder, write_atomically
from ..hub.connection import check_access
from ..hub.push import push
from ..reporting.report import Report, training_facts
from ..stored import copy_licence, is_foreign, origin_of
from .adapters import check_target_modules
from .arguments import ChatModelArguments, ModelArguments, OptimizerOptions
from .callbacks import DivergenceGuard, ProgressFromResume, StopOnSigterm
from .distributed import World, joined
from .launch import Place
from .recipe import resolve_recipe
from .resuming import (
    ContinuedSchedule,
    ResumableTrainer,
    check_same_data,
    check_same_optimizer,
    check_same_run,
    check_same_step,
    check_steps_left,
    log_changes,
    order_of,
)
from .run_folder import (
    DATA_NAME,
    RECIPE_NAME,
    RESULTS_NAME,
    TRAINER_STATE_NAME,
    check_checkpoint_fits,
    check_output_dir,
    checkpoint_to_resume,
    find_fault,
    last_whole_checkpoint,
    only_run,
    prepare_output_dir,
    read_data_record,
)
from .weights import cast, check_trainable, saved_dtype, trained_dtype

logger = logging.getLogger(__name__)


class Run(ABC):
    """A training from its arguments to a finished folder.

    `execute` owns the order; a subclass says what its training consists of.

    Attributes:
        command: Name of the command, for the line that repeats the run.
        arguments: The arguments of `Trainer`.
        model_arguments: Which model the training starts from.
        folder: `arguments.output_dir`.
        checkpoint: Where the run resumes; None if it starts at the beginning. Set by `check`.
        model, tokenizer: Set by `prepare`.
        world: The processes of the run. Set by `execute`; a single one before.
        data: Facts for data.json that must not change when the run resumes; set by `prepare`. The rows stand in it
            as a fingerprint. See `check_same_data`.
    """

    command: ClassVar[str]

    model_arguments: ModelArguments
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: dict[str, Any]
    checkpoint: Path | None = None

    def __init__(self, arguments: TrainingArguments, *groups: Any) -> None:
        """Takes the arguments of `Trainer`, and the recipe's other dataclasses in their order."""
        self.arguments = arguments
        self.folder = Path(arguments.output_dir)
        self._groups = groups
        self.world = World(Place())
        self._lock = ExitStack()
        self._is_locked = False

    def execute(self) -> dict[str, Any]:
        """Runs all steps.

        Returns:
            The run's figures, as in its results.json.

        Raises:
            CheckpointError: If the checkpoint to resume from is incomplete or damaged, or belongs to another model,
                optimizer or data.
            OutputError: If the folder cannot be used, another run writes into it, or the disk is full; earlier
                checkpoints are intact.
            TrainingDiverged: If loss or gradients do not recover; the last sound checkpoint is kept.
            TrainingInterrupted: If SIGTERM or Ctrl-C ended the run; it saved a checkpoint but no final model.
            ChatGPTError: If other input cannot be used.
        """
        with joined() as self.world:
            return self._execute()

    def _execute(self) -> dict[str, Any]:
        if self.world.place.size > 1:
            self.world.agree(
                {f"--{name}": value for name, value in resolve_recipe(*self._groups, self.arguments).items()},
                remedy="Start all processes with the same recipe and the same options.",
            )
        with self._lock:
            if (self.folder / RECIPE_NAME).is_file():
                self._keep_others_out()
            self.check()
            self.prepare()
            self.world.agree(self.data, remedy="All machines must read the same data.")
            # A model that cannot be saved must not be trained.
            repair_generation_config(self.model)
            self._start()
            trainer = self.make_trainer()
            metrics = self._train(trainer)
            # Gathers a sharded model, in all processes together. What follows works on the whole.
            trainer.whole_model()
            self.model = trainer.whole_counterpart(self.model)
            if trainer.is_world_process_zero():
                self.save(trainer)
            # Saving a large model takes longer than a collective may wait.
            self.world.wait()
            results = self.measure(trainer, metrics)
            if trainer.is_world_process_zero():
                self.report(trainer, results)
                self._save_results(results)
                self._push()
            return results

    def check(self) -> None:
        """Sets the seed, and raises early if the arguments or the run's folder cannot be used. Writes nothing."""
        set_seed(self.arguments.seed)
        self._check_base()
        # The first process reads all files of the checkpoint; the others need not.
        checkpoint = self.world.decide(self._check_folder)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)

    def _check_folder(self) -> str | None:
        """Checks the run's folder and where it is pushed to; returns the checkpoint to resume from. For the first process."""
        if self.arguments.push_to_hub:
            # Find a wrong token before the training, not after it.
            check_access(self._hub_name(), self.arguments.hub_token)
        check_output_dir(self.folder, resume=resumes(self.arguments))
        checkpoint = _checkpoint(self.arguments, self.folder)
        if resumes(self.arguments):
            check_same_run(self.folder, self.command, checkpoint)
        return None if checkpoint is None else str(checkpoint)

    def _keep_others_out(self) -> None:
        """Locks the run's folder until `execute` ends. The first process does it for all of a run."""
        if self.arguments.process_index == 0:
            self._lock.enter_context(only_run(self.folder))
            self._is_locked = True

    def _check_base(self) -> None:
        """Chooses the optimizer for the base model, and raises if the base cannot be trained on this machine."""
        chosen = self.model_arguments
        if chosen.model_name_or_path is None:
            return
        refuse_adapter(chosen.model_name_or_path)
        check_named(chosen.model_name_or_path, "model_name_or_path")
        adapters = isinstance(chosen, ChatModelArguments) and chosen.use_peft
        foreign = is_foreign(chosen.model_name_or_path)
        if foreign and isinstance(self.arguments, OptimizerOptions):
            self.arguments.use_foreign_defaults(adapters=adapters)
        frozen = adapters or getattr(chosen, "freeze_base", False)
        check_trainable(chosen, self.arguments, frozen=frozen, references=self.references())
        if Path(chosen.model_name_or_path).is_dir():
            config = load_config(chosen.model_name_or_path)
            if (row := self.row_length()) is not None:
                field, length = row
                check_row_fits(length, config, field=field)
            if isinstance(chosen, ChatModelArguments) and adapters:
                check_target_modules(chosen.lora_target_modules, config)

    def row_length(self) -> tuple[str, int] | None:
        """Returns the field with the length of a training row, and the length in tokens; None if there is no such field."""
        return None

    @abstractmethod
    def prepare(self) -> None:
        """Reads the data and loads or creates `model` and `tokenizer`. Writes nothing into the run's folder."""

    @abstractmethod
    def make_trainer(self) -> ResumableTrainer:
        """Returns the trainer, with rows and callbacks. The run's folder exists by now."""

    def references(self) -> int:
        """Returns how many models of the base model's size the training holds besides the one that learns."""
        return 0

    def first_loss(self) -> float | None:
        """Returns a loss that no training begins above; None for that of guessing tokens."""
        return None

    def save(self, trainer: ResumableTrainer) -> None:
        """Writes a plain model folder. Runs in the first process only."""
        self.save_model(trainer.whole_model(), self.folder)

    def save_model(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes a model folder in the dtype that the base model came in.

        The weights keep the rounded values, in the dtype of the training: what is measured next is the model that was saved.
        Adapters are saved as they are, because no base model says how they should be.
        """
        dtype, base = saved_dtype(self.model_arguments), self.model_arguments.model_name_or_path
        if dtype is None or not isinstance(model, PreTrainedModel):
            save_model_folder(model, self.tokenizer, folder, base=base)
            return
        cast(model, dtype)
        save_model_folder(model, self.tokenizer, folder, base=base)
        cast(model, trained_dtype(self.model_arguments))

    @abstractmethod
    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        """Evaluates the trained model.

        Args:
            metrics: `Trainer`'s training metrics.

        Returns:
            The run's figures; lists and mappings among them are only written to results.json, not printed.
        """

    @abstractmethod
    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """Writes the report, by `write_report`. Runs in the first process only."""

    def write_report(
        self, trainer: Trainer, results: dict[str, Any], *, tokens_per_step: int | None = None, **own: Any
    ) -> None:
        """Writes the report into the run's folder; `own` are the fields of `Report` that differ between trainings."""
        base, family = self.model_arguments.model_name_or_path, self.model.config.model_type
        # The family too, because the folder of an adapter has no config that says it.
        origin = {**origin_of(base), "model_type": family} if base is not None and is_foreign(base) else {}
        Report(
            results=results,
            origin=origin,
            log_history=trainer.state.log_history,
            training=training_facts(self.arguments, trainer.state, tokens_per_step=tokens_per_step),
            tokens_per_step=tokens_per_step,
            command=f"chatgpt-hf {self.command} {shlex.quote(str(self.folder / RECIPE_NAME))} --output_dir NEW",
            **own,
        ).write(self.folder)

    def check_resumed(self, data: dict[str, Any]) -> None:
        """Raises early if part of `data` differs from the record of the run to resume."""
        if self.checkpoint is not None and read_data_record(self.checkpoint.parent):
            check_same_data(self.checkpoint, data)

    def _start(self) -> None:
        """Creates the output folder with the resolved recipe in it, after checking the checkpoint to resume from."""
        dtype = str(trained_dtype(self.model_arguments)).removeprefix("torch.")
        data = {"command": self.command, "dtype": dtype, **self.data, **order_of(self.arguments)}
        if (checkpoint := self.checkpoint) is not None:
            check_same_data(checkpoint, data)
            check_same_optimizer(checkpoint, self.arguments)
            check_checkpoint_fits(checkpoint, self.model)
            check_same_step(checkpoint, self.arguments, streaming="processes" in (data.get("stream") or {}))
            check_steps_left(checkpoint, self.arguments)
            if self.arguments.process_index == 0:
                log_changes(checkpoint, self.arguments)
        if self.arguments.process_index == 0:
            logger.info(
                "Optimizer %s, learning rate %g, weights in %s",
                getattr(self.arguments.optim, "value", self.arguments.optim),
                self.arguments.learning_rate,
                dtype,
            )
            if not self._is_locked:
                check_output_dir(self.folder, resume=resumes(self.arguments))
                with clear_disk_errors(self.folder):
                    make_folder(self.folder)
                self._keep_others_out()
                if (self.folder / RECIPE_NAME).is_file():
                    raise OutputError(f"Another run has begun in {self.folder} meanwhile: name another folder.")
            prepare_output_dir(self.folder, resume=resumes(self.arguments))
            # Recipe first: it marks the folder as ours, so a run that is killed before the next file can be resumed.
            recipe = yaml.safe_dump(resolve_recipe(*self._groups, self.arguments), sort_keys=False, allow_unicode=True)
            write_atomically(self.folder / RECIPE_NAME, lambda path: path.write_text(recipe, encoding="utf-8"))
            record = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.folder / DATA_NAME, lambda path: path.write_text(record, encoding="utf-8"))
        self.world.wait()
        self.world.open_log(self.folder)

    def _train(self, trainer: ResumableTrainer) -> dict[str, float]:
        """Trains, from the newest complete checkpoint when resuming; returns `Trainer`'s training metrics."""
        checkpoint = self.checkpoint
        if checkpoint is not None:
            trainer.add_callback(ContinuedSchedule(trainer, checkpoint))
        stop = StopOnSigterm(interrupt=True)
        trainer.add_callback(stop)
        # After the others, so that it has the last word on what is saved.
        trainer.add_callback(DivergenceGuard(first_loss=self.first_loss()))
        if trainer.pop_callback(ProgressCallback) is not None:
            trainer.add_callback(ProgressFromResume())
        metrics: dict[str, Any] = {}
        with clear_disk_errors(self.folder):
            if checkpoint is None or not _is_finished(trainer, checkpoint):
                began = time.monotonic()
                try:
                    metrics = dict(
                        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
                    )
                finally:
                    stop.restore()
                metrics = correct_runtime(metrics, time.monotonic() - began)
            else:
                metrics["epoch"] = trainer.state.epoch
        if stop.stopped_at is not None:
            kept = last_whole_checkpoint(self.folder)
            resume = (
                f"{kept} is complete. Add --resume to continue from it." if kept else "there is no sound checkpoint."
            )
            raise TrainingInterrupted(f"{stop.signal.name} at step {stop.stopped_at}; {resume}", stop.signal)
        if checkpoint is not None:
            # It averages only the steps since resuming, so it does not describe the whole run.
            metrics.pop("train_loss", None)
        return metrics

    def _save_results(self, results: dict[str, Any]) -> None:
        """Writes the run's figures. This file is written last: if it exists, the run is finished."""
        content = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / RESULTS_NAME, lambda path: path.write_text(content, encoding="utf-8"))

    def _push(self) -> None:
        """Uploads the finished folder to the Hub if `--push_to_hub` is set.

        `Trainer` itself pushes checkpoints during training, as `hub_strategy` says, but not the report and card.
        """
        if self.arguments.push_to_hub:
            pushed = push(
                self.folder,
                self._hub_name(),
                private=self.arguments.hub_private_repo,
                revision=self.arguments.hub_revision,
                token=self.arguments.hub_token,
            )
            logger.info("The model is at %s", pushed.url)

    def _hub_name(self) -> str:
        return self.arguments.hub_model_id or self.folder.resolve().name


def check_block_size(block_size: int, model: PreTrainedModel, *, field: str = "block_size") -> None:
    """Raises `ConfigError` if training rows would be longer than the model's context."""
    check_row_fits(block_size, model.config, field=field)


def check_row_fits(block_size: int, config: PreTrainedConfig, *, field: str) -> None:
    """As `check_block_size`, from the model's config alone."""
    limit = context_of(config)
    if block_size > limit:
        raise ConfigError(
            f"--{field} {block_size} is longer than the model's context: `max_position_embeddings` is {limit}. Give "
            f"--{field} {limit} or less."
        )


def save_model_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, base: str | None = None
) -> None:
    """Writes weights, config, generation config, tokenizer and the base model's licence, completely or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if model.can_generate():
            # PEFT leaves it out.
            model.generation_config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        copy_licence(base, temporary)


def write_base_sample(folder: Path, sample: list[float]) -> None:
    """Writes some weights of an adapter's base next to the adapter, so that `load_model` can recognize the base."""
    content = json.dumps(sample)
    write_atomically(folder / BASE_SAMPLE_NAME, lambda file: file.write_text(content, encoding="utf-8"))


def correct_runtime(metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """`Trainer`'s metrics, with the right time and speed if the clock was set during the training.

    Args:
        metrics: They count the time of day.
        seconds: What a clock that cannot be set has counted, from a little before to a little after.
    """
    counted = metrics.get("train_runtime")
    # Rounded to 0.1 milliseconds.
    if counted is None or 0 < counted <= seconds + 1e-3:
        return metrics
    logger.warning("The clock was set during the training: it took %.0f seconds and not %.0f.", seconds, counted)
    speeds = ("train_samples_per_second", "train_steps_per_second")
    corrected = {name: metrics[name] * counted / seconds for name in speeds if name in metrics}
    return {**metrics, **corrected, "train_runtime": seconds}


def resumes(arguments: TrainingArguments) -> bool:
    """True if the run resumes from a checkpoint."""
    return str(arguments.resume_from_checkpoint).lower() not in ("none", "false", "")


def _is_finished(trainer: Trainer, checkpoint: Path) -> bool:
    """True if a checkpoint is from the last step; then loads it, because `Trainer` would train one more step."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    *_, max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if state.global_step < max_steps:
        return False
    logger.info("%s is from step %d of %d: nothing is left to train.", checkpoint, state.global_step, max_steps)
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    return True


def _checkpoint(arguments: TrainingArguments, folder: Path) -> Path | None:
    """The checkpoint that the arguments resume from, after reading all of it."""
    if not resumes(arguments):
        return None
    wanted = str(arguments.resume_from_checkpoint)
    if wanted.lower() == "true":
        return checkpoint_to_resume(folder)
    if (fault := find_fault(Path(wanted))) is not None:
        raise CheckpointError(
            f"--resume_from_checkpoint {wanted} is not a complete checkpoint: {fault.reason}. Name another folder "
            "checkpoint-N, or say true for the newest complete one in --output_dir."
        )
    return Path(wanted)
