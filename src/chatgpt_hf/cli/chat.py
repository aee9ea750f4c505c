"""`chatgpt-hf chat`."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape

from ._moderation import (
    ModerationLabelsOption,
    ModerationLogTextOption,
    ModerationOption,
    ModerationThresholdOption,
    moderator,
    split_commas,
)
from ._quantize import QuantizeOption

if TYPE_CHECKING:
    from ..inference.session import ChatSession

HELP = (
    "/reset forgets the conversation, /system PROMPT begins one with another system prompt, /save FILE writes it, /load FILE "
    "goes on with one, /regenerate takes the last answer back for another, /set temperature 0.7 sets any generation "
    "parameter, /explain FILE writes a page about the last answer, /help shows this, /quit ends. A line that ends with a backslash goes on in the next; Ctrl-C stops an answer."
)


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def chat(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a chat model.")],
        prompt: Annotated[
            str | None, typer.Option("--prompt", help="One message: prints the answer and ends.")
        ] = None,
        system: Annotated[str | None, typer.Option("--system", help="A system prompt; never forgotten.")] = None,
        max_new_tokens: Annotated[int | None, typer.Option("--max_new_tokens", help="Longest answer.")] = None,
        temperature: Annotated[
            float | None, typer.Option("--temperature", help="0 takes the likeliest token each time.")
        ] = None,
        seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same answers.")] = None,
        quantize: QuantizeOption = None,
        bad_words: Annotated[
            list[str] | None,
            typer.Option("--bad_words", help="Words that the model does not choose, with commas between them."),
        ] = None,
        watermark: Annotated[
            bool,
            typer.Option("--watermark", help="Prefer tokens by which transformers' WatermarkDetector knows the text."),
        ] = False,
        moderation: ModerationOption = None,
        moderation_labels: ModerationLabelsOption = None,
        moderation_threshold: ModerationThresholdOption = 0.5,
        moderation_log_text: ModerationLogTextOption = False,
    ) -> None:
        """Talk to a chat model. Answers stream; Ctrl-C stops an answer, /quit ends.

        Example: chatgpt-hf chat runs/quickstart --prompt "What does str.join do?"
        """
        from transformers import set_seed

        from ..inference.parameters import restrictions, sampling
        from ..inference.session import ChatSession

        if seed is not None:
            set_seed(seed)
        session = ChatSession.from_pretrained(
            model,
            quantize=quantize,
            system_prompt=system,
            moderation=moderator(moderation, moderation_labels, moderation_threshold, moderation_log_text),
            max_new_tokens=max_new_tokens,
            **sampling(temperature),
        )
        session.set(**restrictions(session.tokenizer, split_commas(bad_words), watermark))
        if prompt is not None:
            answer(session, session.stream(prompt))
            return
        converse(session)


def answer(session: "ChatSession", pieces: Iterator[str]) -> None:
    """Streams one answer to stdout, rendered as Markdown on a terminal; says on stderr where moderation ended it."""
    try:
        if sys.stdout.isatty():
            render(pieces)
        else:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    sys.stdout.write("\n")
    if session.ending.finish_reason == "content_filter":
        sys.stdout.flush()
        Console(stderr=True).print("[dim]The answer was ended by moderation.[/dim]", soft_wrap=True)


def render(pieces: Iterator[str]) -> None:
    """Draws an answer on the terminal while it comes, and leaves the whole of it there."""
    text = ""
    with Live(console=Console(), refresh_per_second=15, vertical_overflow="ellipsis") as live:
        try:
            for piece in pieces:
                text += piece
                live.update(Markdown(hard_breaks(text)))
        finally:
            # While it grows beyond the screen its end would scroll away line by line; in the end all of it stays.
            live.vertical_overflow = "visible"


def hard_breaks(text: str) -> str:
    """Markdown that keeps the line breaks of what a model says: Markdown itself would join such lines."""
    parts = re.split(r"(^```.*?(?:^```|\Z))", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else re.sub(r"(?<!\n)\n(?!\n)", "  \n", part) for part in parts)


def converse(session: "ChatSession") -> None:
    """Reads messages and commands until /quit or the end of the input."""
    from ..errors import ChatGPTError

    interactive = sys.stdin.isatty()
    if interactive:
        # Line editing and history for `input`, where Python was built with it.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    console = Console(stderr=True)
    console.print(f"[dim]{HELP}[/dim]", soft_wrap=True)
    while (message := read_message(interactive)) is not None:
        command, _, rest = message.partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return
            if command == "/regenerate":
                answer(session, session.regenerate())
            elif command in COMMANDS:
                console.print(f"[dim]{COMMANDS[command](session, rest.strip())}[/dim]", soft_wrap=True)
            elif message.startswith("/"):
                console.print(f"[dim]{HELP}[/dim]", soft_wrap=True)
            else:
                sys.stdout.write("gpt> " if interactive and not sys.stdout.isatty() else "")
                answer(session, session.stream(message))
        except (ChatGPTError, OSError) as error:
            console.print(f"error: {error}", markup=False, style="red", soft_wrap=True)


def read_message(interactive: bool) -> str | None:
    """The next message that is not empty: a line, or lines that end with a backslash and the one after; None at the end."""
    lines: list[str] = []
    while True:
        try:
            line = input(("...> " if lines else "you> ") if interactive else "")
        except (EOFError, KeyboardInterrupt):
            return None
        lines.append(line.removesuffix("\\"))
        if line.endswith("\\"):
            continue
        if text := "\n".join(lines).strip():
            return text
        lines = []


def _reset(session: "ChatSession", _: str) -> str:
    session.reset()
    return "The conversation is forgotten."


def _system(session: "ChatSession", prompt: str) -> str:
    session.system_prompt = prompt or None
    session.reset()
    return (
        "A new conversation begins, with this system prompt."
        if prompt
        else "A new conversation begins, without a system prompt."
    )


def _save(session: "ChatSession", file: str) -> str:
    return f"Written to {escape(str(session.save(Path(file or 'conversation.json'))))}"


def _load(session: "ChatSession", file: str) -> str:
    session.load(Path(file or "conversation.json"))
    return f"{len(session.messages)} messages are read; the conversation goes on from there."


def _set(session: "ChatSession", words: str) -> str:
    from ..errors import ConfigError

    name, _, value = words.partition(" ")
    if not value:
        raise ConfigError("/set needs a name and a value, as in /set temperature 0.7")
    parsed = yaml.safe_load(value)
    if name == "temperature" and isinstance(parsed, (int, float)) and not isinstance(parsed, bool):
        from ..inference.parameters import sampling

        session.set(**sampling(parsed))
    else:
        session.set(**{name: parsed})
    return f"{escape(name)} is {escape(value)} from now on."


def _explain(session: "ChatSession", file: str) -> str:
    from ..explain import explain_last_answer

    return f"Written to {escape(str(explain_last_answer(session, Path(file or 'explanation.html')).resolve()))}"


COMMANDS: dict[str, Callable[["ChatSession", str], str]] = {
    "/reset": _reset,
    "/system": _system,
    "/save": _save,
    "/load": _load,
    "/set": _set,
    "/explain": _explain,
}
