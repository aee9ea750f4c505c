"""`chatgpt-hf explain`."""

from typing import Annotated

import typer

from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def explain(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        out: Annotated[str, typer.Option("--out", help="HTML file to write.")],
        text: Annotated[str | None, typer.Option("--text", help="Text to explain token by token.")] = None,
        prompt: Annotated[
            str | None, typer.Option("--prompt", help="Message to a chat model; its answer is explained.")
        ] = None,
        corpus: Annotated[
            str,
            typer.Option(
                "--corpus",
                help="Text to train the tuned lens on, and to measure how much each part of the model matters.",
            ),
        ] = "builtin:python-docs",
    ) -> None:
        """Write an HTML page that shows what happens inside a model.

        Attributions need captum: pip install 'chatgpt-hf[explain]'.

        Example: chatgpt-hf explain runs/quickstart --prompt "What does str.join do?" --out answer.html

        Example: chatgpt-hf explain runs/quickstart --text "Return a copy of the list." --out report.html
        """
        from chatgpt_hf.explain import write_explanation

        def report(sentence: str) -> None:
            typer.echo(sentence, err=True)

        typer.echo(
            f"Written to {write_explanation(model, out, text=text, prompt=prompt, corpus=corpus, report=report)}"
        )
