"""The quantization option, shared by all commands that load a model to answer."""

from typing import Annotated

import typer

from ._choices import QUANTIZATIONS, check_choice

QUANTIZE_HELP = "int8 (weights and activations in 8 bits, fastest on a CPU), int8-weight-only, or int4 (weights in groups of 32, the head in 8 bits)."


def _known(value: str | None) -> str | None:
    check_choice("--quantize", value, QUANTIZATIONS)
    return value


QuantizeOption = Annotated[
    str | None,
    typer.Option("--quantize", callback=_known, help=f"Quantize the model while loading: {QUANTIZE_HELP}"),
]
