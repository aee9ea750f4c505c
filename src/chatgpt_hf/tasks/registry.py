"""Finds the tasks that a base model is fine-tuned for by the names of their pipelines."""

from transformers import PreTrainedModel

from ..checkpoints import load_for_inference
from ..errors import ConfigError, MissingWeights
from .arguments import GENERATIVE_TASKS, TASKS, TaskArguments
from .base import Task


def task_class(task: str) -> type[Task]:
    """Returns the class of a task.

    Raises:
        ConfigError: If there is no such task.
    """
    if task == "text-classification":
        from .text_classification.task import TextClassification

        return TextClassification
    if task == "token-classification":
        from .token_classification.task import TokenClassification

        return TokenClassification
    if task == "question-answering":
        from .question_answering.task import QuestionAnswering

        return QuestionAnswering
    if task == "multiple-choice":
        from .multiple_choice.task import MultipleChoice

        return MultipleChoice
    if task in GENERATIVE_TASKS:
        from .generation.task import Generation

        return Generation
    raise ConfigError(f"--task {task} is unknown: give one of {', '.join(TASKS)}.")


def make_task(arguments: TaskArguments, seed: int, *, model: PreTrainedModel | None = None) -> Task:
    """Creates the task of a recipe and reads its rows.

    Args:
        model: A model to evaluate on all rows; None to train one.

    Raises:
        ConfigError: If there is no such task.
        DataError: If its rows cannot be used.
    """
    return task_class(arguments.task)(arguments, seed, model=model)


def load_task_model(name_or_path: str, task: str) -> PreTrainedModel:
    """Loads a model that was fine-tuned for a task, on the machine's accelerator.

    Raises:
        ConfigError: If it has no head for the task.
        CheckpointError: If there is no model, or it is incomplete.
    """
    found = task_class(task)
    try:
        return load_for_inference(name_or_path, found.auto_class)
    except MissingWeights as error:
        if {name.partition(".")[0] for name in error.names} <= set(found.new_modules):
            raise ConfigError(
                f"{name_or_path} has no head for {task}: `chatgpt-hf finetune --task {task} --model_name_or_path "
                f"{name_or_path}` trains one."
            ) from error
        raise


__all__ = ["Task", "load_task_model", "make_task", "task_class"]
