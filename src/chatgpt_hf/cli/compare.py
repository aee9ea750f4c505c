"""`chatgpt-hf compare`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def compare(
        folders: Annotated[
            list[Path],
            typer.Argument(
                help="Evaluations, or model folders with evaluations in them; the first is what the others are held against."
            ),
        ],
        out: Annotated[Path, typer.Option("--out", help="Folder for compare.md and compare.png.")] = Path(
            "runs/compare"
        ),
    ) -> None:
        """Compare models that `chatgpt-hf evaluate` evaluated on the same data: a table and a plot, with p-values.

        Of model folders, all evaluations are compared that every one of them has.

        Example: chatgpt-hf compare runs/sst2 runs/sst2-scratch --out runs/compare
        """
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Column, Table

        from ..evaluation.compare import PAGE_NAME, PLOT_NAME, compare_folders, write

        comparisons = compare_folders(folders)
        write(comparisons, out)
        console = Console()
        for title, comparison in comparisons.items():
            head, *rows = comparison.rows()
            table = Table(
                *(Column(name, overflow="fold") for name in head), title=escape(title), box=None, header_style="bold"
            )
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
            for note in comparison.notes:
                console.print(escape(note), soft_wrap=True)
        console.print(f"{out / PAGE_NAME}   {out / PLOT_NAME}", soft_wrap=True, markup=False)
