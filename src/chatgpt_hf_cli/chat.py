"""`chatgpt-hf chat`."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._abstain import AbstainOption, AbstainTextOption, wanted
from ._choices import LARGEST_SEED
from ._compile import CompileOption
from ._moderation import (
    ModerationLabelsOption,
    ModerationLogTextOption,
    ModerationOption,
    ModerationThresholdOption,
    check_moderation,
    moderator,
    split_commas,
)
from ._paths import check_model
from ._quantize import QuantizeOption
from ._terminal import Visible, say_aside, visible, write
from .errors import UsageMistake
from .help import Command

if TYPE_CHECKING:
    from chatgpt_hf.inference.session import ChatSession

HELP = (
    "/reset starts a new conversation, /system PROMPT starts one with another system prompt, /save FILE writes the conversation, "
    "/load FILE continues a saved one, /regenerate replaces the last answer, /set temperature 0.7 sets any generation parameter, "
    "/explain FILE writes a page about the last answer, /help shows this, /quit ends. End a line with \\ to continue it; Ctrl-C "
    "stops an answer."
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def chat(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a chat model.")],
        prompt: Annotated[
            str | None, typer.Option("--prompt", help="Send one message, print the answer and exit.")
        ] = None,
        system: Annotated[
            str | None,
            typer.Option("--system", help="System prompt; stays when older messages no longer fit the context."),
        ] = None,
        max_new_tokens: Annotated[
            int | None,
            typer.Option(
                "--max_new_tokens",
                help="Longest answer in tokens; if not given, the model's own setting, or as much as fits its context.",
            ),
        ] = None,
        temperature: Annotated[
            float | None,
            typer.Option(
                "--temperature", help="0 always takes the most likely token; the model's own setting if not given."
            ),
        ] = None,
        seed: Annotated[
            int | None,
            typer.Option("--seed", min=0, max=LARGEST_SEED, help="Random seed: the same seed gives the same answers."),
        ] = None,
        quantize: QuantizeOption = None,
        compile: CompileOption = False,
        abstain: AbstainOption = None,
        abstain_text: AbstainTextOption = None,
        bad_words: Annotated[
            list[str] | None,
            typer.Option("--bad_words", help="Words that the model must not generate, separated by commas."),
        ] = None,
        watermark: Annotated[
            bool,
            typer.Option("--watermark", help="Mark the text so that transformers' WatermarkDetector recognises it."),
        ] = False,
        moderation: ModerationOption = None,
        moderation_labels: ModerationLabelsOption = None,
        moderation_threshold: ModerationThresholdOption = 0.5,
        moderation_log_text: ModerationLogTextOption = False,
    ) -> None:
        """Chat with a model in the terminal.

        Answers stream, except with --abstain, which judges each before it is shown. Ctrl-C stops an answer, /help lists the commands, /quit ends.

        Example: chatgpt-hf chat runs/quickstart

        Example: chatgpt-hf chat runs/quickstart --prompt "What does str.join do?"
        """
        if prompt is not None and not prompt.strip():
            raise UsageMistake("--prompt is empty: give the message that the model should answer.")
        check_moderation(moderation, moderation_labels)
        check_model(model)
        # transformers' `set_seed` brings its trainer, which takes a second.
        from accelerate.utils import set_seed

        from chatgpt_hf.inference.parameters import restrictions, sampling
        from chatgpt_hf.inference.session import ChatSession

        if seed is not None:
            set_seed(seed)
        session = ChatSession.from_pretrained(
            model,
            quantize=quantize,
            compile=compile,
            report=say_aside,
            abstain=wanted(abstain),
            abstain_text=abstain_text,
            system_prompt=system,
            moderation=moderator(moderation, moderation_labels, moderation_threshold, moderation_log_text),
            max_new_tokens=max_new_tokens,
            **sampling(temperature),
        )
        session.set(**restrictions(session.tokenizer, split_commas(bad_words), watermark))
        if prompt is not None:
            answer(session, session.stream(prompt), longer="--max_new_tokens")
            return
        converse(session)


def answer(session: "ChatSession", pieces: Iterator[str], longer: str = "/set max_new_tokens") -> None:
    """Streams one answer to stdout, as Markdown on a terminal; says on stderr if it is not whole.

    Args:
        session: The conversation.
        pieces: The answer.
        longer: How to ask for a longer answer, without the number.
    """
    try:
        if sys.stdout.isatty():
            render(pieces)
        else:
            for piece in pieces:
                write(piece)
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    sys.stdout.write("\n")
    if notice := why_not_whole(session, longer):
        from rich.console import Console

        sys.stdout.flush()
        Console(stderr=True).print(notice, style="dim", markup=False, highlight=False, soft_wrap=True)


def why_not_whole(session: "ChatSession", longer: str) -> str | None:
    """One sentence about why the last answer is not whole, or not the model's; None if the model or the reader ended it."""
    if session.ending.abstained and session.abstention is not None:
        return (
            f"The model abstained: its answer has a mean log-probability of {session.ending.confidence:.2f}, below "
            f"{session.abstention.threshold:.2f}."
        )
    if session.ending.finish_reason == "content_filter":
        return "Moderation ended the answer."
    length = len(session.ending.answer_ids)
    if session.cut_by == "max_new_tokens":
        return f"The answer was cut after {length:,} tokens: {longer} {2 * length} allows longer ones."
    if session.cut_by == "context":
        total = len(session.ending.prompt_ids) + length
        return f"The answer was cut: the conversation fills the model's context of {total:,} tokens."
    return None


def render(pieces: Iterator[str]) -> None:
    """Draws an answer on the terminal while it streams, and leaves all of it there."""
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown

    text = ""
    with Live(console=Console(), refresh_per_second=15, vertical_overflow="ellipsis") as live:
        try:
            for piece in pieces:
                text += piece
                # Links show where they lead.
                live.update(Visible(Markdown(hard_breaks(visible(text)), hyperlinks=False)))
        finally:
            # While it streams, rich cuts what does not fit the screen; at the end all of it is shown.
            live.vertical_overflow = "visible"


def hard_breaks(text: str) -> str:
    """Keeps the line breaks of an answer, which Markdown would join."""
    parts = re.split(r"(^```.*?(?:^```|\Z))", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else re.sub(r"(?<!\n)\n(?!\n)", "  \n", part) for part in parts)


def converse(session: "ChatSession") -> None:
    """Reads messages and commands until /quit or the end of the input."""
    from rich.console import Console

    from chatgpt_hf.errors import ChatGPTError

    interactive = sys.stdin.isatty()
    if interactive:
        # Gives `input` line editing and history, if Python was built with it.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    console = Console(stderr=True)
    console.print(HELP, style="dim", markup=False, soft_wrap=True)
    while (message := read_message(interactive)) is not None:
        command, _, rest = message.partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return
            if command == "/regenerate":
                answer(session, session.regenerate())
            elif command in COMMANDS:
                done = COMMANDS[command](session, rest.strip())
                console.print(visible(done), style="dim", markup=False, soft_wrap=True)
            elif message.startswith("/"):
                console.print(HELP, style="dim", markup=False, soft_wrap=True)
            else:
                sys.stdout.write("gpt> " if interactive and not sys.stdout.isatty() else "")
                answer(session, session.stream(message))
        except (ChatGPTError, UsageMistake, OSError) as error:
            console.print(visible(f"error: {error}"), markup=False, style="red", soft_wrap=True)


def read_message(interactive: bool) -> str | None:
    """The next message that is not empty: one line, or several if all but the last end with a backslash. None at the end."""
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
    return "New conversation."


def _system(session: "ChatSession", prompt: str) -> str:
    session.system_prompt = prompt or None
    session.reset()
    return "New conversation with this system prompt." if prompt else "New conversation without a system prompt."


def _save(session: "ChatSession", file: str) -> str:
    return f"Written to {session.save(Path(file or 'conversation.json'))}"


def _load(session: "ChatSession", file: str) -> str:
    session.load(Path(file or "conversation.json"))
    return f"{len(session.messages)} messages loaded; the conversation continues from there."


def _set(session: "ChatSession", words: str) -> str:
    from chatgpt_hf.parsing import parse_yaml

    name, _, value = words.partition(" ")
    if not value:
        raise UsageMistake("/set needs a name and a value, as in /set temperature 0.7")
    try:
        parsed = parse_yaml(value)
    except ValueError as error:
        raise UsageMistake(f"{value} is no value for {name}: {error}") from error
    if name == "temperature" and isinstance(parsed, (int, float)) and not isinstance(parsed, bool):
        from chatgpt_hf.inference.parameters import sampling

        session.set(**sampling(parsed))
    else:
        session.set(**{name: parsed})
    return f"{name} is now {value}."


def _explain(session: "ChatSession", file: str) -> str:
    from chatgpt_hf.explain import explain_last_answer

    return f"Written to {explain_last_answer(session, Path(file or 'explanation.html')).resolve()}"


COMMANDS: dict[str, Callable[["ChatSession", str], str]] = {
    "/reset": _reset,
    "/system": _system,
    "/save": _save,
    "/load": _load,
    "/set": _set,
    "/explain": _explain,
}
