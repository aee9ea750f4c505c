"""`chatgpt-hf chat`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ..inference.session import ChatSession

HELP = "/reset forgets the conversation, /save FILE writes it, /help shows this, /quit ends."


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
    ) -> None:
        """Talk to a chat model. Answers stream; Ctrl-C stops an answer, /quit ends.

        Example: chatgpt-hf chat runs/quickstart --prompt "What does str.join do?"
        """
        from transformers import set_seed

        from ..inference.session import ChatSession, sampling

        if seed is not None:
            set_seed(seed)
        session = ChatSession.from_pretrained(
            model, system_prompt=system, max_new_tokens=max_new_tokens, **sampling(temperature)
        )
        if prompt is not None:
            answer(session, prompt)
            return
        converse(session)


def answer(session: "ChatSession", text: str) -> None:
    """Streams one answer to stdout."""
    try:
        for piece in session.stream(text):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    sys.stdout.write("\n")


def converse(session: "ChatSession") -> None:
    """Reads messages and commands until /quit or the end of the input."""
    from ..errors import ChatGPTError

    console = Console(stderr=True)
    console.print(f"[dim]{HELP}[/dim]", soft_wrap=True)
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        command, _, rest = line.partition(" ")
        if not line:
            continue
        if command in ("/quit", "/exit"):
            return
        if command == "/reset":
            session.reset()
            console.print("[dim]The conversation is forgotten.[/dim]")
        elif command == "/save":
            try:
                console.print(
                    f"[dim]Written to {session.save(Path(rest.strip() or 'conversation.json'))}[/dim]", soft_wrap=True
                )
            except (ChatGPTError, OSError) as error:
                console.print(f"error: {error}", markup=False, style="red", soft_wrap=True)
        elif command.startswith("/"):
            console.print(f"[dim]{HELP}[/dim]", soft_wrap=True)
        else:
            sys.stdout.write("gpt> " if sys.stdin.isatty() else "")
            try:
                answer(session, line)
            except ChatGPTError as error:
                console.print(f"error: {error}", markup=False, style="red", soft_wrap=True)
