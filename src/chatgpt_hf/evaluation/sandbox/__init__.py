"""Judges programs that a model wrote: `run.py` starts and watches them, the other modules run inside the sandbox."""

from .run import Outcome, run_program

__all__ = ["Outcome", "run_program"]
