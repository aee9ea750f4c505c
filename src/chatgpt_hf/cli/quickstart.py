"""`chatgpt-hf quickstart`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def quickstart(
        output_dir: Annotated[
            str, typer.Option("--output_dir", help="Becomes the chat model's folder.")
        ] = "runs/quickstart",
    ) -> None:
        """A ChatGPT made from nothing in about ten minutes on a laptop, then a conversation with it.

        Downloads nothing: it learns from the documentation that every Python carries. Run again, it goes on where it
        stopped.
        """
        import logging

        from ..quickstart import quickstart as run

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        run(output_dir, say=typer.echo)
