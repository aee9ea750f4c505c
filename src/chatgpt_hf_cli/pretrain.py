"""`chatgpt-hf pretrain`."""

import typer

from ._recipe import recipe_command, train

TYPES = (
    "training.arguments:ModelArguments",
    "training.arguments:ArchitectureArguments",
    "training.arguments:CorpusArguments",
    "training.arguments:PretrainArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "pretrain", panel, TYPES, train("chatgpt_hf.training.pretrain:pretrain"), HELP)


HELP = """Train a base model on a corpus.

Trains a tokenizer if none is given, tokenizes and packs the corpus, trains with transformers' Trainer, and leaves a model folder with a report. RECIPE is a YAML file or the name of a shipped recipe; fields on the command line win over it. --resume continues an interrupted run.

Example: chatgpt-hf pretrain pretrain-quickstart --corpus my-texts/ --max_steps 500

Example: chatgpt-hf pretrain --depth 6 --corpus book.txt --output_dir runs/book
"""
