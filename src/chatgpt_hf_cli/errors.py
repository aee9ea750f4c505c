"""Usage errors, each reported in one line."""

import difflib
import sys
from collections.abc import Iterable
from typing import Any

import typer


class UsageMistake(Exception):
    """A command line that cannot be used; the message names the option and what would be right."""


def message_of(error: Exception) -> str | None:
    """The line to print for a user's mistake; None for any other exception."""
    if isinstance(error, UsageMistake) or _is_ours(error):
        return str(error)
    # Both typer's own parser and click, which older releases of typer use, describe their errors so.
    return _parser_message(error) if hasattr(error, "format_message") else None


def _is_ours(error: Exception) -> bool:
    # Only a command that has imported the library can raise its errors; importing it here would take seconds.
    errors = sys.modules.get("chatgpt_hf.errors")
    return errors is not None and isinstance(error, errors.ChatGPTError)


def _parser_message(error: Any) -> str:
    """The message of typer's parser, with what would be right."""
    context: typer.Context | None = getattr(error, "ctx", None)
    parameter = getattr(error, "param", None)
    option = getattr(error, "option_name", None)
    plain = error.message.rstrip(".")
    if option is not None and plain.startswith("No such option"):
        known = [name for item in context.command.params for name in item.opts] if context else []
        known += ["--help", "--version"] if context is not None and context.parent is None else ["--help"]
        return f"Unknown argument {option}.{did_you_mean(option, known)}"
    if parameter is not None:
        name = parameter.opts[-1] if parameter.param_type_name == "option" else parameter.name.upper()
        if not plain:
            return f"Missing {parameter.param_type_name} {name}: {parameter.help}"
        return f"{name}: {plain}."
    if context is not None and plain == "Missing command":
        return f"Missing command: give one of {', '.join(context.command.commands)}."  # type: ignore[attr-defined]
    if context is not None and plain.startswith("Got unexpected extra argument"):
        return f"{plain}. {context.command_path} --help shows what it takes."
    # The parser quotes the names: No such command 'quikstart'. Did you mean 'quickstart'?
    return (plain if plain.endswith("?") else f"{plain}.").replace("'", "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question for the end of a message; empty if no known name is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f" Did you mean {close[0]}?" if close else ""
