"""`chatgpt-hf card`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def card(
        folder: Annotated[Path, typer.Argument(help="Folder of a model.")],
        repo_id: Annotated[
            str | None, typer.Option("--repo_id", help="Where readers will find it [default: the folder's name].")
        ] = None,
        license: Annotated[str | None, typer.Option("--license", help="Such as apache-2.0.")] = None,
        language: Annotated[list[str] | None, typer.Option("--language", help="Code, as en; may be repeated.")] = None,
        dataset: Annotated[
            list[str] | None,
            typer.Option("--dataset", help="Id on the Hub of what it was trained on; may be repeated."),
        ] = None,
        base_model: Annotated[
            list[str] | None, typer.Option("--base_model", help="Id on the Hub of what it was made from.")
        ] = None,
        write: Annotated[bool, typer.Option("--write", help="Put it into the folder's README.md.")] = False,
    ) -> None:
        """Show a model's card, checked for what the Hub refuses; with --write, write it.

        A text that was changed by hand stays as it is but for the metadata given here. Delete README.md to have all of it made
        anew.

        Example: chatgpt-hf card runs/quickstart --license apache-2.0 --language en --write
        """
        from ..hub.files import check_model_folder
        from ..reporting.card import CARD_NAME, make_card, write_card

        check_model_folder(folder)
        given = {
            "license": license,
            "language": _one_or_more(language),
            "datasets": dataset or None,
            "base_model": _one_or_more(base_model),
        }
        text = make_card(folder, repo_id or folder.resolve().name, given)
        typer.echo(text)
        if write:
            write_card(folder, text)
            typer.echo(f"Written to {folder / CARD_NAME}", err=True)


def _one_or_more(values: list[str] | None) -> str | list[str] | None:
    return values[0] if values and len(values) == 1 else values or None
