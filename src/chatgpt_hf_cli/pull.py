"""`chatgpt-hf pull`."""

from pathlib import Path
from typing import Annotated

import typer

from ._terminal import say
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def pull(
        repo_id: Annotated[str, typer.Argument(help="NAMESPACE/NAME of a model on the Hub.")],
        folder: Annotated[Path, typer.Argument(help="Folder to write: new, or a partial download.")],
        revision: Annotated[
            str | None, typer.Option("--revision", help="Branch, tag or commit; main if not given.")
        ] = None,
    ) -> None:
        """Download a model from the Hugging Face Hub into a folder.

        Resumes an interrupted download.

        Example: chatgpt-hf pull me/my-model runs/my-model

        Example: chatgpt-hf pull me/my-model runs/my-model --revision step-1000
        """
        from chatgpt_hf.hub.pull import pull as bring

        pulled = bring(repo_id, folder, revision=revision)
        for name, size in pulled.files.items():
            say(f"{size:>15,}  {name}")
        if pulled.left_out:
            say(f"Not downloaded: {', '.join(pulled.left_out)}")
        say(f"Written to {folder}; commit {pulled.commit[:12]}")
