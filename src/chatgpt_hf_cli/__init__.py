"""The command line `chatgpt-hf`: one file per command; each parses, calls one function of the library, and prints.

Importing anything from `chatgpt_hf` registers the model, which takes seconds of torch and transformers. So this is a package
beside it, and nothing here imports the library until a command runs: help and usage errors come at once.
"""

import logging
import os
import sys

import typer
from typer.main import get_command

from . import (
    calibrate,
    card,
    chat,
    compare,
    convert,
    data,
    distill,
    dpo,
    env,
    evaluate,
    explain,
    export,
    finetune,
    generate,
    grpo,
    merge,
    pairs,
    plan,
    prepare,
    pretrain,
    pull,
    push,
    quantize,
    quickstart,
    reward,
    serve,
    sft,
    static,
    tokenizer,
    ui,
)
from ._terminal import VisibleFormatter, VisibleRecord, say_aside
from .errors import message_of
from .help import Group

HELP = """Train, evaluate, talk to and share a GPT that is a first-class Hugging Face model.

Start with: chatgpt-hf quickstart

Every command explains itself: chatgpt-hf COMMAND --help"""

# The order of the help: it reads as the way from nothing to a shared model.
PANELS = {
    "Start": (quickstart, plan, data, tokenizer),
    "Train": (prepare, pretrain, sft, dpo, reward, grpo, pairs, distill, finetune),
    "Evaluate": (evaluate, calibrate, compare, explain),
    "Use": (chat, ui, serve, generate),
    "Convert": (convert, merge, quantize, export),
    "Share": (card, push, pull),
    "Maintain": (env,),
}

# They report at import, on every command, which of their compiled parts this machine cannot load, whether used or not.
TALKATIVE = ("bitsandbytes", "torchao", "torch.utils")


def make_app() -> typer.Typer:
    """The command line with all its commands."""
    app = typer.Typer(
        name="chatgpt-hf",
        add_help_option=False,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help=HELP,
        cls=Group,
    )
    for panel, modules in PANELS.items():
        for module in modules:
            module.register(app, panel)
    return app


def main() -> None:
    """Runs the command line. A user's mistake is one line on stderr and exit code 2, without a traceback."""
    logging.setLogRecordFactory(VisibleRecord)
    if logging.lastResort is not None:
        # It prints the warnings of commands that set up no logging.
        logging.lastResort.setFormatter(VisibleFormatter())
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = _run(sys.argv[1:] or ["--help"])
    except typer.Abort:
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        # In one line, also where it quotes a file: its lines would look like ours.
        say_aside(f"error: {' '.join(line.strip() for line in message.splitlines())}")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            # One of several processes: leaving the process groups in order would wait for those that have ended.
            sys.stdout.flush()
            os._exit(2)
        sys.exit(2)
    if code:
        sys.exit(code)


def _run(arguments: list[str]) -> int | None:
    """Runs a command, and returns its exit code if it set one."""
    # These two are not options of typer's: it would import pydantic to read them, for every command and every typo.
    if arguments[0] == "--version":
        typer.echo(static.load("chatgpt_hf").value("__version__"))
        return None
    command = get_command(make_app())
    if arguments[0] == "--help":
        typer.echo(command.get_help(command.make_context("chatgpt-hf", [], resilient_parsing=True)))
        return None
    return command(arguments, prog_name="chatgpt-hf", standalone_mode=False)


__all__ = ["main", "make_app"]
