"""Files and folders written completely or not at all, and JSON and YAML read with errors that name the file.

A process may be killed, and a machine lose its power, between any two writes. So everything is written under a temporary
name, synced to the disk, and renamed: the name then stands for the old content or for the new one.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ChatGPTError, CheckpointError, OutputError
from .parsing import LARGEST, parse_json, parse_yaml, read_file, special_kind

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Prefix of temporary folders that are still being written.
SAVING_PREFIX = ".saving-"
# Without these files nothing is a model, so they come last where files are moved one by one.
_MOVED_LAST = ("config.json", "adapter_config.json")


def check_new_folder(path: str | Path) -> Path:
    """Returns the path if it does not exist yet or is an empty folder; what a killed process left does not count.

    Raises:
        OutputError: If it is a file, a folder that is not empty, or a path that cannot be created.
    """
    folder = Path(path)
    if not folder.exists():
        check_is_folder(folder)
        return folder
    content = [child.name for child in folder.iterdir()] if folder.is_dir() else [folder.name]
    if all(name.startswith(SAVING_PREFIX) for name in content):
        return folder
    if any(name.startswith(SAVING_PREFIX) for name in content):
        raise OutputError(
            f"{folder} holds what a killed process had begun to write. Nothing was written; remove it, or name another folder."
        )
    raise OutputError(f"{folder} is not an empty folder. Nothing was written; name another one.")


def check_is_folder(folder: Path) -> None:
    """Returns if something can be written into a folder, which need not exist yet. Writes nothing.

    Raises:
        OutputError: If the path, or one above it, is a file or a link that leads nowhere.
    """
    # From the path upwards: of what exists, the first is what everything below would be made in.
    found = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if found is None or found.is_dir():
        return
    kind = "is not a folder" if found.exists() else "is a link to something that does not exist"
    raise OutputError(f"{found} {kind}. Nothing was written; name another folder.")


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
        text = read_file(file)
        if text.startswith("\ufeff"):
            # The libraries that read the same file do not skip it.
            raise CheckpointError(f"{file} begins with a byte order mark (BOM): save it as UTF-8 without one.")
        content = parse(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Save or copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold {kind}. Save or copy it again.")
    return content


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, in one step, if the block ends without an error.

    A folder that exists stays the same folder, because a shell may be in it or a disk be mounted there; then the files are
    moved into it one by one. See `check_new_folder`.

    Raises:
        OutputError: If the disk is full, or another process has written the folder meanwhile; nothing remains.
    """
    if folder.exists():
        with atomic_folder(folder) as temporary:
            yield temporary
        return
    with clear_disk_errors(folder), _temporary(folder.parent, f"{SAVING_PREFIX}{folder.name}-") as temporary:
        # Inside, because the temporary folder itself cannot be read by others.
        written = temporary / folder.name
        written.mkdir()
        yield written
        _sync_tree(written, folders=True)
        try:
            written.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise OutputError(f"Another process has written {folder} meanwhile: name another folder.") from error
        sync(folder.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of the same names in `folder` if the block ends without an error.

    Each file is replaced in one step, in the order of the names; config.json is the last of a model.

    Raises:
        OutputError: If the disk is full; `folder` is unchanged.
    """
    made = not folder.exists()
    try:
        with clear_disk_errors(folder), _temporary(folder, SAVING_PREFIX) as temporary:
            yield temporary
            _sync_tree(temporary, folders=False)
            paths = sorted(temporary.rglob("*"), key=lambda path: (path.name in _MOVED_LAST, path))
            for path in paths:
                target = folder / path.relative_to(temporary)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    os.replace(path, target)
            for changed in {folder, *(folder / path.relative_to(temporary).parent for path in paths)}:
                sync(changed)
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents, if they are missing, so that a loss of power does not take them away.

    Raises:
        OutputError: If `check_is_folder` raises it.
    """
    check_is_folder(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk.

    Raises:
        OSError: If the disk refuses them.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        # Windows opens no folders.
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of a network sync no folders.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder that is removed at the end; first removes those that killed processes left."""
    make_folder(parent)
    for path in list(parent.iterdir()):
        if path.name.startswith(prefix) and (descriptor := _lock(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        descriptor = _lock(temporary, wait=True)
        if temporary.exists():
            break
        # Another process took it for a leftover before it was locked.
        if descriptor is not None:
            os.close(descriptor)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Locks a folder until the descriptor is closed, or the process ends; None if that is not possible."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        # Some file systems have no locks: then nothing says that the process has ended.
        os.close(descriptor)
        return None
    return descriptor


def _sync_tree(folder: Path, *, folders: bool) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or (folders and path.is_dir()):
            sync(path)


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
        # safetensors reports the same problems as another exception class; torch.save and NumPy do not say what happened.
        said = any(text in str(error) for text in ("No space left on device", "File too large", "Disk quota exceeded"))
        unsaid = any(text in str(error) for text in ("PytorchStreamWriter", "unexpected pos", "requested and"))
        if not (refused or said or unsaid):
            raise
        reason: object = "a file was cut short, as on a full disk" if unsaid and not said else error
        if isinstance(error, OSError) and error.errno in full:
            # Without its paths: they are of temporary files.
            reason = error.strerror or error
        raise OutputError(
            f"Could not write to {folder}: {reason}. Existing files are intact; free some space, or name a writable "
            "folder, and run the same command again (with --resume if it is a training run)."
        ) from error


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path, then renames it to `file`. The old file survives a failure."""
    with atomic_folder(file.parent) as temporary:
        write(temporary / file.name)
