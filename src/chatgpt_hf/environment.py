"""Behind `chatgpt-hf env`: the versions, the machine and the caches, for a bug report."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants

from .cache import cache_root, entries, free_space
from .extras import EXTRAS, missing_packages

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "trl",
    "peft",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pyarrow",
)


def environment() -> dict[str, Any]:
    """Everything that a bug report should say about an installation and its machine; nothing is sent anywhere.

    Returns:
        `versions` (None if not installed), `platform`, `cores`, `memory` in bytes, `accelerators`, `extras` with the
        packages that each lacks, and `caches`: name, folder, size and free disk space.
    """
    from . import __version__

    usable = getattr(os, "sched_getaffinity", None)
    memory = psutil.virtual_memory()
    return {
        "versions": {
            "chatgpt-hf": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "platform": platform.platform(),
        "cores": {"count": os.cpu_count(), "usable": len(usable(0)) if usable else os.cpu_count()},
        "memory": {"total": memory.total, "available": memory.available},
        "accelerators": _accelerators(),
        "extras": {name: missing_packages(name) for name in EXTRAS},
        "caches": _caches(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _accelerators() -> list[dict[str, Any]]:
    """Name and memory of each accelerator; the memory is None where torch does not tell it."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return []
    module = torch.get_device_module(kind)
    found = []
    for index in range(torch.accelerator.device_count()):
        # MPS has neither of the two.
        name = module.get_device_name(index) if hasattr(module, "get_device_name") else kind.type
        about = module.get_device_properties(index) if hasattr(module, "get_device_properties") else None
        found.append({"type": kind.type, "name": name, "memory": getattr(about, "total_memory", None)})
    return found


def _caches() -> list[dict[str, Any]]:
    # As datasets computes it; importing datasets takes a second, and fails where its installation is broken.
    data_sets = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()
    sizes = {
        "chatgpt-hf": (cache_root(), sum(entry.bytes for entry in entries(cache_root()))),
        "datasets": (data_sets, _size(data_sets)),
        "hub": (Path(constants.HF_HUB_CACHE), _size(Path(constants.HF_HUB_CACHE))),
    }
    return [
        {"name": name, "path": str(folder), "bytes": size, "free": free_space(folder)}
        for name, (folder, size) in sizes.items()
    ]


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; a link counts as a link, because the Hub's cache links to its own files."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # removed in the meantime
                continue
    return total
