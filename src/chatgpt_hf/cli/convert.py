"""`chatgpt-hf convert`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def convert(
        source: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
        output_dir: Annotated[str, typer.Argument(help="Folder to write.")],
        to: Annotated[str, typer.Option("--to", help="chatgpt, or gpt2.")] = "chatgpt",
    ) -> None:
        """Convert a GPT-2 checkpoint to ours, or ours to GPT-2, with its tokenizer; checks the logits before it writes.

        Example: chatgpt-hf convert openai-community/gpt2 runs/gpt2, and back: chatgpt-hf convert runs/gpt2 out --to gpt2
        """
        from ..conversion.convert import convert_checkpoint

        difference = convert_checkpoint(source, output_dir, to)
        typer.echo(f"Written to {output_dir}; largest difference between the logits: {difference:.1e}")
