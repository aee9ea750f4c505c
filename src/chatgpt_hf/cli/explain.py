"""`chatgpt-hf explain`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def explain(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        out: Annotated[str, typer.Option("--out", help="File for the page.")],
        text: Annotated[str | None, typer.Option("--text", help="A text, to be explained token by token.")] = None,
        prompt: Annotated[
            str | None, typer.Option("--prompt", help="A message to a chat model, whose answer is explained.")
        ] = None,
        corpus: Annotated[
            str, typer.Option("--corpus", help="Texts for the tuned lens, and to measure what each part is good for.")
        ] = "builtin:python-docs",
    ) -> None:
        """Write a page that shows what goes on inside a model: one HTML file, for a screen, a phone or paper.

        Needs captum for the attributions: pip install 'chatgpt-hf\\[explain]'.

        Example: chatgpt-hf explain runs/quickstart --text "Return a copy of the list." --out report.html
        """
        from ..explain import write_explanation

        def report(sentence: str) -> None:
            typer.echo(sentence, err=True)

        typer.echo(
            f"Written to {write_explanation(model, out, text=text, prompt=prompt, corpus=corpus, report=report)}"
        )
