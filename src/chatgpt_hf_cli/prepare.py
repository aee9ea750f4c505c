"""`chatgpt-hf prepare`."""

import logging
from typing import Any

import typer

from . import pretrain, sft
from ._choices import check_choice
from ._recipe import CONTEXT, METAVAR, imported_recipe
from ._terminal import VisibleFormatter
from .errors import UsageMistake
from .fields import check_recipe, fields_help
from .help import Command

TYPES = pretrain.TYPES
PURPOSES = {
    "pretrain": (pretrain.TYPES, "prepare_corpus"),
    "sft": (sft.TYPES, "prepare_conversations"),
}


class PrepareCommand(Command):
    """A command whose help ends with the fields of a recipe."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        formatter.write(fields_help(TYPES))


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    def command(ctx: typer.Context) -> None:
        arguments = list(ctx.args)
        if "--help" in arguments:
            typer.echo(ctx.get_help(), nl=False)
            return
        purpose = _taken(arguments)
        recipe = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
        if purpose is None:
            purpose = _recognised(recipe, arguments)
        types, function = PURPOSES[purpose]
        check_recipe(types, recipe, arguments)
        # Rows do not depend on these, and what makes them need not have the hardware and the processes of the training.
        arguments += ["--bf16", "false", "--fp16", "false", "--fsdp", "false", "--fsdp_replicas", "1"]
        run(purpose, function, imported_recipe(types, recipe, arguments))

    command.__doc__ = HELP
    app.command(
        "prepare",
        cls=PrepareCommand,
        add_help_option=False,
        rich_help_panel=panel,
        context_settings=CONTEXT,
        options_metavar=METAVAR,
    )(command)


HELP = """Tokenize and pack the data of a recipe of pretrain or sft before training.

Writes the training rows into the cache, where pretrain or sft with the same recipe finds them: it starts at once, with the same rows in the same order as without this command. Start it on as many machines as you like, with CHATGPT_HF_CACHE set to a folder that all of them see. For pretrain they share the work file by file and need no network between them; for sft one of them works. One that is killed is replaced by the others, and started again it continues. --preprocessing_num_workers is the number of processes on this machine.

--for pretrain or --for sft says which command will train; if not given, the fields of the recipe decide. The fields below are those of pretrain; `chatgpt-hf sft --help` shows the others.

Fields that the rows do not depend on, such as the learning rate, may differ between prepare and the training. Other data, another tokenizer, block_size, seed or test_fraction mean other rows. `chatgpt-hf env --prune` removes rows that nobody uses.

Example: chatgpt-hf prepare pretrain-quickstart

Example: chatgpt-hf prepare sft-quickstart --model_name_or_path runs/mine

Example: chatgpt-hf prepare my-recipe.yaml --preprocessing_num_workers 16

Example: srun --nodes 8 chatgpt-hf prepare my-recipe.yaml
"""


def _taken(arguments: list[str]) -> str | None:
    """Removes `--for PURPOSE` from a command line, and returns the purpose."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != "--for":
            continue
        if not equals:
            if place + 1 == len(arguments):
                raise UsageMistake("--for needs a value: pretrain or sft.")
            value = arguments.pop(place + 1)
        arguments.pop(place)
        check_choice("--for", value, tuple(PURPOSES))
        return value
    return None


def _recognised(recipe: str | None, arguments: list[str]) -> str:
    """The command that has all fields of a recipe; pretrain if both or neither have them."""
    try:
        check_recipe(pretrain.TYPES, recipe, arguments)
    except UsageMistake as mistake:
        try:
            check_recipe(sft.TYPES, recipe, arguments)
        except UsageMistake:
            # What neither knows is said by the one that the recipe looks like.
            return "sft" if "dataset" in str(mistake) or "--dataset" in arguments else "pretrain"
        return "sft"
    return "pretrain"


def run(purpose: str, function: str, parsed: tuple[Any, ...]) -> None:
    """Prepares the rows and prints their figures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from chatgpt_hf.training import preparing

    from ._terminal import visible

    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    figures = getattr(preparing, function)(*parsed)
    table = Table("figure", "value", box=None, header_style="bold")
    for name, value in figures.items():
        if name != "folder":
            table.add_row(name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    console = Console()
    console.print(table)
    console.print(Text(visible(f"Prepared for {purpose}: {figures['folder']}")), soft_wrap=True)
