"""`chatgpt-hf finetune`."""

import typer

from ._recipe import recipe_command, train

TYPES = (
    "training.arguments:TaskModelArguments",
    "tasks.arguments:TaskArguments",
    "training.arguments:FinetuneArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "finetune", panel, TYPES, train("chatgpt_hf.training.finetune:finetune"), HELP)


HELP = """Train a base model for a task, and measure it on held-out rows.

--task says which: label texts or words, find answers in a text, choose an answer, summarize, translate, or continue a prompt. The model folder works in transformers' pipeline for that task. RECIPE is a YAML file or the name of a shipped recipe; fields on the command line win over it. --resume continues an interrupted run.

Example: chatgpt-hf finetune sst2 --model_name_or_path runs/base --output_dir runs/sst2

Example: chatgpt-hf finetune --task text-classification --model_name_or_path runs/base --dataset reviews.csv
"""
