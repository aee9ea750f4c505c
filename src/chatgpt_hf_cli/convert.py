"""`chatgpt-hf convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ._choices import CONVERSION_TARGETS, check_choice
from ._paths import check_model
from ._terminal import say
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def convert(
        source: Annotated[
            str,
            typer.Argument(
                help="Folder or Hub id of a model; or a checkpoint file: ckpt.pt of nanoGPT or lit_model.pth of litgpt."
            ),
        ],
        output_dir: Annotated[str, typer.Argument(help="Folder to write: new, or empty.")],
        to: Annotated[
            str,
            typer.Option(
                "--to", help="Target: chatgpt, gpt2, llama, mistral, qwen2, qwen3, smollm3, nanogpt or litgpt."
            ),
        ] = "chatgpt",
        tokenizer: Annotated[
            str | None,
            typer.Option(
                "--tokenizer",
                help="Folder or Hub id of a tokenizer, or a meta.json of characters; the source's own if not given.",
            ),
        ] = None,
    ) -> None:
        """Convert a checkpoint to this model, or this model to another family.

        Converts the tokenizer too. Compares the logits of source and result, and writes only if they agree.

        Example: chatgpt-hf convert openai-community/gpt2 runs/gpt2

        Example: chatgpt-hf convert runs/gpt2 runs/gpt2-back --to gpt2
        """
        check_choice("--to", to, CONVERSION_TARGETS)
        check_model(source)
        from chatgpt_hf.conversion.convert import convert_checkpoint

        difference = convert_checkpoint(source, output_dir, to, tokenizer=tokenizer)
        say(f"Written to {output_dir}; largest difference of the logits: {difference:.1e}")
        if not (Path(output_dir) / "tokenizer_config.json").is_file():
            say("The source has no tokenizer, so the folder has none either; give one with --tokenizer.")
