"""Commands that run a recipe: `RECIPE [--FIELD VALUE ...]`, with a help that lists every field."""

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from ._terminal import VisibleFormatter, say_aside, visible
from .errors import message_of
from .fields import check_recipe, fields_help, imported_types
from .help import Command

# Everything after the command's name is for the recipe's own parser, which knows every field.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
METAVAR = "[RECIPE] [--FIELD VALUE]..."


def recipe_command(
    app: typer.Typer,
    name: str,
    panel: str,
    types: tuple[str, ...],
    run: Callable[[tuple[Any, ...]], None],
    doc: str,
) -> None:
    """Adds a command that reads a recipe and calls `run` with the dataclasses.

    Args:
        types: `module:name` of each dataclass, in `chatgpt_hf`; the last one is a `TrainingArguments`.
        doc: The help.
    """

    class RecipeCommand(Command):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            formatter.write(fields_help(types))

    def command(ctx: typer.Context) -> None:
        with _joined():
            read_and_run(ctx)

    def read_and_run(ctx: typer.Context) -> None:
        # `--resume` is short for the long name, which also takes a checkpoint's folder.
        given = {"--resume": ["--resume_from_checkpoint", "true"]}
        arguments = [word for argument in ctx.args for word in given.get(argument, [argument])]
        if "--help" in arguments:
            typer.echo(ctx.get_help(), nl=False)
            return
        recipe = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
        check_recipe(types, recipe, arguments)
        run(imported_recipe(types, recipe, arguments))

    command.__doc__ = doc
    # `--help` is read above: an option of typer's would have it import pydantic for every usage error.
    app.command(
        name,
        cls=RecipeCommand,
        add_help_option=False,
        rich_help_panel=panel,
        context_settings=CONTEXT,
        options_metavar=METAVAR,
    )(command)


def _joined() -> AbstractContextManager[Any]:
    """Joins the other processes of the run, if a launcher has started several: from then on, only the first one prints."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from chatgpt_hf.training.distributed import joined

    return joined(message_of)


def imported_recipe(types: tuple[str, ...], recipe: str | None, arguments: list[str]) -> tuple[Any, ...]:
    """Imports the library, and reads a recipe and a command line into its dataclasses."""
    from chatgpt_hf.training.arguments import parse_recipe

    return parse_recipe(imported_types(types), recipe, arguments)


def train(function: str) -> Callable[[tuple[Any, ...]], None]:
    """Runs a training, `module:function` of the library, and prints its figures."""

    def run(parsed: tuple[Any, ...]) -> None:
        from chatgpt_hf.errors import TrainingInterrupted

        handler = logging.StreamHandler()
        handler.setFormatter(VisibleFormatter())
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        # The Hub's client logs a line for each request.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        # transformers pins memory by default, which matters on GPUs only.
        warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator")
        module, _, name = function.partition(":")
        try:
            results = getattr(import_module(module), name)(*parsed)
        except TrainingInterrupted as stopped:
            # Not a mistake: the exit code is that of a process that the signal ended.
            say_aside(f"stopped: {stopped}")
            raise typer.Exit(128 + stopped.signal) from stopped
        except KeyboardInterrupt:
            from chatgpt_hf.training.run_folder import last_whole_checkpoint

            kept = last_whole_checkpoint(Path(parsed[-1].output_dir))
            resume = (
                f"{kept} is complete. Add --resume to continue from it." if kept else "no checkpoint was saved yet."
            )
            say_aside(f"stopped: SIGINT; {resume}")
            raise
        print_results(results, parsed[-1].output_dir)

    return run


def print_results(results: dict[str, Any], output_dir: str) -> None:
    """Prints the run's figures, and where the model and the report are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("figure", "value", box=None, header_style="bold")
    for name, value in results.items():
        if isinstance(value, list | dict):
            continue
        shown = f"{value:.4g}" if isinstance(value, float) else visible(str(value))
        # A label or a file may be named in markup of rich's.
        table.add_row(Text(visible(name)), Text(shown))
    console = Console()
    console.print(table)
    line = f"Model folder: {output_dir}   Report: {output_dir}/report/report.md"
    console.print(visible(line), soft_wrap=True, markup=False)
