"""The folder of a training run: the files in it, which runs may go into it, and its checkpoints."""

import errno
import json
import logging
import os
import shutil
import socket
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..cache import checksum
from ..checkpoints import check_safetensors
from ..errors import CheckpointError, OutputError
from ..extras import needed_by
from ..files import SAVING_PREFIX, clear_disk_errors, make_folder, read_json, sync, write_atomically
from ..stored import read_header

with needed_by("Training"):
    from filelock import BaseFileLock, FileLock, Timeout

logger = logging.getLogger(__name__)

# A folder that contains a resolved recipe is a run of ours.
RECIPE_NAME = "recipe.yaml"
# Fingerprints of the run's data: a checkpoint's position in a stream means nothing for other data.
DATA_NAME = "data.json"
RESULTS_NAME = "results.json"
TRAINER_STATE_NAME = "trainer_state.json"
# Of a checkpoint: size and CRC-32 of every other file. Written last; while a checkpoint is written, it says so.
CHECKSUMS_NAME = "checksums.json"
# The card that PEFT writes, which people edit.
_NOT_SEALED = (CHECKSUMS_NAME, "README.md")
# Locked while a run writes into its folder; contains the process.
LOCK_NAME = ".lock"


def check_output_dir(output_dir: str | Path, *, resume: bool = False) -> Path:
    """Returns the folder if a run may use it: it is new, empty, contains only other runs, or the run to resume.

    Changes nothing.

    Raises:
        OutputError: If it is a file, contains other files, or contains a run and `resume` is false.
    """
    folder = Path(output_dir)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise OutputError(f"--output_dir {folder} cannot be created: {path} is a file. Name another folder.")
    # The quickstart puts its base model inside the chat model's folder.
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in found if not path.name.startswith(SAVING_PREFIX) and path.name != LOCK_NAME]
    content = [path.name for path in found if not (path / RECIPE_NAME).is_file()]
    if content and RECIPE_NAME not in content:
        raise OutputError(
            f"--output_dir {folder} is not empty and not a run of ours (it contains {', '.join(content[:3])} and no "
            f"{RECIPE_NAME}). Nothing was written; name another folder."
        )
    if content and not resume:
        raise OutputError(
            f"--output_dir {folder} already contains a run. Add --resume (or --resume_from_checkpoint true) to continue "
            "it, or name another folder."
        )
    return folder


def prepare_output_dir(output_dir: str | Path, *, resume: bool = False) -> Path:
    """Creates the folder of a run, or reuses an existing one if `check_output_dir` allows it."""
    folder = check_output_dir(output_dir, resume=resume)
    with clear_disk_errors(folder):
        make_folder(folder)
    # Left behind by a process that was killed while it wrote.
    for path in folder.glob(f"{SAVING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    return folder


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keeps other runs out of an existing folder while the block runs.

    The lock belongs to the operating system, so it ends with its process, however that ends. Of several processes of one
    run, the first holds it.

    Raises:
        OutputError: If another run is writing into the folder, or the folder cannot be written.
    """
    file = folder / LOCK_NAME
    try:
        with clear_disk_errors(folder):
            lock = _acquired(file)
    except Timeout:
        raise OutputError(
            f"Another run is writing into {folder} ({_holder(file)}). Nothing was changed; wait until it has ended, end it, "
            "or name another folder."
        ) from None
    if lock is None:
        logger.warning("%s is on a file system without locks: make sure that no other run writes into it.", folder)
        yield
        return
    try:
        # Windows lets nobody write to a locked file.
        with suppress(OSError):
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # Removed while it is locked, so that nobody else's lock is removed. Windows refuses this.
        with suppress(OSError):
            file.unlink()
        lock.release()


def _acquired(file: Path) -> BaseFileLock | None:
    """A lock of this process; None if the file system has no locks, such as some network file systems.

    Raises:
        Timeout: If another process holds it.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            return None
        raise
    return lock


def _holder(lock: Path) -> str:
    with suppress(OSError, ValueError):
        return lock.read_text(encoding="utf-8") or "a process that has just begun"
    return "its process is unknown"


@dataclass(frozen=True)
class Fault:
    """Why a checkpoint cannot be resumed from.

    Attributes:
        reason: Begins with the path of the file.
        damaged: True if the checkpoint was complete once. False if its process ended before it was.
    """

    reason: str
    damaged: bool = True


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; None if the run ended before it had completed one.

    Logs a warning about each newer one that is damaged or incomplete. Reads all files of a checkpoint.

    Raises:
        CheckpointError: If there are only damaged ones.
    """
    faults: list[Fault] = []
    found = _newest_first(folder)
    for number, checkpoint in enumerate(found):
        fault = find_fault(checkpoint)
        if fault is None and not _is_sealed(checkpoint):
            if sealed := next(filter(_is_sealed, found[number + 1 :]), None):
                fault = Fault(f"{checkpoint / CHECKSUMS_NAME} is missing, and {sealed.name} before it has one")
            else:
                logger.warning(
                    "%s has no checksums: it is of an earlier version, and damage inside its weights would not be noticed.",
                    checkpoint,
                )
        if fault is None:
            for each in faults:
                logger.warning(
                    "%s. The run continues from %s, the newest complete checkpoint.", each.reason, checkpoint
                )
            return checkpoint
        faults.append(fault)
    if damaged := next((fault for fault in faults if fault.damaged), None):
        raise CheckpointError(
            f"{damaged.reason}, and {folder} has no complete checkpoint to continue from instead. Copy the file back, or "
            "name another --output_dir to start again."
        )
    for each in faults:
        logger.warning("%s. There is no earlier checkpoint: the run starts from the beginning.", each.reason)
    return None


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-*`, or None. Incomplete and damaged ones are skipped."""
    return next(filter(is_whole_checkpoint, _newest_first(folder)), None)


def is_whole_checkpoint(checkpoint: Path) -> bool:
    """True if a checkpoint is complete and undamaged. See `find_fault`."""
    return find_fault(checkpoint) is None


def find_fault(checkpoint: Path) -> Fault | None:
    """Compares all files of a checkpoint with its checksums.

    Checkpoints of earlier versions have none. `Trainer` writes trainer_state.json last, so they are complete if that file
    can be read; the weights must have their full length, and PyTorch's files the checksums that are part of their format.

    In a run on a stream, every process' position must be there too.
    """
    if not checkpoint.is_dir():
        return Fault(f"{checkpoint} is not a folder", damaged=False)
    try:
        fault = _differing(checkpoint) if _is_sealed(checkpoint) else _unreadable(checkpoint)
        if fault is not None:
            return fault
    except OSError as error:
        return Fault(f"{error.filename} cannot be read: {error.strerror}")
    rank, processes = 0, 1 if read_data_record(checkpoint.parent).get("stream") else 0
    while rank < processes:
        file = _data_state_file(checkpoint, rank)
        try:
            processes = json.loads(file.read_text(encoding="utf-8"))["processes"]
        except (OSError, ValueError):
            return Fault(f"{file} cannot be read", damaged=False)
        rank += 1
    # FSDP and DeepSpeed write shards into folders; modeling_*.py next to the weights is not a weight file.
    if not any(("model" in path.name and path.suffix != ".py") or path.is_dir() for path in checkpoint.iterdir()):
        return Fault(f"{checkpoint} has no weights")
    return None


def begin_checkpoint(checkpoint: Path) -> None:
    """Marks a checkpoint that is going to be written as incomplete."""
    make_folder(checkpoint)
    # By this file, earlier versions recognize a complete checkpoint.
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
    _write_checksums(checkpoint, None)


def seal_checkpoint(checkpoint: Path) -> None:
    """Marks a checkpoint as complete, after all its files are on the disk, and records their checksums.

    Takes about 0.2 seconds of a core per gigabyte, and the time that the disk needs.
    """
    record = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in _NOT_SEALED:
            record[name] = {"bytes": path.stat().st_size, "crc32": f"{checksum(path):08x}"}
            sync(path)
        elif path.is_dir():
            sync(path)
    sync(checkpoint)
    _write_checksums(checkpoint, record)


def remove_old_checkpoints(newest: Path, limit: int | None, best: str | None) -> None:
    """Removes the checkpoints of a run beyond the number to keep, the oldest steps first.

    Steps decide and not times of files, because a clock may jump. Steps after that of the newest were left by a run that
    went further and was continued from an earlier checkpoint; they go first.

    Args:
        newest: The checkpoint that has just been written; it stays.
        limit: Number to keep; None or 0 for all.
        best: Path of another one that stays.
    """
    if not limit or limit < 0:
        return
    found = _newest_first(newest.parent)
    kept = {newest.name, Path(best).name if best else newest.name}
    removable = [path for path in reversed(found) if path.name not in kept]
    removable.sort(key=lambda path: _step(path) < _step(newest))
    for path in removable[: max(0, len(found) - max(limit, len(kept)))]:
        # A process that is killed meanwhile must not leave half a checkpoint.
        gone = path.with_name(f"{SAVING_PREFIX}{path.name}")
        with suppress(OSError):
            path.rename(gone)
        shutil.rmtree(gone if gone.exists() else path, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_sealed(checkpoint: Path) -> bool:
    return (checkpoint / CHECKSUMS_NAME).exists()


def _write_checksums(checkpoint: Path, files: dict[str, dict[str, Any]] | None) -> None:
    # With a checksum of the record itself, damage to it is not taken for damage to the files.
    text = json.dumps({"files": files, "crc32": _record_checksum(files)}, indent=1) + "\n"
    write_atomically(checkpoint / CHECKSUMS_NAME, lambda file: file.write_text(text, encoding="utf-8"))


def _record_checksum(files: Any) -> str:
    return f"{zlib.crc32(json.dumps(files, sort_keys=True).encode()):08x}"


def _differing(checkpoint: Path) -> Fault | None:
    """The first file that is not as it was when the checkpoint was sealed."""
    seal = checkpoint / CHECKSUMS_NAME
    try:
        record = json.loads(seal.read_text(encoding="utf-8"))
        files = record["files"]
        if record["crc32"] != _record_checksum(files):
            return Fault(f"{seal} is damaged: it differs from its own checksum")
    except (ValueError, KeyError, TypeError):
        return Fault(f"{seal} is damaged: it is not the JSON that was written")
    if files is None:
        return Fault(f"{checkpoint} is incomplete: the run ended while it was saved", damaged=False)
    for name, written in files.items():
        if name in _NOT_SEALED:
            continue
        file = checkpoint / name
        if not file.is_file():
            return Fault(f"{file} is missing")
        size = file.stat().st_size
        if size != written["bytes"]:
            return Fault(f"{file} is damaged: it has {size:,} bytes, and {written['bytes']:,} were written")
        if f"{checksum(file):08x}" != written["crc32"]:
            return Fault(f"{file} is damaged: its content is not what was written (the checksums differ)")
    return None


def _unreadable(checkpoint: Path) -> Fault | None:
    """The first file of a checkpoint without checksums that cannot be what was written."""
    state = checkpoint / TRAINER_STATE_NAME
    try:
        TrainerState.load_from_json(str(state))
    except (OSError, ValueError, TypeError):
        return Fault(f"{checkpoint} is incomplete: {TRAINER_STATE_NAME} cannot be read", damaged=False)
    optimizers = ("optimizer", "global_step")  # DeepSpeed's are in the latter
    if (checkpoint / "scheduler.pt").is_file() and not any(
        path.name.startswith(optimizers) for path in checkpoint.iterdir()
    ):
        # `Trainer` would silently begin with a new optimizer.
        return Fault(f"{checkpoint / 'optimizer.pt'} is missing")
    for file in sorted(checkpoint.rglob("*")):
        try:
            if file.suffix == ".safetensors":
                check_safetensors(file)
            elif file.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(file) as archive:
                    if (broken := archive.testzip()) is not None:
                        return Fault(f"{file} is damaged: the checksum of {broken} in it differs")
        except (zipfile.BadZipFile, CheckpointError):
            return Fault(
                f"{file} is damaged: {'it is empty' if not file.stat().st_size else 'a part of it is missing'}"
            )
    return None


def write_data_state(checkpoint: Path, state: dict[str, Any], rank: int, processes: int) -> None:
    """Saves the position of one process in its stream."""
    content = json.dumps({"processes": processes, "state": state})
    _data_state_file(checkpoint, rank).write_text(content, encoding="utf-8")


def read_data_states(checkpoint: Path) -> list[dict[str, Any]]:
    """The positions of all processes in their stream, as saved by `write_data_state`.

    Raises:
        CheckpointError: If one is missing or truncated.
    """
    states: list[dict[str, Any]] = []
    processes = 1
    while len(states) < processes:
        file = _data_state_file(checkpoint, len(states))
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}): without it the position in the stream is unknown. Use an "
                "earlier checkpoint."
            ) from error
        processes = content["processes"]
        states.append(content["state"])
    return states


def read_data_state(checkpoint: Path, rank: int, processes: int) -> dict[str, Any]:
    """The position of one process in its stream.

    Raises:
        CheckpointError: If a position is missing or truncated, or the run had another number of processes.
    """
    states = read_data_states(checkpoint)
    if len(states) != processes:
        raise CheckpointError(
            f"{checkpoint} was written by {len(states)} processes that shared a stream, but this run has "
            f"{processes}: start {len(states)}."
        )
    return states[rank]


def read_data_record(folder: Path) -> dict[str, Any]:
    """The content of a run's `data.json`; empty if there is none."""
    return read_json(folder / DATA_NAME)


def _data_state_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"data_state_{rank}.json"


def check_checkpoint_fits(checkpoint: Path, model: PreTrainedModel) -> None:
    """Raises `CheckpointError` if names or shapes of a checkpoint's weights differ from the model's."""
    stored: dict[str, tuple[int, ...]] = {}
    # PEFT itself checks the weights of adapters.
    for file in checkpoint.glob("model*.safetensors"):
        stored |= {name: shape for name, _, shape in read_header(file)}
    state = model.state_dict()
    # Only one of several tied weights is stored.
    there = {state[name].data_ptr() for name in stored if name in state}
    own = {
        name: tuple(weight.shape) for name, weight in state.items() if name in stored or weight.data_ptr() not in there
    }
    if stored and own != stored:
        name = min(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
        raise CheckpointError(
            f"{checkpoint} does not belong to this run: its {name} is {stored.get(name, 'missing')}, the model's "
            f"{own.get(name, 'missing')}. Resume with the recipe that the run was started with, or name another folder."
        )
