"""`chatgpt-hf compare`."""

from pathlib import Path
from typing import Annotated

import typer

from ._terminal import visible
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def compare(
        folders: Annotated[
            list[Path],
            typer.Argument(help="Model folders, or evaluation folders; the first is the baseline."),
        ],
        out: Annotated[Path, typer.Option("--out", help="Folder for compare.md and compare.png.")] = Path(
            "runs/compare"
        ),
    ) -> None:
        """Compare models that were evaluated on the same data.

        Prints a table with p-values and writes it with a plot. Given model folders, compares every evaluation that all of them have. Make evaluations with chatgpt-hf evaluate.

        Example: chatgpt-hf compare runs/sst2 runs/sst2-scratch --out runs/compare
        """
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        from chatgpt_hf.evaluation.compare import PAGE_NAME, PLOT_NAME, compare_folders, write
        from chatgpt_hf.files import check_is_folder

        check_is_folder(out)
        comparisons = compare_folders(folders)
        write(comparisons, out)
        console = Console()
        for title, comparison in comparisons.items():
            head, *rows = comparison.rows()
            table = Table(
                *(Column(Text(visible(name)), overflow="fold") for name in head),
                title=Text(visible(title)),
                box=None,
                header_style="bold",
            )
            for row in rows:
                table.add_row(*(Text(visible(cell)) for cell in row))
            console.print(table)
            for note in comparison.notes:
                console.print(visible(note), soft_wrap=True, markup=False)
        console.print(visible(f"{out / PAGE_NAME}   {out / PLOT_NAME}"), soft_wrap=True, markup=False)
