"""From a base model to one for a task, with stock `Trainer`, and from there to figures and a report."""

import json
import shlex
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer

from ..checkpoints import (
    BASE_SAMPLE_NAME,
    RECIPE_NAME,
    atomic_folder,
    check_tokenizer_fits,
    sample_of,
    write_atomically,
)
from ..errors import ConfigError
from ..evaluation.record import EVALUATION_FOLDER
from ..extras import needed_by
from ..pipelines import save_pipeline_code
from ..report import Report, training_facts
from ..task_report import write_task_report
from ..tokenization_chatgpt import load_tokenizer
from .adaptation import adapt
from .adapters import lora_config
from .run import check_block_size, check_run, push_run, save_model_folder, save_results, start_run, train_and_save
from .task_arguments import FinetuneArguments, TaskArguments, TaskModelArguments
from .tasks import TaskRecipe, make_task

# In the run's folder, where adapters were trained: they alone. The folder itself holds the merged model.
ADAPTER_FOLDER = "adapter"


def finetune(
    model_arguments: TaskModelArguments, task_arguments: TaskArguments, arguments: FinetuneArguments
) -> dict[str, Any]:
    """Fine-tunes for a task and leaves a plain model folder that works in the pipeline of the task's name.

    Returns:
        The run's figures, as in its results.json: those of the held-out rows, and of simpler means on the same rows.

    Raises:
        ChatGPTError: On data, a model or a folder that cannot be used.
    """
    if model_arguments.model_name_or_path is None:
        raise ConfigError("--model_name_or_path is missing: name the base model to fine-tune.")
    if model_arguments.freeze_base and model_arguments.use_peft:
        raise ConfigError("--freeze_base and --use_peft both say what is trained: give one of the two.")
    if model_arguments.load_in_4bit:
        raise ConfigError(
            "--load_in_4bit is for `chatgpt-hf sft`: a task's adapters are merged into their base. Leave it out."
        )
    if task_arguments.adapt_vocab_size is not None and not task_arguments.adapt_epochs:
        raise ConfigError(
            "--adapt_vocab_size needs --adapt_epochs: new tokens have to be read before they are of use."
        )
    check_run(arguments)
    task = make_task(task_arguments, arguments.seed)
    start = model_arguments.model_name_or_path
    if task_arguments.adapt_epochs:
        start = adapt(start, task.texts(), task_arguments, arguments, from_scratch=model_arguments.from_scratch)
    tokenizer = load_tokenizer(start)
    model = task.load_model(
        start,
        # With texts to read first, the weights were new before these.
        from_scratch=model_arguments.from_scratch and not task_arguments.adapt_epochs,
        dropout=model_arguments.dropout,
        attn_implementation=model_arguments.attn_implementation,
    )
    check_tokenizer_fits(model, tokenizer)
    check_block_size(task_arguments.max_length, model, field="max_length")
    task.prepare_tokenizer(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    base_sample = sample_of(model)
    train_rows, test_rows = task.tokenize(task.train, tokenizer), task.tokenize(task.test, tokenizer)
    model = _trained_part(model, model_arguments, task)
    _choose_best(arguments, task, task_arguments)
    folder = start_run(model, arguments, model_arguments, task_arguments)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        data_collator=task.collator(tokenizer),
        compute_loss_func=task.loss(),
        compute_metrics=task.metrics,
        optimizer_cls_and_kwargs=arguments.optimizer_cls_and_kwargs,
    )
    if task_arguments.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(task_arguments.early_stopping_patience))
    adapter = folder / ADAPTER_FOLDER if model_arguments.use_peft else None
    metrics = train_and_save(trainer, tokenizer, folder, model_folder=adapter)
    if not trainer.is_world_process_zero():
        return {}
    model = trainer.accelerator.unwrap_model(trainer.model)
    if adapter is not None:
        content = json.dumps(base_sample)
        write_atomically(adapter / BASE_SAMPLE_NAME, lambda file: file.write_text(content, encoding="utf-8"))
        # A pipeline finds neither head nor labels in the folder of an adapter.
        model = model.merge_and_unload()
        save_model_folder(model, tokenizer, folder)
    with atomic_folder(folder) as temporary:
        save_pipeline_code(task_arguments.task, temporary)
    return _measure(task, model.eval(), trainer, folder, metrics, str(model_arguments.model_name_or_path))


def _measure(
    task: TaskRecipe,
    model: PreTrainedModel,
    trainer: Trainer,
    folder: Path,
    metrics: dict[str, float],
    base: str,
) -> dict[str, Any]:
    arguments: Any = trainer.args
    source = task.eval_source() or ", ".join(task.sources())
    evaluations = task.evaluate(
        model,
        trainer.processing_class,
        task.test,
        data=source,
        batch_size=arguments.per_device_eval_batch_size,
    )
    figures: dict[str, Any] = {}
    for name, evaluation in evaluations.items():
        figures |= evaluation.save(folder / EVALUATION_FOLDER / name)
    baselines = task.baselines() if task.arguments.baseline else {}
    results: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "train_rows": len(task.train),
        "held_out_rows": len(task.test),
        **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
        **{f"held_out_{name}": figure.value for name, figure in figures.items()},
    }
    for title, baseline in baselines.items():
        results |= {f"{title}: {name}": figure.value for name, figure in baseline.figures().items()}
    Report(
        title=task.arguments.task.replace("-", " ").capitalize(),
        description=f"a model for {task.arguments.task}, fine-tuned from `{base}`.",
        data=", ".join(task.sources()),
        results=results,
        log_history=trainer.state.log_history,
        training=training_facts(arguments, trainer.state),
        command=f"chatgpt-hf finetune {shlex.quote(str(folder / RECIPE_NAME))} --output_dir NEW",
        task=task.arguments.task,
        datasets=task.sources(),
        base_model=base,
    ).write(folder)
    write_task_report(folder, evaluations, baselines)
    save_results(folder, results)
    push_run(arguments, folder)
    return results


def _trained_part(model: PreTrainedModel, model_arguments: TaskModelArguments, task: TaskRecipe) -> PreTrainedModel:
    if model_arguments.freeze_base:
        if not task.new_modules:
            raise ConfigError(
                f"--freeze_base trains the head alone, and {task.arguments.task} has no head of its own."
            )
        model.base_model.requires_grad_(False)
        return model
    config = lora_config(model_arguments, model, task_type=task.peft_task_type, heads=task.new_modules)
    if config is None:
        return model
    with needed_by("--use_peft"):
        from peft import get_peft_model

    return get_peft_model(model, config)


def _choose_best(arguments: FinetuneArguments, task: TaskRecipe, task_arguments: TaskArguments) -> None:
    """Fills in what `Trainer` needs to keep the best checkpoint, where that was asked for."""
    if task_arguments.early_stopping_patience is not None:
        arguments.load_best_model_at_end = True
    if not arguments.load_best_model_at_end:
        return
    if arguments.metric_for_best_model in (None, "loss"):
        arguments.metric_for_best_model = task.best_metric
        arguments.greater_is_better = task.best_metric != "loss"
    if arguments.eval_strategy != arguments.save_strategy:
        raise ConfigError(
            "The best checkpoint can only be kept where each is measured: give --eval_strategy and --save_strategy the same "
            "value."
        )
