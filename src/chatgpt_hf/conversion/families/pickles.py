"""Reads torch files, which are pickles, only with `weights_only=True`, so that none of them can run code."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, ConversionError

# Errors that torch raises for truncated files and for files of another kind.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, struct.error)


def read_pickle(file: Path) -> Any:
    """Reads tensors and plain values from a file of `torch.save`; memory-maps it, so unused tensors stay on the disk.

    Raises:
        ConversionError: If the file contains anything else: reading it would run code from the file.
        CheckpointError: If it is missing, truncated, or not a torch file.
    """
    if not file.is_file():
        raise CheckpointError(f"There is no file {file}.")
    zipped = zipfile.is_zipfile(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # torch's message also tells how to run the code anyway; we take only the name of the object from it.
        called = re.search(r"GLOBAL (\S+)", str(error))
        if called or zipped or _is_pickle(file):
            what = f", such as `{called[1]}`" if called else ""
            raise ConversionError(
                f"{file} is not read: it is a pickle that contains more than tensors and plain values{what}, and reading it "
                "would run code. Ask its author to save only tensors, numbers and text."
            ) from error
        raise CheckpointError(f"{file} is not a complete torch file.") from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{file} is not a complete torch file: {reason}") from error


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(1) == pickle.PROTO
