"""`chatgpt-hf merge`."""

from typing import Annotated

import typer

from ._choices import DTYPES, check_choice
from ._terminal import say
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def merge(
        source: Annotated[str, typer.Argument(help="Folder of a LoRA adapter.")],
        output_dir: Annotated[str, typer.Argument(help="Folder to write: new, or empty.")],
        dtype: Annotated[
            str | None,
            typer.Option(
                "--dtype", help=f"Precision of the merged weights: {', '.join(DTYPES)}; the base model's if not given."
            ),
        ] = None,
    ) -> None:
        """Merge a LoRA adapter into its base model.

        Writes an ordinary model folder. Merges in float32, compares the logits before and after, and writes only if they agree.

        Example: chatgpt-hf merge runs/sft-lora runs/merged
        """
        check_choice("--dtype", dtype, DTYPES)
        import torch

        from chatgpt_hf.conversion.merge import merge_adapter

        difference = merge_adapter(source, output_dir, getattr(torch, dtype) if dtype else None)
        say(f"Written to {output_dir}; largest difference of the logits: {difference:.1e}")
