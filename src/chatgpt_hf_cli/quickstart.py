"""`chatgpt-hf quickstart`."""

from typing import Annotated

import typer

from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def quickstart(
        output_dir: Annotated[str, typer.Option("--output_dir", help="Folder of the chat model.")] = "runs/quickstart",
    ) -> None:
        """Train a small chat model from scratch in about ten minutes on a laptop.

        Needs no download: the training text is the documentation that comes with Python. The last step finds how sure the model has to be of an answer, for --abstain. Finished stages are kept; run it again to resume after an interruption.

        Example: chatgpt-hf quickstart

        Example: chatgpt-hf quickstart --output_dir runs/first
        """
        import logging

        from chatgpt_hf.quickstart import quickstart as run

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        run(output_dir, say=typer.echo)
