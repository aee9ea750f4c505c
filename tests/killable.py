"""Starts commands that tests kill, as training/killed.py describes.

The processes are forked from a server that has already imported everything heavy, so a start takes a second.
"""

import multiprocessing
import runpy
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

needs_forkserver = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="processes are forked from a server"
)
# A run takes seconds. This limit only ends a test that would hang.
PATIENCE = 900


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "chatgpt_hf_cli.pretrain",
            "chatgpt_hf.quickstart",
            "chatgpt_hf.training.pretrain",
            "matplotlib.figure",
            # datasets imports it whenever it reads a file, and that takes half a second.
            "scipy.io",
            "torch.distributed",
            "transformers.models.auto.modeling_auto",
            "transformers.trainer",
            "trl",
        ]
    )
    return context


def start(*jobs: dict[str, Any], reports: int = 0, script: str = "killed.py") -> tuple[list[BaseProcess], Connection]:
    """Starts a process for each job, with a script of `training/`.

    Returns:
        The processes, and the pipe on which number `reports` says that its moment has come.
    """
    hears, says = _context().Pipe(duplex=False)
    started = []
    for number, job in enumerate(jobs):
        given = {"job": job, "pipe": says if number == reports else None}
        # Functions are pickled by name. That works for Python's own, but not for the test's: its module is not in a package.
        path = str(Path(__file__).parent / "training" / script)
        started.append(_context().Process(target=runpy.run_path, args=(path, given, "__main__")))
        started[-1].start()
    says.close()
    return started, hears
