"""`chatgpt-hf quantize`."""

from pathlib import Path
from typing import Annotated

import typer

from ._choices import QUANTIZATIONS, check_choice
from ._paths import check_model
from ._quantize import QUANTIZE_HELP
from ._terminal import say
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def quantize(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        output_dir: Annotated[str, typer.Argument(help="Folder to write: new, or empty.")],
        to: Annotated[str, typer.Option("--to", help=QUANTIZE_HELP)] = "int8",
        corpus: Annotated[
            str | None,
            typer.Option(
                "--corpus",
                help="Text like that the model will see (a file, folder, glob, Hub id or builtin:python-docs): its second half measures what quantizing costs, its first half chooses int4's weights.",
            ),
        ] = None,
    ) -> None:
        """Write a copy of a model with weights of fewer bits, and say what that costs on your text.

        from_pretrained loads the folder wherever torchao is installed. Needs pip install 'chatgpt-hf[quantize]'. docs/performance.md compares speed and accuracy.

        Example: chatgpt-hf quantize runs/quickstart runs/quickstart-int8 --to int8 --corpus held-out.txt
        """
        check_choice("--to", to, QUANTIZATIONS)
        check_model(model)
        from chatgpt_hf.inference.quantization import quantize_folder

        cost = quantize_folder(model, output_dir, to, corpus)
        size = sum(file.stat().st_size for file in Path(output_dir).glob("*.safetensors"))
        say(f"Written to {output_dir}: {size / 1e6:.1f} MB of weights.")
        if cost is None:
            say("What this costs is not measured: --corpus FILE measures it on your text.")
        else:
            say(f"What this costs: {cost}")
