"""What the commands that run a recipe share: `RECIPE [--field value ...]`, and a help that lists the fields."""

import logging
import signal
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from ..errors import TrainingInterrupted

# Anything after the command's name is for the recipe's own parser, which knows every field.
RECIPE_CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def recipe_command(app: typer.Typer, name: str, types: tuple[str, ...], run: str) -> Callable[[Any], Any]:
    """Makes a command of `run(*dataclasses)`; the decorated function's docstring is its help.

    Args:
        types: Names in `chatgpt_hf.training.arguments`, or `module:name` of another module beside it; the last one is a
            `TrainingArguments`.
        run: `module:function` of the package, imported when the command runs.
    """

    class RecipeCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            print_fields(_dataclasses(types))

    def decorate(function: Any) -> Any:
        def command(ctx: typer.Context) -> None:
            from ..training.arguments import parse_recipe

            # Short for the long words, which also take the name of a checkpoint.
            given = {"--resume": ["--resume_from_checkpoint", "true"]}
            arguments = [word for argument in ctx.args for word in given.get(argument, [argument])]
            recipe = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
            logging.basicConfig(level=logging.INFO, format="%(message)s")
            # Of the Hub's client, which has a line for each request.
            logging.getLogger("httpx2").setLevel(logging.WARNING)
            parsed = parse_recipe(_dataclasses(types), recipe, arguments)
            module, _, target = run.partition(":")
            try:
                results = getattr(import_module(module, "chatgpt_hf"), target)(*parsed)
            except TrainingInterrupted as stopped:
                # Not a mistake: as the shell reports a process that the signal ended.
                typer.echo(f"stopped: {stopped}", err=True)
                raise typer.Exit(128 + signal.SIGTERM) from stopped
            print_results(results, parsed[-1].output_dir)

        command.__doc__ = function.__doc__
        app.command(
            name, cls=RecipeCommand, context_settings=RECIPE_CONTEXT, options_metavar="[RECIPE] [--FIELD VALUE]..."
        )(command)
        return function

    return decorate


def _dataclasses(names: tuple[str, ...]) -> tuple[type, ...]:
    found = []
    for name in names:
        module, _, target = name.rpartition(":")
        found.append(getattr(import_module(f"..training.{module or 'arguments'}", __package__), target))
    return tuple(found)


def print_fields(dataclasses: tuple[type, ...]) -> None:
    """Every field of the recipe that is ours, and where the others are documented."""
    table = Table("field", "what it is", box=None, header_style="bold")
    for dataclass in dataclasses[:-1]:
        for item in fields(dataclass):
            value = item.default if item.default_factory is MISSING else " ".join(item.default_factory())
            default = "" if value is None else f" [dim]({value})[/dim]"
            table.add_row(f"--{item.name}", f"{item.metadata['help']}{default}")
    package = __name__.partition(".")[0]
    base = next(kind.__name__ for kind in dataclasses[-1].__mro__ if kind.__module__.partition(".")[0] != package)
    table.add_row("--output_dir ...", f"Every field of {base}: --learning_rate, --max_steps, --resume ...")
    Console().print(table)


def print_results(results: dict[str, Any], output_dir: str) -> None:
    """The run's figures and where it lies."""
    table = Table("figure", "value", box=None, header_style="bold")
    for name, value in results.items():
        if isinstance(value, list | dict):
            continue
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else f"{value}")
    console = Console()
    console.print(table)
    console.print(f"Model folder: {output_dir}   Report: {output_dir}/report/report.md", soft_wrap=True)
