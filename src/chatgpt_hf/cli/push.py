"""`chatgpt-hf push`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def push(
        folder: Annotated[Path, typer.Argument(help="Folder of a model.")],
        repo_id: Annotated[str, typer.Argument(help="NAMESPACE/NAME on the Hub; made where there is none.")],
        private: Annotated[
            bool | None,
            typer.Option(
                "--private/--public",
                help="Whether a new repository is [default: as your settings say].",
                show_default=False,
            ),
        ] = None,
        revision: Annotated[
            str | None, typer.Option("--revision", help="Branch, made where there is none [default: main].")
        ] = None,
        checkpoints: Annotated[
            bool, typer.Option("--checkpoints", help="Send each checkpoint-N of the run too, as the branch step-N.")
        ] = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace another model; the history keeps what was there.")
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", "--dry_run", help="Show files and card, and contact nothing.")
        ] = False,
        message: Annotated[str | None, typer.Option("--message", help="Of the commit.")] = None,
        include: Annotated[
            list[str] | None, typer.Option("--include", help="Pattern of more files to send, as '*.png'.")
        ] = None,
        exclude: Annotated[
            list[str] | None, typer.Option("--exclude", help="Pattern of files to leave out, as 'evaluation/*'.")
        ] = None,
    ) -> None:
        """Send a model folder to the Hugging Face Hub as one commit, with its model card; resumable.

        The token is that of `hf auth login`, or HF_TOKEN. States of a training, such as the optimizer's, stay here.

        Example: chatgpt-hf push runs/quickstart me/my-model --private
        """
        from ..hub.push import push as send

        pushed = send(
            folder,
            repo_id,
            private=private,
            revision=revision,
            dry_run=dry_run,
            checkpoints=checkpoints,
            overwrite=overwrite,
            message=message,
            include=include or [],
            exclude=exclude or [],
        )
        for name, size in pushed.files.items():
            typer.echo(f"{size:>15,}  {name}")
        typer.echo(f"{sum(pushed.files.values()):>15,}  bytes in {len(pushed.files)} files")
        if pushed.left_out:
            typer.echo(f"Not sent: {', '.join(pushed.left_out)}")
        if dry_run:
            branches = [pushed.revision, *(f"step-{step}" for step in pushed.steps)]
            typer.echo(f"They would go to {pushed.repo_id}, {', '.join(branches)}, with this card:\n\n{pushed.card}")
            return
        for branch, commit in pushed.commits.items():
            typer.echo(f"{pushed.url}/tree/{branch}  commit {commit[:12]}")
        if "\nlicense:" not in pushed.card:
            typer.echo(
                f"The card names no licence: chatgpt-hf card {folder} --license apache-2.0 --write, and push again."
            )
