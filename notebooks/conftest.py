"""Notebooks run as a reader's kernel would run them, on this working tree's package, and leave nothing behind."""

import os
from collections.abc import Generator
from pathlib import Path
from unittest.mock import patch

import pytest

FOLDER = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Runs a notebook with folders of its own for what it and the libraries write, and looks what is left.

    The notebook's own folder for scratch has to be gone, and nothing may lie beside the notebooks that was not there.
    """
    temporary = item.config._tmp_path_factory.mktemp(item.path.stem)  # type: ignore[attr-defined]
    scratch, home = temporary / "scratch", temporary / "home"
    scratch.mkdir()
    source = str(FOLDER.parent / "src")
    changes = {
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
        "TMPDIR": str(scratch),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        # The tests' own backend draws into files.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    before = set(FOLDER.iterdir())
    with patch.dict(os.environ, changes):
        yield
    left = [*scratch.iterdir(), *(set(FOLDER.iterdir()) - before)]
    assert not left, f"{item.path.name} leaves {', '.join(path.name for path in left)}"
