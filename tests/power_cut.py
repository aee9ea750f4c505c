"""Shows what would be left of a folder if the power failed, at every moment of a test.

Two disks are simulated. The lazy one has the content of a file, and the names in a folder, as they were when they were last
synced. The eager one has the latest names, but of the files only synced content: so do file systems that write their journal
before the data, and a file that was renamed without being synced is empty.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

Files = dict[str, bytes]


class PowerCuts:
    """Records the disks while a test runs.

    Args:
        root: A folder; all in it counts as synced.

    Attributes:
        states: The different contents that a failure could leave, by relative path, in the order of time.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.states: list[Files] = []
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        # A number of a deleted file is not given to another one while the file is open.
        self._kept: list[int] = []
        for path in (*root.rglob("*"), root):
            self._sync(os.open(path, os.O_RDONLY))
        monkeypatch.setattr(os, "fsync", self._fsync)
        self._records = True
        sys.addaudithook(self._audit)

    def __enter__(self) -> "PowerCuts":
        return self

    def __exit__(self, *exception: object) -> None:
        self._look()
        self._records = False
        for descriptor in self._kept:
            os.close(descriptor)

    @property
    def lazy(self) -> Files:
        """Only what was synced."""
        found: Files = {}
        self._walk(self.root.stat().st_ino, "", found)
        return found

    @property
    def eager(self) -> Files:
        """The latest names, and what was synced of their files."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): self._content.get(path.stat().st_ino, b"") for path in files}

    def _walk(self, folder: int, place: str, found: Files) -> None:
        for name, (number, is_folder) in self._names.get(folder, {}).items():
            if is_folder:
                self._walk(number, f"{place}{name}/", found)
            else:
                found[place + name] = self._content.get(number, b"")

    def _fsync(self, descriptor: int) -> None:
        self._look()
        self._sync(os.dup(descriptor))
        self._look()

    def _sync(self, descriptor: int) -> None:
        self._kept.append(descriptor)
        status = os.fstat(descriptor)
        if os.path.isdir(descriptor):
            with os.scandir(descriptor) as entries:
                self._names[status.st_ino] = {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}
        else:
            self._content[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._records and event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            self._records = False
            self._look()
            self._records = True

    def _look(self) -> None:
        for state in (self.lazy, self.eager):
            if state not in self.states[-2:]:
                self.states.append(state)


def write(state: Files, folder: Path) -> Path:
    """Writes a state of a disk into a new folder."""
    for name, content in state.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder
