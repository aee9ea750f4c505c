"""Files and folders written completely or not at all, and JSON read with errors that name the file."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ChatGPTError, CheckpointError, OutputError

# Prefix of temporary folders that are still being written.
SAVING_PREFIX = ".saving-"
# Larger than any tokenizer or index. A few bytes on the disk can be a file of any size, and text is read as a whole.
_LARGEST_TEXT = 2**29
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


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
    mode = stat.S_IFMT(file.stat().st_mode)
    if mode != stat.S_IFREG:
        raise CheckpointError(
            f"{file} is {_KINDS.get(mode, 'something else')} and not a file. Replace it by a copy of the file that it stands for."
        )


def check_text_file(file: Path) -> None:
    """Like `check_regular`; also raises if a file is larger than any text of a model."""
    check_regular(file)
    size = file.stat().st_size
    if size > _LARGEST_TEXT:
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
    try:
        content = json.loads(read_text(file))
    except FileNotFoundError:
        return {}
    except RecursionError as error:
        raise CheckpointError(f"{file} cannot be read: it is nested too deeply. Save or copy it again.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Save or copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object. Save or copy it again.")
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
