"""`chatgpt-hf export`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def export(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
        export_format: Annotated[
            str, typer.Option("--format", help="onnx, openvino, executorch, torch-export or gguf (llama.cpp).")
        ],
        output_dir: Annotated[
            str | None, typer.Option("--output_dir", help="Folder to write. Default: MODEL's name and the format.")
        ] = None,
        outtype: Annotated[
            str, typer.Option("--outtype", help="Of a GGUF file's matrices: f32, f16, bf16 or q8_0.")
        ] = "f32",
        max_cache_len: Annotated[
            int | None,
            typer.Option(
                "--max_cache_len", help="Places in an ExecuTorch program's cache. Default: the model's context."
            ),
        ] = None,
        check: Annotated[
            bool, typer.Option(help="Run what was made by its own runtime, and compare the logits.")
        ] = True,
    ) -> None:
        """Write a model for another runtime: ONNX Runtime, OpenVINO, ExecuTorch, torch.export, llama.cpp.

        What was made is run before it is kept. Needs the packages of pip install 'chatgpt-hf\\[export]'.

        Example: chatgpt-hf export runs/quickstart --format onnx --output_dir runs/quickstart-onnx
        """
        from ..export.export import export_model

        kind = export_format if outtype == "f32" else f"{export_format}-{outtype}"
        folder = output_dir or f"{Path(model).resolve().name}-{kind}"
        done = export_model(model, folder, export_format, outtype=outtype, max_cache_len=max_cache_len, check=check)
        size = sum(file.stat().st_size for file in done.files)
        typer.echo(f"Written to {folder}: {size / 1e6:.1f} MB, most of it in {done.files[0].name}.")
        if done.error is None:
            typer.echo("Not checked: nobody ran it yet.")
        else:
            typer.echo(f"Run by its own runtime: its logits differ by {done.error:.1e} of the model's.")
