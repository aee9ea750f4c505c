"""Finds releases of transformers on the package index, and fetches the tests from their source distributions."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from packaging.version import Version

from chatgpt_hf.data.prepare import cache_root
from chatgpt_hf.files import atomic_folder

CACHE = cache_root() / "conformance"


def _files() -> tuple[str, list[dict[str, Any]]]:
    """The project's page and all its files, from the simple API in JSON (PEP 691)."""
    page = (os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple").rstrip("/") + "/transformers/"
    request = Request(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urlopen(request, timeout=120) as answer:
        return page, json.load(answer)["files"]


def _sdist_name(version: Version | str) -> str:
    return f"transformers-{version}.tar.gz"


def releases() -> list[Version]:
    """The final releases with a source distribution that were not yanked, oldest first."""
    names = {file["filename"] for file in _files()[1] if not file.get("yanked")}
    wheels = [name.split("-")[1] for name in names if name.endswith(".whl")]
    versions = {Version(text) for text in wheels if _sdist_name(text) in names}
    return sorted(version for version in versions if not version.is_prerelease)


def fetch_tests(version: str) -> Path:
    """Fetches the `tests` of a transformers release, unless they are cached; returns the folder that holds them.

    Raises:
        FileNotFoundError: When the index has no source distribution of the release.
        ValueError: When the file's SHA-256 differs from the one on the index.
    """
    folder = CACHE / f"transformers-{version}"
    if (folder / "tests" / "test_modeling_common.py").is_file():
        return folder
    page, files = _files()
    found = next((file for file in files if file["filename"] == _sdist_name(version)), None)
    if found is None:
        raise FileNotFoundError(
            f"{page} has no {_sdist_name(version)}: install a release of transformers that the index has."
        )
    with urlopen(urljoin(page, found["url"]), timeout=600) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != found["hashes"]["sha256"]:
        raise ValueError(f"{found['url']} is not the file that {page} describes: its SHA-256 differs. Fetch it again.")
    with atomic_folder(folder) as temporary, tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.parts[1:2] == ("tests",) and path.suffix == ".py":
                member.name = str(PurePosixPath(*path.parts[1:]))
                archive.extract(member, temporary, filter="data")
    return folder
