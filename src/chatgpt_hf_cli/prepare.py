"""`chatgpt-hf prepare`."""

import logging
from typing import Any

import typer

from ._recipe import recipe_command
from ._terminal import VisibleFormatter
from .pretrain import TYPES


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "prepare", panel, TYPES, run, HELP)


HELP = """Tokenize and pack the corpus of a pretraining recipe before training.

Writes the training rows into the cache, where pretrain with the same recipe finds them: it starts at once, with the same rows in the same order as without this command. Start it on as many machines as you like, with CHATGPT_HF_CACHE set to a folder that all of them see. They share the work file by file and need no network between them; one that is killed is replaced by the others, and started again it continues. --preprocessing_num_workers is the number of processes on this machine.

Fields that the rows do not depend on, such as the learning rate, may differ between prepare and pretrain. A corpus, tokenizer, block_size, seed or test_fraction that differs means other rows. `chatgpt-hf env --prune` removes rows that nobody uses.

Example: chatgpt-hf prepare pretrain-quickstart

Example: chatgpt-hf prepare my-recipe.yaml --preprocessing_num_workers 16

Example: srun --nodes 8 chatgpt-hf prepare my-recipe.yaml
"""


def run(parsed: tuple[Any, ...]) -> None:
    """Prepares the rows and prints their figures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from chatgpt_hf.training.preparing import prepare_corpus

    from ._terminal import visible

    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    figures = prepare_corpus(*parsed)
    table = Table("figure", "value", box=None, header_style="bold")
    for name, value in figures.items():
        if name == "folder":
            continue
        table.add_row(name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    console = Console()
    console.print(table)
    console.print(Text(visible(f"Prepared rows: {figures['folder']}")), soft_wrap=True)
