"""`chatgpt-hf export`."""

from pathlib import Path
from typing import Annotated

import typer

from ._choices import EXPORT_FORMATS, GGUF_TYPES, check_choice
from ._paths import check_model
from ._terminal import say
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def export(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
        export_format: Annotated[
            str, typer.Option("--format", help="onnx, openvino, executorch, torch-export or gguf (for llama.cpp).")
        ],
        output_dir: Annotated[
            str | None,
            typer.Option("--output_dir", help="Folder to write; the name of MODEL and the format if not given."),
        ] = None,
        outtype: Annotated[
            str, typer.Option("--outtype", help="Number type of a GGUF file's matrices: f32, f16, bf16 or q8_0.")
        ] = "f32",
        max_cache_len: Annotated[
            int | None,
            typer.Option(
                "--max_cache_len",
                help="Cache size of an ExecuTorch program in tokens; the model's context if not given.",
            ),
        ] = None,
        check: Annotated[
            bool, typer.Option("--check/--no-check", help="Run the export in its own runtime and compare the logits.")
        ] = True,
    ) -> None:
        """Export a model to another runtime.

        Formats: ONNX Runtime, OpenVINO, ExecuTorch, torch.export and llama.cpp. The export is run before it is kept. Needs pip install 'chatgpt-hf[export]'.

        Example: chatgpt-hf export runs/quickstart --format onnx

        Example: chatgpt-hf export runs/quickstart --format gguf --outtype q8_0 --output_dir runs/gguf
        """
        check_choice("--format", export_format, EXPORT_FORMATS)
        check_choice("--outtype", outtype, GGUF_TYPES)
        check_model(model)
        from chatgpt_hf.export.export import export_model

        kind = export_format if outtype == "f32" else f"{export_format}-{outtype}"
        folder = output_dir or f"{Path(model).resolve().name}-{kind}"
        done = export_model(model, folder, export_format, outtype=outtype, max_cache_len=max_cache_len, check=check)
        size = sum(file.stat().st_size for file in done.files)
        say(f"Written to {folder}: {size / 1e6:.1f} MB, most of it in {done.files[0].name}.")
        if done.error is None:
            say("Not checked: the exported graph has not been run.")
        else:
            say(f"Checked in its own runtime: the logits differ from the model's by {done.error:.1e}.")
