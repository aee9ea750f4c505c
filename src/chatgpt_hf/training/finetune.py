"""Fine-tunes a base model for a task with stock `Trainer`, then evaluates it and writes a report."""

from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, set_seed

from ..checkpoints import check_tokenizer_fits, making_adapters, sample_of
from ..data.prepare import tokenizer_fingerprint
from ..errors import ConfigError
from ..evaluation.record import EVALUATION_FOLDER
from ..extras import needed_by
from ..files import atomic_folder
from ..model.pipelines import save_pipeline_code
from ..reporting.task_report import write_task_report
from ..tasks.arguments import TaskArguments
from ..tasks.registry import Task, make_task
from ..tokenization_chatgpt import load_tokenizer
from .adaptation import adapt
from .adapters import adapter_record, lora_config
from .arguments import FinetuneArguments, TaskModelArguments
from .resuming import READ_WITH, ResumableTrainer, rows_fingerprint
from .run import Run, check_block_size, write_base_sample
from .weights import loading

# Inside the run's folder: only the adapters, if adapters were trained. The run's folder contains the merged model.
ADAPTER_FOLDER = "adapter"
# Decide, together with the data, what the rows are.
_READ_WITH = (
    *("text_column", "label_column", "class_names", "label_map", "problem_type", "split_by", "skip_invalid"),
    *("prompt_template", "completion_template", "column_names"),
)


def finetune(
    model_arguments: TaskModelArguments, task_arguments: TaskArguments, arguments: FinetuneArguments
) -> dict[str, Any]:
    """Fine-tunes for a task and writes a plain model folder that works in the pipeline of the task's name.

    Returns:
        The run's figures, as in its results.json: those for the held-out rows, and simple baselines on the same rows.

    Raises:
        ChatGPTError: If data, model or folder cannot be used.
    """
    return FinetuneRun(model_arguments, task_arguments, arguments).execute()


class FinetuneRun(Run):
    """Fine-tunes a base model for one task, on labeled rows."""

    command = "finetune"
    arguments: FinetuneArguments
    model_arguments: TaskModelArguments

    def __init__(
        self, model_arguments: TaskModelArguments, task_arguments: TaskArguments, arguments: FinetuneArguments
    ) -> None:
        super().__init__(arguments, model_arguments, task_arguments)
        self.model_arguments, self.task_arguments = model_arguments, task_arguments

    def check(self) -> None:
        chosen = self.model_arguments
        if chosen.model_name_or_path is None:
            raise ConfigError("--model_name_or_path is missing: name the base model to fine-tune.")
        if chosen.freeze_base and chosen.use_peft:
            raise ConfigError("--freeze_base and --use_peft both choose the weights to train: give only one of them.")
        if chosen.load_in_4bit:
            raise ConfigError(
                "--load_in_4bit is for `chatgpt-hf sft`: a task's adapters are merged into their base. Leave it out."
            )
        if self.task_arguments.adapt_vocab_size is not None and not self.task_arguments.adapt_epochs:
            raise ConfigError(
                "--adapt_vocab_size needs --adapt_epochs: new tokens are useless until the model has read them."
            )
        super().check()

    def row_length(self) -> tuple[str, int]:
        return "max_length", self.task_arguments.max_length

    def prepare(self) -> None:
        chosen, wanted = self.model_arguments, self.task_arguments
        self.task = task = make_task(wanted, self.arguments.seed)
        start = str(chosen.model_name_or_path)
        self.settings = self._settings()
        if wanted.adapt_epochs:
            # The adaptation writes into the run's folder, and may take hours.
            self.check_resumed({name: value for name, value in self.settings.items() if name != READ_WITH})
            start = adapt(start, task.texts(), wanted, self.arguments, from_scratch=chosen.from_scratch)
            # The new head must not depend on whether this process has adapted the model or found it finished.
            set_seed(self.arguments.seed)
        self.tokenizer = load_tokenizer(start)
        model = task.load_model(
            start,
            # `adapt` has already given the model new weights, before it read the texts.
            from_scratch=chosen.from_scratch and not wanted.adapt_epochs,
            dropout=chosen.dropout,
            **loading(chosen),
        )
        if self.checkpoint is not None:
            task.resume_target(model, self.checkpoint)
        check_tokenizer_fits(model, self.tokenizer)
        check_block_size(wanted.max_length, model, field="max_length")
        task.prepare_tokenizer(self.tokenizer)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.base_sample = sample_of(model)
        self.train_rows, self.test_rows = (task.tokenize(rows, self.tokenizer) for rows in (task.train, task.test))
        self.data = {
            **self.settings,
            "rows": rows_fingerprint(self.train_rows),
            "held_out": rows_fingerprint(self.test_rows),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "labels": list(model.config.id2label.values()) if "id2label" in task.config() else None,
            **adapter_record(chosen, self.base_sample),
        }
        self.model = _trained_part(model, chosen, task)
        _choose_best(self.arguments, task, wanted)

    def _settings(self) -> dict[str, Any]:
        """Returns the facts for data.json that are known before the model is loaded."""
        chosen, wanted = self.model_arguments, self.task_arguments
        names = ["task", "max_length", "class_weights", "classifier_pooling", "adapt_epochs"]
        names += ["stride"] if wanted.task == "question-answering" else []
        names += ["test_fraction"] if wanted.eval_dataset is None else []
        names += ["adapt_vocab_size", "adapt_learning_rate"] if wanted.adapt_epochs else []
        return {
            **{name: getattr(wanted, name) for name in names},
            "dropout": chosen.dropout,
            "freeze_base": chosen.freeze_base,
            "seed": self.arguments.seed,
            READ_WITH: {
                "dataset": rows_fingerprint(self.task.train),
                **{name: getattr(wanted, name) for name in _READ_WITH},
            },
        }

    def make_trainer(self) -> ResumableTrainer:
        trainer = ResumableTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=self.train_rows,
            eval_dataset=self.test_rows,
            processing_class=self.tokenizer,
            data_collator=self.task.collator(self.tokenizer),
            compute_loss_func=self.task.loss(),
            compute_metrics=self.task.metrics,
            optimizer_cls_and_kwargs=self.arguments.optimizer_cls_and_kwargs,
        )
        if self.task_arguments.early_stopping_patience is not None:
            trainer.add_callback(EarlyStoppingCallback(self.task_arguments.early_stopping_patience))
        return trainer

    def first_loss(self) -> float | None:
        return self.task.first_loss()

    def save(self, trainer: ResumableTrainer) -> None:
        model = trainer.whole_model()
        if self.model_arguments.use_peft:
            self.save_model(model, self.folder / ADAPTER_FOLDER)
            write_base_sample(self.folder / ADAPTER_FOLDER, self.base_sample)
            # A pipeline could not find head and labels in an adapter's folder.
            model = model.merge_and_unload()
        self.save_model(model, self.folder)
        with atomic_folder(self.folder) as temporary:
            save_pipeline_code(self.task_arguments.task, temporary)
        self.model = model.eval()

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        if not trainer.is_world_process_zero():
            return {}
        task = self.task
        self.evaluations = task.evaluate(
            self.model,
            self.tokenizer,
            task.test,
            data=task.eval_source() or ", ".join(task.sources()),
            batch_size=self.arguments.per_device_eval_batch_size,
        )
        figures: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for name, evaluation in self.evaluations.items():
            figures |= evaluation.save(self.folder / EVALUATION_FOLDER / name)
            cut = {name: evaluation.settings.get(name) for name in ("cut_prompts", "cut_completions")}
            counts |= {f"held_out_{name}": number for name, number in cut.items() if number}
        self.baselines = task.baselines() if self.task_arguments.baseline else {}
        results: dict[str, Any] = {
            "parameters": self.model.num_parameters(),
            "train_rows": len(task.train),
            "held_out_rows": len(task.test),
            **counts,
            **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
            **{f"held_out_{name}": figure.number for name, figure in figures.items()},
        }
        for title, baseline in self.baselines.items():
            results |= {f"{title}: {name}": figure.number for name, figure in baseline.figures().items()}
        return results

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        name, base = self.task_arguments.task, self.model_arguments.model_name_or_path
        self.write_report(
            trainer,
            results,
            title=name.replace("-", " ").capitalize(),
            description=f"a model for {name}, fine-tuned from `{base}`.",
            data=", ".join(self.task.sources()),
            columns=[summary.line() for summary in self.task.summaries],
            task=name,
            datasets=self.task.sources(),
            base_model=base,
        )
        write_task_report(self.folder, self.evaluations, self.baselines)


def _trained_part(model: PreTrainedModel, model_arguments: TaskModelArguments, task: Task) -> PreTrainedModel:
    if model_arguments.freeze_base:
        if not task.new_modules:
            raise ConfigError(
                f"--freeze_base trains only the task's head, but {task.arguments.task} has none: leave it out."
            )
        model.base_model.requires_grad_(False)
        return model
    config = lora_config(model_arguments, model, task_type=task.peft_task_type, heads=task.new_modules)
    if config is None:
        return model
    with needed_by("--use_peft"):
        from peft import get_peft_model

    with making_adapters():
        return get_peft_model(model, config)


def _choose_best(arguments: FinetuneArguments, task: Task, task_arguments: TaskArguments) -> None:
    """Fills in the arguments that `Trainer` needs to keep the best checkpoint, if requested."""
    if task_arguments.early_stopping_patience is not None:
        arguments.load_best_model_at_end = True
    if not arguments.load_best_model_at_end:
        return
    if arguments.metric_for_best_model in (None, "loss"):
        arguments.metric_for_best_model = task.best_metric
        arguments.greater_is_better = task.best_metric != "loss"
    if arguments.eval_strategy != arguments.save_strategy:
        raise ConfigError(
            "To keep the best checkpoint, every checkpoint must be evaluated: give --eval_strategy and --save_strategy the "
            "same value."
        )
