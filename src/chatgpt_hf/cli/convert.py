"""`chatgpt-hf convert`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def convert(
        source: Annotated[
            str, typer.Argument(help="Folder or Hub id of a model; or nanoGPT's ckpt.pt, litgpt's lit_model.pth.")
        ],
        output_dir: Annotated[str, typer.Argument(help="Folder to write.")],
        to: Annotated[
            str,
            typer.Option("--to", help="chatgpt, gpt2, llama, mistral, qwen2, qwen3, smollm3, nanogpt or litgpt."),
        ] = "chatgpt",
        tokenizer: Annotated[
            str | None,
            typer.Option(
                help="Tokenizer's folder or Hub id, or a meta.json of characters, in place of the source's own."
            ),
        ] = None,
    ) -> None:
        """Convert a checkpoint of another family to ours, or ours to another, with its tokenizer; checks the logits first.

        Example: chatgpt-hf convert openai-community/gpt2 runs/gpt2, and back: chatgpt-hf convert runs/gpt2 out --to gpt2
        """
        from ..conversion.convert import convert_checkpoint

        difference = convert_checkpoint(source, output_dir, to, tokenizer=tokenizer)
        typer.echo(f"Written to {output_dir}; largest difference between the logits: {difference:.1e}")
        if not (Path(output_dir) / "tokenizer_config.json").is_file():
            typer.echo("No tokenizer was found beside the weights, so there is none in it; --tokenizer names one.")
