"""Files of torch's, which are pickles: read with `weights_only=True` alone, so that none runs code."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, ConversionError

# What a file that is cut short, or of another kind, ends in.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, struct.error)


def read_pickle(file: Path) -> Any:
    """Tensors and plain values from a file that `torch.save` wrote; what is not looked at stays on the disk.

    Raises:
        ConversionError: If the file holds more than that: reading it would run code that comes with it.
        CheckpointError: If it is missing, cut short, or none of torch's.
    """
    if not file.is_file():
        raise CheckpointError(f"There is no file {file}.")
    zipped = zipfile.is_zipfile(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # torch's message goes on to say how the code could be run; the name of what is called for is all we take.
        called = re.search(r"GLOBAL (\S+)", str(error))
        if called or zipped or _is_pickle(file):
            what = f", `{called[1]}` for one" if called else ""
            raise ConversionError(
                f"{file} is refused: it is a pickle with more in it than tensors and plain values{what}, and reading that "
                "would run code. Have its author save tensors, numbers and text alone."
            ) from error
        raise CheckpointError(f"{file} is no whole file of torch's.") from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{file} is no whole file of torch's: {reason}") from error


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(1) == pickle.PROTO
