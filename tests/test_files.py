"""Files and folders are written completely or not at all, and a refused write says what to do."""

import errno
from pathlib import Path

import pytest

from chatgpt_hf.errors import OutputError
from chatgpt_hf.files import atomic_folder, clear_disk_errors, write_atomically


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
    "error", [ValueError("of ours"), FileNotFoundError(errno.ENOENT, "gone"), OutputError("mine")]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, clear_disk_errors(Path("runs/x")):
        raise error
    assert caught.value is error
