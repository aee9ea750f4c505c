"""The options of abstention, shared by all commands that answer.

`--abstain` takes a value or none, and the value is negative, which typer's parser would take for another option.
"""

import math
import re
from typing import Annotated

import typer

from .errors import UsageMistake

# What `--abstain` without a value stands for.
CALIBRATED = "calibrated"
_NUMBER = re.compile(r"[+-]?(\d|\.\d|nan$|inf)", re.IGNORECASE)


def spell_out(words: list[str]) -> list[str]:
    """Joins `--abstain` and the number after it, if there is one, with an equals sign, for typer's parser."""
    spelled: list[str] = []
    for word in words:
        if spelled and spelled[-1] == f"--abstain={CALIBRATED}" and _NUMBER.match(word):
            spelled[-1] = f"--abstain={word}"
        else:
            spelled.append(f"--abstain={CALIBRATED}" if word == "--abstain" else word)
    return spelled


def _known(value: str | None) -> str | None:
    if value not in (None, CALIBRATED):
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not number <= 0:
            raise UsageMistake(
                f"--abstain {value} is no threshold: give a number of at most 0, such as -0.5, or no value for the model's own "
                "calibration."
            )
    return value


AbstainOption = Annotated[
    str | None,
    typer.Option(
        "--abstain",
        callback=_known,
        help="Say --abstain_text instead of an answer that the model is not sure of. The threshold is that of chatgpt-hf calibrate, or the number given: a mean log-probability per token, such as -0.5. Each greedy answer is judged before anything is shown.",
    ),
]
AbstainTextOption = Annotated[
    str | None,
    typer.Option("--abstain_text", help="What the model says when it abstains; the calibration's text if not given."),
]


def wanted(value: str | None) -> float | bool | None:
    """The option's value for the library."""
    return None if value is None else value == CALIBRATED or float(value)
