"""The reward of programs that pass a test, in the sandbox of the evaluation of code."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import DataError
from ..evaluation.code import Problem, judge
from .base import Reward, Text, answer_text

_BLOCK = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)
_PASSES = "def check(candidate):\n    candidate()\n"


def python(*, timeout: float = 5.0, memory_mb: int = 512, num_workers: int = 1) -> Reward:
    """1 if the function that an answer defines passes the test of its row; see `chatgpt_hf.evaluation.sandbox`.

    The program is the first block of code in an answer, or the whole answer. Columns: `entry_point`, the function's name, and
    `test`, either the source of a function `check(candidate)` that raises an error if the function is wrong, as in HumanEval, or
    lines that do so and call the function by its name, as in MBPP (a text or a list of texts).

    Args:
        timeout: Limit in seconds; for `memory_mb` too see `run_program`.
        num_workers: How many programs run at a time; with more than there are cores, right programs may time out.

    Raises:
        ConfigError: When it is checked or called, if this system cannot confine programs.
    """
    limits: dict[str, Any] = {"timeout": timeout, "memory_mb": memory_mb}

    def run(program: tuple[str, str, str]) -> float:
        source, entry_point, test = program
        return float(judge(Problem("", "", entry_point, test), source, **limits).passed)

    def function(
        completions: Sequence[Text], test: Sequence[Any], entry_point: Sequence[str], **_: Any
    ) -> list[float]:
        programs = [
            (block_of(answer_text(said)), name, checked_test(cell, name))
            for said, cell, name in zip(completions, test, entry_point, strict=True)
        ]
        # Models repeat themselves, and a program takes a tenth of a second.
        different = list(dict.fromkeys(programs))
        with ThreadPoolExecutor(num_workers) as pool:
            passed = dict(zip(different, pool.map(run, different), strict=True))
        return [passed[program] for program in programs]

    def check() -> None:
        run(("def nothing():\n    pass\n", "nothing", _PASSES))

    def check_cell(test: Any, entry_point: Any) -> None:
        if not isinstance(entry_point, str) or not entry_point.isidentifier():
            raise DataError(f"its entry_point is {entry_point!r:.80}: give the name of the function to write")
        checked_test(test, entry_point)

    return Reward("python", function, ("test", "entry_point"), check=check, check_cell=check_cell)


def block_of(text: str) -> str:
    """The first block of code in a text between lines of three backticks; the whole text if there is none."""
    found = _BLOCK.search(text)
    return found[1] if found else text


def checked_test(cell: Any, entry_point: str) -> str:
    """The source of a function `check(candidate)`.

    Args:
        cell: Such a source, or lines that test the function by its name.
        entry_point: That name.

    Raises:
        DataError: If it is neither, or no Python.
    """
    lines = cell if isinstance(cell, (list, tuple)) else [cell]
    if not lines or not all(isinstance(line, str) and line.strip() for line in lines):
        raise DataError(f"its test is {cell!r:.80}: give the source of check(candidate), or lines with assert")
    text = "\n".join(lines)
    source = (
        text if re.search(r"^def check\b", text, re.MULTILINE) else f"def check({entry_point}):\n{_indented(text)}"
    )
    try:
        compile(source, "test", "exec")
    except (SyntaxError, ValueError) as error:
        raise DataError(f"its test {text!r:.80} is no Python: {error}") from error
    return source


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
