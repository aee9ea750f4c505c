"""`chatgpt-hf`: one file per command; each parses, calls one function of the package, and prints."""

import os
import sys

import typer

from ..errors import ChatGPTError

app = typer.Typer(
    name="chatgpt-hf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A GPT that is a first-class Hugging Face citizen: tokenizer, pretraining, chat fine-tuning, conversation.\n\n"
    "Start with `chatgpt-hf quickstart`.",
)


def main() -> None:
    """Runs the command line. A user's mistake is one message on stderr and exit code 2, without a traceback."""
    from . import (
        card,
        chat,
        compare,
        convert,
        evaluate,
        explain,
        export,
        finetune,
        generate,
        merge,
        plan,
        pretrain,
        pull,
        push,
        quantize,
        quickstart,
        serve,
        sft,
        tokenizer,
        ui,
    )

    if not app.registered_commands:
        for module in (
            quickstart,
            tokenizer,
            plan,
            pretrain,
            sft,
            finetune,
            evaluate,
            compare,
            chat,
            ui,
            serve,
            generate,
            explain,
            convert,
            quantize,
            export,
            merge,
            card,
            push,
            pull,
        ):
            module.register(app)
    try:
        app()
    except ChatGPTError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


__all__ = ["app", "main"]
