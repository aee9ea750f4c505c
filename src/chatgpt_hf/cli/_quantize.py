"""The option of every command that answers."""

from typing import Annotated

import typer

QUANTIZE_HELP = "int8 (weights and activations in 8 bits, the fastest on a CPU), int8-weight-only, or int4 (weights in groups of 32)."
QuantizeOption = Annotated[
    str | None, typer.Option("--quantize", help=f"Quantize the weights while they are loaded: {QUANTIZE_HELP}")
]
