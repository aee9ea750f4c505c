"""Files and folders are written completely or not at all, and a refused write says what to do."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from power_cut import PowerCuts

from chatgpt_hf.errors import OutputError
from chatgpt_hf.files import atomic_folder, check_new_folder, clear_disk_errors, new_folder, write_atomically

MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "sub/code.py": b"pass", "tokenizer.json": b"{}"}


def save(folder: Path, files: dict[str, bytes] = MODEL) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_replaced_together(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with atomic_folder(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "a").write_text("1")
        (temporary / "sub" / "b").write_text("2")
        assert not (folder / "a").exists()
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text("new")
    assert contents(folder) == {"a": b"new", "sub/b": b"2"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failure_leaves_the_old_files(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("old")

    def write(file: Path) -> None:
        file.write_text("half")
        raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_atomically(tmp_path / "a", write)

    def write_two() -> None:
        with atomic_folder(tmp_path) as temporary:
            (temporary / "new").write_text("half")
            write(temporary / "a")

    with pytest.raises(expected):
        write_two()
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("4096 requested and 1544 written"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_refused_write_names_the_folder_and_the_remedy(error: Exception) -> None:
    message = r"Could not write to runs/x: .*free some space, or name a writable folder"
    with pytest.raises(OutputError, match=message), clear_disk_errors(Path("runs/x")):
        raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left", "a", None, "runs/.saving-x/a"), "No space left"),
        (OSError("4096 requested and 1544 written"), "a file was cut short, as on a full disk"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            "a file was cut short, as on a full disk",
        ),
    ],
)
def test_the_reason_is_no_librarys_riddle(error: Exception, reason: str) -> None:
    with (
        pytest.raises(OutputError, match=f"Could not write to runs/x: {reason}\\. Existing"),
        clear_disk_errors(Path("runs/x")),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("of ours"), FileNotFoundError(errno.ENOENT, "gone"), OutputError("mine")]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, clear_disk_errors(Path("runs/x")):
        raise error
    assert caught.value is error


def without_unfinished(state: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in state.items() if ".saving-" not in name}


def test_a_power_cut_leaves_a_new_folder_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {f"a/model/{name}": content for name, content in MODEL.items()}
    with PowerCuts(tmp_path, monkeypatch) as disk:
        with new_folder(tmp_path / "a" / "model") as temporary:
            save(temporary)
        assert disk.lazy == whole, "it can still be lost"
    assert len(disk.states) > 5
    assert all(without_unfinished(state) in ({}, whole) for state in disk.states)


def test_a_power_cut_leaves_each_file_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: b"old " + content for name, content in MODEL.items()}
    save(tmp_path, {**old, "notes.txt": b"mine"})
    with PowerCuts(tmp_path, monkeypatch) as disk:
        with atomic_folder(tmp_path) as temporary:
            save(temporary)
        assert disk.lazy == {**MODEL, "notes.txt": b"mine"}
    assert len(disk.states) > 5
    for state in map(without_unfinished, disk.states):
        assert state.keys() == {*MODEL, "notes.txt"}
        assert all(state[name] in (MODEL[name], old[name]) for name in MODEL)


def test_a_power_cut_while_a_model_is_saved_into_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without config.json it is not taken for a model."""
    with PowerCuts(tmp_path, monkeypatch) as disk, new_folder(tmp_path) as temporary:
        save(temporary)
    for state in map(without_unfinished, disk.states[:-2]):
        assert all(MODEL[name] == content for name, content in state.items())
        assert "config.json" not in state or state == MODEL
    assert contents(tmp_path) == MODEL


def killed_while_saving(folder: Path, moment: str) -> None:
    """Saves a model in a process that is killed."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        if event == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    with new_folder(folder) as temporary:
        save(temporary)
        sys.audit("saved")
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process to kill it")
@pytest.mark.parametrize("moment", ["saved", "os.rename"])
@pytest.mark.parametrize("exists", [False, True])
def test_after_a_kill_the_same_command_works(moment: str, exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if exists:
        folder.mkdir()
    killed_while_saving(folder, moment)
    assert any(name.startswith(".saving-") for path in tmp_path.rglob("*") for name in path.parts)
    with new_folder(check_new_folder(folder)) as temporary:
        save(temporary)
    assert contents(tmp_path) == {f"model/{name}": content for name, content in MODEL.items()}


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as first:
        save(first)
        with new_folder(tmp_path / "model") as second:
            save(second, {"config.json": b"second"})
        assert contents(first) == MODEL
        (tmp_path / "model" / "config.json").unlink()


def test_a_folder_that_another_process_writes_meanwhile(tmp_path: Path) -> None:
    def write_after_another() -> None:
        with new_folder(tmp_path / "model") as temporary:
            save(temporary)
            with new_folder(tmp_path / "model") as other:
                save(other, {"config.json": b"other"})

    with pytest.raises(OutputError, match=r"Another process has written .*model meanwhile: name another folder"):
        write_after_another()
    assert contents(tmp_path) == {"model/config.json": b"other"}


def test_half_a_folder_is_called_that(tmp_path: Path) -> None:
    """A process was killed between two files that it moved into a folder that existed."""
    (tmp_path / ".saving-abc").mkdir()
    assert check_new_folder(tmp_path) == tmp_path
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(
        OutputError, match=r"holds what a killed process had begun to write. Nothing was written; remove"
    ):
        check_new_folder(tmp_path)


@pytest.mark.parametrize("how", [new_folder, atomic_folder])
def test_a_disk_that_is_full_only_when_it_is_synced(
    how: Callable[[Path], "os.PathLike[str]"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that reserve space late."""

    def full(descriptor: int) -> None:
        if not os.path.isdir(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"Could not write to .*free some space"), how(tmp_path / "model") as new:
        save(new)
    assert list(tmp_path.iterdir()) == []
