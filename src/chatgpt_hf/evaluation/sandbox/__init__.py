"""Runs programs that a model wrote: `run.py` starts and watches them, `confined.py` runs inside the sandbox."""

from .run import Outcome, run_program

__all__ = ["Outcome", "run_program"]
