"""Environments of their own, made once in the cache folder and again when what they should hold has changed."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from index import CACHE

# Would let an interpreter see folders of this one.
_HIDDEN = ("HF_MODULES_CACHE", "HF_HUB_CACHE", "PYTHONPATH", "TRANSFORMERS_CACHE")


def make_environment(name: str, packages: Sequence[str], constraints: Path | None = None) -> Path:
    """The interpreter of an environment that holds these packages, what they require, and nothing else.

    Args:
        name: Of the environment's folder.
        packages: As pip takes them.
        constraints: A file of exact releases.
    """
    folder = CACHE / f"venv-{name}"
    python, stamp = folder / "bin" / "python", folder / ".complete"
    options = ["-c", str(constraints)] if constraints else []
    content = "\n".join([sys.version, *packages, constraints.read_text(encoding="utf-8") if constraints else ""])
    digest = hashlib.sha256(content.encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != digest:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install(python, *options, *packages)
        stamp.write_text(digest, encoding="utf-8")
    return python


def install(python: Path, *arguments: str) -> None:
    """Runs `pip install`; Python compiles each module when it first needs it."""
    quiet = ("-qq", "--disable-pip-version-check", "--no-compile")
    subprocess.run([str(python), "-m", "pip", "install", *quiet, *arguments], check=True)


def environment_variables(home: Path | str) -> dict[str, str]:
    """This process' environment variables, offline, without paths to our folders and with a separate home for Hugging Face's caches."""
    kept = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    return {**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
