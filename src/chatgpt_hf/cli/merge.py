"""`chatgpt-hf merge`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def merge(
        source: Annotated[str, typer.Argument(help="Folder of an adapter.")],
        output_dir: Annotated[str, typer.Argument(help="Folder to write.")],
    ) -> None:
        """Make one ordinary model of an adapter and its base; checks the logits before it writes.

        Example: chatgpt-hf merge runs/sft-lora runs/merged
        """
        from ..conversion.merge import merge_adapter

        difference = merge_adapter(source, output_dir)
        typer.echo(f"Written to {output_dir}; largest difference between the logits: {difference:.1e}")
