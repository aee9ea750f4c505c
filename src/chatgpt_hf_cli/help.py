"""The help of commands: usage, what the command does, examples, and options, in any width without a cut name."""

import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ._abstain import spell_out

# Longer names get a separate line.
NAME_WIDTH = 26


class Command(TyperCommand):
    """A command whose help is laid out here. The docstring's `Example:` paragraphs become a section."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help; called by typer."""
        formatter.write(command_help(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line; called by typer."""
        if any("--abstain" in item.opts for item in self.params):
            args = spell_out(args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands, in sections."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help; called by typer."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            title = panel if isinstance(panel, str) else "Commands"
            sections.setdefault(title, []).append((name, (command.help or "").partition("\n\n")[0]))
        parts = [f"Usage: {ctx.command_path} COMMAND [OPTIONS]", *description(self.help or "")]
        parts += [section(title, rows) for title, rows in sections.items()]
        version = [("--version", "Show the version and exit.")] if ctx.parent is None else []
        formatter.write("\n\n".join([*parts, section("Options", version + options(self, ctx))]) + "\n")


def command_help(command: Any, ctx: Any) -> str:
    """Usage, description, examples, arguments and options of a command."""
    arguments = [item for item in command.get_params(ctx) if item.param_type_name == "argument"]
    pieces = [item.name.upper() + ("..." if item.nargs != 1 else "") for item in arguments]
    usage = f"Usage: {ctx.command_path} {' '.join([*pieces, command.options_metavar])}"
    parts = [usage, *description(command.help or "")]
    if arguments:
        parts.append(section("Arguments", [(item.name.upper(), item.help or "") for item in arguments]))
    return "\n\n".join([*parts, section("Options", options(command, ctx))]) + "\n"


def description(text: str) -> list[str]:
    """The paragraphs of a docstring, and its examples as the last."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    examples = [part.removeprefix("Example: ") for part in paragraphs if part.startswith("Example: ")]
    wrapped = [fill(part) for part in paragraphs if not part.startswith("Example: ")]
    if not examples:
        return wrapped
    # An example that is longer than a line can still be copied.
    lines = [" \\\n      ".join(wrap(example, width() - 6)) for example in examples]
    return [*wrapped, heading("Examples") + "".join(f"\n  {line}" for line in lines)]


def options(command: Any, ctx: Any) -> list[tuple[str, str]]:
    """Names and help texts of the options, with their defaults."""
    rows = []
    for item in command.get_params(ctx):
        if item.param_type_name != "option":
            continue
        names = ", ".join([*item.opts, *item.secondary_opts])
        notes = []
        if item.required:
            notes.append("required")
        elif item.default not in (None, False, True, "", ()) and not callable(item.default) and item.show_default:
            notes.append(f"default: {item.default}")
        if item.envvar:
            notes.append(f"or the environment variable {item.envvar}")
        rows.append((names, (item.help or "") + "".join(f" [{note}]" for note in notes)))
    if not any(name == "--help" for name, _ in rows):
        rows.append(("--help", "Show this message and exit."))
    return rows


def section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A heading with names on the left and their texts on the right."""
    lines = [heading(title)]
    margin = " " * (NAME_WIDTH + 4)
    for name, text in rows:
        first, *rest = wrap(text, width() - len(margin)) or [""]
        if len(name) > NAME_WIDTH:
            lines += [f"  {name}", margin + first]
        else:
            lines.append(f"  {name:<{NAME_WIDTH}}  {first}".rstrip())
        lines += [margin + line for line in rest]
    return "\n".join(lines)


def heading(title: str) -> str:
    """A title; bold on a terminal."""
    return typer.style(f"{title}:", bold=True)


def fill(text: str) -> str:
    """A paragraph in lines."""
    return "\n".join(wrap(text, width()))


def wrap(text: str, columns: int) -> list[str]:
    """Lines of words; none is broken, so that names and paths can be copied."""
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)


def width() -> int:
    """Columns of the terminal, within what is readable."""
    return min(max(shutil.get_terminal_size().columns, 60), 100)
