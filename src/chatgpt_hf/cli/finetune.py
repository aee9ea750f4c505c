"""`chatgpt-hf finetune`."""

import typer

from ._recipe import recipe_command


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @recipe_command(
        app,
        "finetune",
        (
            "task_arguments:TaskModelArguments",
            "task_arguments:TaskArguments",
            "task_arguments:FinetuneArguments",
        ),
        "chatgpt_hf.training.finetune:finetune",
    )
    def finetune() -> None:
        """From a base model to one for a task, measured on rows that it has not seen.

        Labels texts or words, finds answers in a text, chooses among them, summarizes, translates, or goes on from a prompt,
        as --task says. The folder works in the pipeline of that name.

        Example: chatgpt-hf finetune --task text-classification --model_name_or_path runs/base --dataset reviews.csv
        """
