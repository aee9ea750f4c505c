"""Checks of paths that need no library: a wrong one is told at once."""

import os
from pathlib import Path

from .errors import UsageMistake


def check_model(name: str) -> None:
    """Raises `UsageMistake` if a model is named as a path, and there is nothing at that path.

    A name like `me/model` may be on the Hub, and everything else about a model is the library's to judge.
    """
    path = Path(name)
    named_as_path = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
    if named_as_path and not os.path.lexists(path):
        raise UsageMistake(f"There is no folder {path}; name one that `save_pretrained` wrote, or a Hub id.")


def check_file(option: str, name: str) -> None:
    """Raises `UsageMistake` if an option names a file that does not exist."""
    if not os.path.lexists(name):
        raise UsageMistake(f"{option}: there is no file {name}.")
