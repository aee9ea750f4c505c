"""`chatgpt-hf pull`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def pull(
        repo_id: Annotated[str, typer.Argument(help="NAMESPACE/NAME of a model on the Hub.")],
        folder: Annotated[Path, typer.Argument(help="New folder for it.")],
        revision: Annotated[
            str | None, typer.Option("--revision", help="Branch, tag or commit [default: main].")
        ] = None,
    ) -> None:
        """Bring a model from the Hugging Face Hub into a folder; a download that broke off goes on.

        Example: chatgpt-hf pull me/my-model runs/my-model --revision step-1000
        """
        from ..hub.pull import pull as bring

        pulled = bring(repo_id, folder, revision=revision)
        for name, size in pulled.files.items():
            typer.echo(f"{size:>15,}  {name}")
        if pulled.left_out:
            typer.echo(f"Left there: {', '.join(pulled.left_out)}")
        typer.echo(f"Written to {folder}; commit {pulled.commit[:12]}")
