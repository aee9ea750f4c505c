"""`chatgpt-hf push`."""

from pathlib import Path
from typing import Annotated

import typer

from ._terminal import say
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def push(
        folder: Annotated[Path, typer.Argument(help="Model folder.")],
        repo_id: Annotated[str, typer.Argument(help="NAMESPACE/NAME on the Hub; created if it does not exist.")],
        private: Annotated[
            bool | None,
            typer.Option(
                "--private/--public",
                help="Visibility of a new repository; your account's default if not given.",
                show_default=False,
            ),
        ] = None,
        revision: Annotated[
            str | None, typer.Option("--revision", help="Branch, created if it does not exist; main if not given.")
        ] = None,
        checkpoints: Annotated[
            bool, typer.Option("--checkpoints", help="Also upload each checkpoint-N of the run, as branch step-N.")
        ] = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace a different model; the history keeps the old files.")
        ] = False,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", "--dry_run", help="Show the files and the card without contacting the Hub."),
        ] = False,
        message: Annotated[str | None, typer.Option("--message", help="Commit message.")] = None,
        include: Annotated[
            list[str] | None,
            typer.Option("--include", help="Pattern of additional files, such as '*.png'. Repeatable."),
        ] = None,
        exclude: Annotated[
            list[str] | None,
            typer.Option("--exclude", help="Pattern of files to leave out, such as 'evaluation/*'. Repeatable."),
        ] = None,
    ) -> None:
        """Upload a model folder to the Hugging Face Hub, with its model card.

        Uploads everything in one commit, and resumes if interrupted. Uses the token of hf auth login, or HF_TOKEN. Training state, such as the optimizer's, is never uploaded.

        Example: chatgpt-hf push runs/quickstart me/my-model --dry-run

        Example: chatgpt-hf push runs/quickstart me/my-model --private
        """
        from chatgpt_hf.hub.push import push as send

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
            say(f"{size:>15,}  {name}")
        say(f"{sum(pushed.files.values()):>15,}  bytes in {len(pushed.files)} files")
        if pushed.left_out:
            say(f"Not uploaded: {', '.join(pushed.left_out)}")
        if dry_run:
            branches = [pushed.revision, *(f"step-{step}" for step in pushed.steps)]
            say(f"Would be uploaded to {pushed.repo_id}, {', '.join(branches)}, with this card:\n\n{pushed.card}")
            return
        for branch, commit in pushed.commits.items():
            say(f"{pushed.url}/tree/{branch}  commit {commit[:12]}")
        if "\nlicense:" not in pushed.card:
            say(
                f"The card names no license. Add one and push again: chatgpt-hf card {folder} --license apache-2.0 --write"
            )
