"""`chatgpt-hf card`."""

from pathlib import Path
from typing import Annotated

import typer

from ._terminal import say, say_aside
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def card(
        folder: Annotated[Path, typer.Argument(help="Model folder.")],
        repo_id: Annotated[
            str | None,
            typer.Option(
                "--repo_id", help="Id on the Hub that the examples in the card use; the folder's name if not given."
            ),
        ] = None,
        license: Annotated[str | None, typer.Option("--license", help="License, such as apache-2.0.")] = None,
        language: Annotated[
            list[str] | None, typer.Option("--language", help="Language code, such as en. Repeatable.")
        ] = None,
        dataset: Annotated[
            list[str] | None,
            typer.Option("--dataset", help="Hub id of the training data. Repeatable."),
        ] = None,
        base_model: Annotated[
            list[str] | None, typer.Option("--base_model", help="Hub id of the model it was made from. Repeatable.")
        ] = None,
        write: Annotated[bool, typer.Option("--write", help="Write the card to README.md in the folder.")] = False,
    ) -> None:
        """Show the model card, and check its metadata as the Hub does.

        With --write, writes it to README.md. Text that you changed by hand stays; only the metadata given here is updated. Delete README.md to start over.

        Example: chatgpt-hf card runs/quickstart

        Example: chatgpt-hf card runs/quickstart --license apache-2.0 --language en --write
        """
        from chatgpt_hf.hub.files import check_model_folder
        from chatgpt_hf.reporting.card import CARD_NAME, make_card, write_card

        check_model_folder(folder)
        given = {
            "license": license,
            "language": _one_or_more(language),
            "datasets": dataset or None,
            "base_model": _one_or_more(base_model),
        }
        text = make_card(folder, repo_id or folder.resolve().name, given)
        say(text)
        if write:
            write_card(folder, text)
            say_aside(f"Written to {folder / CARD_NAME}")


def _one_or_more(values: list[str] | None) -> str | list[str] | None:
    return values[0] if values and len(values) == 1 else values or None
