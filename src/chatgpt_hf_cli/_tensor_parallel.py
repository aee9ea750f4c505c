"""The option to share a model among several processes."""

from collections.abc import Callable
from typing import Annotated

import typer

from .errors import UsageMistake

TpPlanOption = Annotated[
    str | None,
    typer.Option(
        "--tp_plan",
        help="Share the model among the processes that torchrun started: auto, or mlp, which leaves attention whole where its heads do not divide.",
    ),
]


def run_among(tp_plan: str | None, work: Callable[[], None], **others: object) -> None:
    """Runs a command's work, with its model shared if there is a plan.

    Args:
        **others: Options that cannot be used with a plan, by name; None and False count as not given.
    """
    if tp_plan is None:
        work()
        return
    for name, value in others.items():
        if value:
            raise UsageMistake(f"--{name} does not work with --tp_plan: leave one of them out.")
    from chatgpt_hf.inference.tensor_parallel import run_shared

    run_shared(tp_plan, work)
