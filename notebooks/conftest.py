"""Notebooks run as a reader's kernel would run them, on this working tree's package, and leave nothing behind."""

import os
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest

FOLDER = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Runs a notebook without the network, with a temporary folder for all that it and the libraries write.

    A kernel that takes long to end is killed before it has deleted its own.
    """
    before = set(FOLDER.iterdir())
    with TemporaryDirectory(prefix="notebook-", ignore_cleanup_errors=True) as temporary:
        changes = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent / "src"), os.environ.get("PYTHONPATH")])),
            "TMPDIR": temporary,
            "HF_HOME": f"{temporary}/huggingface",
            "IPYTHONDIR": f"{temporary}/ipython",
            "JUPYTER_RUNTIME_DIR": f"{temporary}/jupyter",
            "HF_HUB_OFFLINE": "1",
            # The tests' own backend draws into files.
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }
        with patch.dict(os.environ, changes):
            yield
    left = set(FOLDER.iterdir()) - before
    assert not left, f"{item.path.name} leaves {', '.join(path.name for path in left)} beside the notebooks"
