"""Checks of paths that need no library: a wrong one is told at once."""

import os
import re
from pathlib import Path

from .errors import UsageMistake

# What the Hub allows: `model` or `owner/model`.
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_MODELS = ("config.json", "adapter_config.json")


def check_model(name: str) -> None:
    """Raises `UsageMistake` if a model is named as a path, and there is nothing, or only an unfinished run, at that path.

    A name like `me/model` may be on the Hub, and everything else about a model is the library's to judge.
    """
    path = Path(name)
    named_as_path = path.is_absolute() or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name)
    if named_as_path and not os.path.lexists(path):
        raise UsageMistake(f"There is no folder {path}; name one that `save_pretrained` wrote, or a Hub id.")
    unfinished = not any((path / file).exists() for file in _MODELS)
    if unfinished and (checkpoints := _checkpoints(path)):
        raise UsageMistake(
            f"{path} is a run that has not finished: its newest checkpoint is {checkpoints[-1]}. Name that, or continue the run "
            "with --resume."
        )


def _checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints that hold a model, the newest last."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    found = [path for path in found if any((path / name).is_file() for name in _MODELS)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def check_file(option: str, name: str) -> None:
    """Raises `UsageMistake` if an option names a file that does not exist."""
    if not os.path.lexists(name):
        raise UsageMistake(f"{option}: there is no file {name}.")
