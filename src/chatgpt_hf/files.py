"""Files and folders written completely or not at all, and JSON and YAML read with errors that name the file."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ChatGPTError, CheckpointError, OutputError
from .parsing import LARGEST, parse_json, parse_yaml, special_kind

# Prefix of temporary folders that are still being written.
SAVING_PREFIX = ".saving-"


def check_new_folder(path: str | Path) -> Path:
    """Returns the path if it does not exist yet or is an empty folder.

    Raises:
        OutputError: If it is a file or a folder that is not empty.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not an empty folder. Nothing was written; name another one.")
    return folder


def check_regular(file: Path) -> None:
    """Raises `CheckpointError` unless a path leads to a regular file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: If there is nothing.
    """
    if kind := special_kind(file):
        raise CheckpointError(f"{file} is {kind} and not a file. Replace it by a copy of the file that it stands for.")


def check_text_file(file: Path) -> None:
    """Like `check_regular`; also raises if a file is larger than any text of a model."""
    check_regular(file)
    size = file.stat().st_size
    if size > LARGEST:
        raise CheckpointError(f"{file} has {size / 1e9:,.1f} GB, more than any text of a model: is it another file?")


def read_text(file: Path, encoding: str = "utf-8") -> str:
    """The text of a file that a model's folder brings.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it is not a regular file, or larger than any text of a model.
        OSError, ValueError: If it cannot be read, or is not text.
    """
    check_text_file(file)
    return file.read_text(encoding=encoding)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if the file does not exist.

    Raises:
        CheckpointError: If the file cannot be read, or its content is not an object.
    """
    return _read_mapping(file, parse_json, "a JSON object")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, such as a run's recipe; an empty one if the file does not exist.

    Raises:
        CheckpointError: If the file cannot be read, or its content is not a mapping.
    """
    return _read_mapping(file, parse_yaml, "`field: value` lines")


def _read_mapping(file: Path, parse: Callable[[str], Any], kind: str) -> dict[str, Any]:
    try:
        content = parse(read_text(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Save or copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold {kind}. Save or copy it again.")
    return content


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of the same names in `folder` if the block ends without an error.

    Raises:
        OutputError: If the disk is full; `folder` is unchanged.
    """
    made = not folder.exists()
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=SAVING_PREFIX, dir=folder))
    try:
        with clear_disk_errors(folder):
            yield temporary
            for path in sorted(temporary.rglob("*")):
                target = folder / path.relative_to(temporary)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turns a failed write (disk full, no permission) into an `OutputError` that names the folder."""
    try:
        yield
    except ChatGPTError:
        raise
    except Exception as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        refused = isinstance(error, OSError) and error.errno in (*full, errno.EROFS, errno.EACCES, errno.EPERM)
        # safetensors and torch.save report the same problems as other exception classes.
        texts = (
            "No space left on device",
            "File too large",
            "Disk quota exceeded",
            "PytorchStreamWriter",
            "unexpected pos",
        )
        if not refused and not any(text in str(error) for text in texts):
            raise
        raise OutputError(
            f"Could not write to {folder}: {error}. Existing files are intact; free some space, or name a writable "
            "folder, and run the same command again (add --resume_from_checkpoint true to a training run)."
        ) from error


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path, then renames it to `file`. The old file survives a failure."""
    with atomic_folder(file.parent) as temporary:
        write(temporary / file.name)
