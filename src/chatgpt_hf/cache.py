"""The cache folder: what this package keeps there, locks for the processes that write and read it, and its removal.

    <key>/                 training rows (`data.prepare`): rows.arrow, statistics.json
    texts/<key>.jsonl      texts that a model adapts to (`training.adaptation`)
    models/<key>/          models with a new tokenizer or new weights (`training.adaptation`)
    prepared/<key>/        training rows that several processes make together (`data.shards`)
    remote/<key>/          files of object stores and of the Hub (`data.remote`)

A key is 32 hexadecimal digits. Nothing else in the folder is ours, and nothing else is removed.
"""

import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import IO

from .errors import OutputError
from .extras import needed_by
from .files import SAVING_PREFIX, atomic_folder
from .parsing import parse_json, read_file, special_kind

with needed_by("The cache"):
    from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

ROWS_NAME = "rows.arrow"
STATISTICS_NAME = "statistics.json"
# The names and sizes of a cached model's files. `atomic_folder` moves files in the order of their names, and this one
# comes after all that `save_pretrained` writes.
WRITTEN_NAME = "written.json"
TEXTS, MODELS, PREPARED, REMOTE = "texts", "models", "prepared", "remote"
# What a folder of `PREPARED` or `REMOTE` was made from, and the record that is written when the former is complete.
ABOUT_NAME, PREPARED_NAME = "about.json", "prepared.json"
# A warning asks for a look at a cache that is larger than this.
LARGE = 20e9

_KEY = re.compile(r"[0-9a-f]{32}")
_LOCK = re.compile(rf"\.([0-9a-f]{{32}}|{TEXTS})\.lock")
# Of a folder of `PREPARED`; and the claim on any of them.
_PREPARED = re.compile(
    r"(about|documents|prepared)\.json|held-out\.arrow|(documents|tokens|rows|rows-held-out)-(\d{5}|held-out)\.(arrow|json)"
)
_CLAIM = re.compile(r"\.[a-z0-9.-]+\.lock")
# Seconds until a process looks again what others have done.
_PATIENCE = 0.2
_STREAM_BEGINS = b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class Entry:
    """Something in the cache that this package wrote.

    Attributes:
        kind: `rows`, `texts`, `models`, `prepared`, `remote`, or `unfinished`: what a killed process left.
        path: A folder, or a file of texts.
        bytes: Size of its files.
        used: Time of the last use, in seconds since the epoch.
    """

    kind: str
    path: Path
    bytes: int
    used: float


@dataclass
class Pruned:
    """Entries that `prune` removed, and those that it left because a process uses them."""

    removed: list[Entry] = field(default_factory=list)
    in_use: list[Entry] = field(default_factory=list)


def cache_root() -> Path:
    """Returns the folder for cached data: `$CHATGPT_HF_CACHE`, or `~/.cache/chatgpt_hf`."""
    return Path(os.environ.get("CHATGPT_HF_CACHE") or "~/.cache/chatgpt_hf").expanduser()


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Lets one process at a time write to a folder of the cache; the others wait until it has finished.

    The lock belongs to the operating system, so it ends with its process. What an earlier process left half-written in
    the folder is removed.

    Raises:
        OutputError: If the cache cannot be written.
    """
    lock = _lock(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Another process is writing %s: waiting for it.", folder)
            lock.acquire()
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        for path in _leftovers(folder):
            shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        _unlock(lock)


def share(
    folder: Path, is_done: Callable[[], bool], tasks: Callable[[], Iterator[tuple[Path, Callable[[], None]]]]
) -> None:
    """Does work together with other processes, perhaps of other machines, that see the same folder.

    Each task writes one file. Whoever begins a task claims it with a lock that ends with its process, so that the tasks
    of a killed one are taken over. There is no limit to the time that others are waited for.

    Args:
        folder: The folder in which the claims are.
        is_done: Returns whether all is done.
        tasks: Yields what can be done now: a file that is missing, and a function that writes it in one step.

    Raises:
        OutputError: If the folder cannot be written, or its disk knows no locks.
    """
    waits = False
    while not is_done():
        if any(_claimed(folder, file, task, is_done) for file, task in tasks()):
            waits = False
        elif not is_done():
            if not waits:
                logger.info("Other processes are at work in %s: waiting for them.", folder)
            waits = True
            time.sleep(_PATIENCE)


def _claimed(folder: Path, file: Path, task: Callable[[], None], is_done: Callable[[], bool]) -> bool:
    """Carries out a task, unless another process does or has done; returns whether it did."""
    lock = FileLock(folder / f".{file.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise _unusable(folder, error) from error
    try:
        if is_done() or file.exists():
            return False
        task()
        return True
    finally:
        _unlock(lock)


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """`atomic_folder` for a folder of the cache; its errors name the cache's remedies.

    Raises:
        OutputError: If the cache cannot be written, or its disk is full; nothing remains of what was written.
    """
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except (FileExistsError, NotADirectoryError) as error:
        raise _unusable(folder, error) from error
    except OutputError as error:
        if error.__cause__ is None:
            raise
        raise _unusable(folder, error.__cause__) from error


def hold(file: Path) -> IO[bytes] | None:
    """Opens a file of the cache: until it is closed, `prune` keeps the file and its folder.

    Returns:
        None if the file does not exist, or is about to be removed.
    """
    try:
        # Opening a pipe would wait for somebody to write to it.
        handle = None if special_kind(file) else file.open("rb")
    except OSError:
        return None
    if handle is None:
        return None
    try:
        if fcntl is not None:
            # Errors other than a refusal: the file system has no locks.
            with suppress(OSError):
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    handle.close()
                    return None
        if not os.path.samestat(os.fstat(handle.fileno()), file.stat()):
            raise FileNotFoundError(file)
    except OSError:
        handle.close()
        return None
    # Its time says when it was last used.
    with suppress(OSError):
        os.utime(file)
    return handle


@contextmanager
def in_use(*files: Path) -> Iterator[None]:
    """Keeps files of the cache, and their folders, from being removed while the block runs."""
    with ExitStack() as stack:
        for file in files:
            if (handle := hold(file)) is not None:
                stack.enter_context(handle)
        yield


def checksum(file: Path, start: int = 0) -> int:
    """CRC-32 of a file's content, continued from another; takes about a second for each gigabyte."""
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            start = zlib.crc32(piece, start)
    return start


def free_space(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ).free


def check_space(folder: Path, needed: float, what: str) -> None:
    """Checks that the disk of a folder of the cache has room.

    Raises:
        OutputError: If it has less than the needed bytes.
    """
    free = free_space(folder)
    if free < needed:
        raise OutputError(
            f"{what} need about {readable(needed)}, and the disk of the cache folder {folder.parent} has only "
            f"{readable(free)} free: set CHATGPT_HF_CACHE to a folder on a larger disk, or free some space "
            "(`chatgpt-hf env --prune` empties the cache)."
        )


def warn_if_large(root: Path) -> None:
    """Logs a warning if a cache is larger than 20 GB, or than half of what is free on its disk."""
    size, free = sum(entry.bytes for entry in entries(root)), free_space(root)
    if size > min(LARGE, free / 2):
        logger.warning(
            "The cache %s has grown to %s, and %s are free on its disk: `chatgpt-hf env --prune` empties it.",
            root,
            readable(size),
            readable(free),
        )


def entries(root: Path) -> list[Entry]:
    """Everything in a cache that this package wrote, the unfinished parts separately."""
    found = [entry for folder in _folders(root) for entry in _rows(folder)]
    found += [entry for folder in _folders(root / MODELS) for entry in _model(folder)]
    found += [entry for folder in _folders(root / PREPARED) for entry in _prepared(folder)]
    found += [Entry("remote", *_size(folder)) for folder in _folders(root / REMOTE) if (folder / ABOUT_NAME).is_file()]
    for file in _children(root / TEXTS):
        if _is_text(file) and _begins(file, b'{"text": '):
            found.append(Entry("texts", file, file.stat().st_size, file.stat().st_mtime))
    return found + [_unfinished(path) for path in _leftovers(root / TEXTS)]


def prune(root: Path | None = None, *, older_than: float = 0) -> Pruned:
    """Removes what this package wrote into its cache, except what a running process writes or reads.

    Args:
        root: The cache; None means `cache_root()`.
        older_than: Remove only what has not been used for this many days.

    Raises:
        OutputError: If the cache is not a folder, or something cannot be removed.
    """
    root = root or cache_root()
    if root.exists() and not root.is_dir():
        raise _unusable(root / "x", NotADirectoryError())
    pruned = Pruned()
    latest = time.time() - older_than * 86400
    for entry in entries(root):
        # The clock of a network disk may be ahead of ours.
        if not older_than or entry.used <= latest:
            try:
                (pruned.removed if _remove(entry) else pruned.in_use).append(entry)
            except OSError as error:
                raise OutputError(f"{entry.path} cannot be removed: {error.strerror or error}.") from error
    for parent in (root, root / MODELS, root / PREPARED, root / REMOTE):
        for file in _children(parent):
            if _LOCK.fullmatch(file.name) and _is_file(file) and not file.stat().st_size:
                with suppress(OSError, Timeout):
                    lock = FileLock(file)
                    lock.acquire(timeout=0)
                    _unlock(lock)
    for name in {TEXTS, MODELS, PREPARED, REMOTE} & {
        part for entry in pruned.removed for part in entry.path.relative_to(root).parts
    }:
        with suppress(OSError):
            (root / name).rmdir()
    return pruned


def readable(size: float) -> str:
    """`1.2 GB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"


def _unusable(folder: Path, error: BaseException) -> OutputError:
    """The error for a folder of the cache that cannot be written."""
    place = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    reason = f"{place} is a file" if place else str(getattr(error, "strerror", None) or error)
    return OutputError(
        f"The cache folder {folder.parent} cannot be written: {reason}. Set CHATGPT_HF_CACHE to a folder that can be "
        "written and has free space; `chatgpt-hf env --prune` empties the cache."
    )


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _unlock(lock: FileLock) -> None:
    # Removed while it is locked: a process that waits for it notices, and creates it again. Windows refuses this.
    with suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()


def _remove(entry: Entry) -> bool:
    """Removes an entry; False if a process uses it."""
    if entry.kind in ("prepared", "remote"):
        return _remove_folder(entry.path)
    whole = entry.kind in ("rows", "models")
    lock = _lock(entry.path if whole else entry.path.parent)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        if entry.kind == "unfinished":
            shutil.rmtree(entry.path, ignore_errors=True)
            with suppress(OSError):
                entry.path.parent.rmdir()
            return not entry.path.exists()
        files = sorted(path for path in entry.path.iterdir() if _is_file(path)) if whole else [entry.path]
        with ExitStack() as stack:
            if fcntl is not None:
                for file in files:
                    handle = stack.enter_context(file.open("r+b"))
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return False
            for file in files:
                try:
                    file.unlink()
                except PermissionError:
                    if fcntl is None:
                        return False
                    raise
        if whole:
            with suppress(OSError):
                entry.path.rmdir()
        return True
    finally:
        _unlock(lock)


def _remove_folder(folder: Path) -> bool:
    """Removes prepared rows or fetched files; False if a process makes or uses them, which then holds one of these."""
    with ExitStack() as stack:
        for name in (ABOUT_NAME, PREPARED_NAME):
            if fcntl is not None and (folder / name).is_file():
                handle = stack.enter_context((folder / name).open("r+b"))
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
        # First what says that the rest is complete.
        (folder / PREPARED_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return True


def _prepared(folder: Path) -> list[Entry]:
    names = {path.name for path in _children(folder) if not path.name.startswith(SAVING_PREFIX)}
    if ABOUT_NAME not in names or not all(
        _PREPARED.fullmatch(name) or _CLAIM.fullmatch(name) or name in ("tokenizer", "conversations") for name in names
    ):
        return []
    return [Entry("prepared", *_size(folder))]


def _size(folder: Path) -> tuple[Path, int, float]:
    """A folder, the bytes of its files, and when its records were last used."""
    return folder, _unfinished(folder).bytes, max(path.stat().st_mtime for path in _files(folder))


def _rows(folder: Path) -> list[Entry]:
    if not {path.name for path in _files(folder)} <= {ROWS_NAME, STATISTICS_NAME}:
        return []
    about = _json(folder / STATISTICS_NAME)
    return _parts("rows", folder, {"rows", "bytes"} <= set(about) or _begins(folder / ROWS_NAME, _STREAM_BEGINS))


def _model(folder: Path) -> list[Entry]:
    # A process that was killed while it moved the files left the record with the rest.
    places = (folder, *_leftovers(folder))
    written = {WRITTEN_NAME}.union(*(_json(place / WRITTEN_NAME) for place in places))
    names = {path.name for path in _files(folder)}
    return _parts("models", folder, bool(names)) if names <= written else []


def _parts(kind: str, folder: Path, ours: bool) -> list[Entry]:
    """The entries of a folder with files of the right names, if nothing else is there and the content is ours."""
    files, leftovers = _files(folder), _leftovers(folder)
    if len(files) + len(leftovers) != len(_children(folder)) or not (ours or leftovers):
        return []
    found = [_unfinished(path) for path in leftovers]
    if files:
        status = [file.stat() for file in files]
        size, used = sum(each.st_size for each in status), max(each.st_mtime for each in status)
        found.insert(0, Entry(kind, folder, size, used))
    return found


def _unfinished(folder: Path) -> Entry:
    status = [path.stat() for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    size = sum(each.st_size for each in status if S_ISREG(each.st_mode))
    return Entry("unfinished", folder, size, max(each.st_mtime for each in status))


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _folders(parent: Path) -> list[Path]:
    return [
        path for path in _children(parent) if _KEY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _files(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if _is_file(path)]


def _leftovers(folder: Path) -> list[Path]:
    """Returns the leftovers of killed processes in a folder of the cache."""
    return [
        path
        for path in _children(folder)
        if path.name.startswith(SAVING_PREFIX)
        and path.is_dir()
        and not path.is_symlink()
        # If the cache is a home folder, `texts` may be somebody else's.
        and (folder.name != TEXTS or (_children(path) and all(map(_is_text, _children(path)))))
    ]


def _is_text(path: Path) -> bool:
    return path.suffix == ".jsonl" and _KEY.fullmatch(path.stem) is not None and _is_file(path)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _begins(file: Path, content: bytes) -> bool:
    """True if a file begins with these bytes, or is empty."""
    try:
        if special_kind(file):
            return False
        with file.open("rb") as opened:
            return opened.read(len(content)) in (content, b"")
    except OSError:
        return False


def _json(file: Path) -> dict[str, object]:
    try:
        content = parse_json(read_file(file))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
