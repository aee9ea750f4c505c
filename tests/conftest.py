"""What every test may rely on: no network, no trace in the user's caches, a fixed seed, the real data."""

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

# The Hugging Face libraries read these once, when they are imported, so they are set before any test module is.
# Each process (and so each xdist worker) has a cache folder of its own: tests that load remote code or build
# data sets neither race with one another nor write to the user's caches.
_HF_HOME = tempfile.mkdtemp(prefix="chatgpt-hf-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_DATASETS_CACHE=os.path.join(_HF_HOME, "datasets"),
    HF_EVALUATE_CACHE=os.path.join(_HF_HOME, "evaluate"),
    HF_MODULES_CACHE=os.path.join(_HF_HOME, "modules"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread per worker: several workers with as many threads as there are cores only get in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"

# The first call into torch can take seconds, so a deadline per example says nothing. In continuous integration the
# examples are the same on every run; elsewhere hypothesis looks for new ones.
hypothesis.settings.register_profile("chatgpt_hf", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("chatgpt_hf")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Start every test from the same random state, whichever tests ran before it in the same process."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real text that some tests read: `$CHATGPT_HF_DATA`, or `shared/data` beside the repository.

    A test that asks for it is skipped where the folder is absent.
    """
    named = os.environ.get("CHATGPT_HF_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data: {folder} is not a folder (set CHATGPT_HF_DATA to where it is)")
    return folder
