"""The option to compile a model's step."""

from typing import Annotated

import typer

CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the model's step first: takes 10 to 60 seconds, and pays for long texts or many answers.",
    ),
]
