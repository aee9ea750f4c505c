"""What the package index has of transformers: its releases, and the tests that its source distribution carries."""

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
    """The page of the project, and every file of it, as the simple API tells in JSON (PEP 691)."""
    page = (os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple").rstrip("/") + "/transformers/"
    request = Request(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urlopen(request, timeout=120) as answer:
        return page, json.load(answer)["files"]


def _sdist_name(version: Version | str) -> str:
    return f"transformers-{version}.tar.gz"


def releases() -> list[Version]:
    """The final releases that the index has a source distribution of and that were not taken back, oldest first."""
    names = {file["filename"] for file in _files()[1] if not file.get("yanked")}
    wheels = [name.split("-")[1] for name in names if name.endswith(".whl")]
    versions = {Version(text) for text in wheels if _sdist_name(text) in names}
    return sorted(version for version in versions if not version.is_prerelease)


def fetch_tests(version: str) -> Path:
    """The folder that holds transformers' own `tests` of a release, fetched when it is not in the cache.

    Raises:
        FileNotFoundError: When the index has no source distribution of the release.
        ValueError: When what came is not what the index says that it has, by its SHA-256.
    """
    folder = CACHE / f"transformers-{version}"
    if (folder / "tests" / "test_modeling_common.py").is_file():
        return folder
    page, files = _files()
    found = next((file for file in files if file["filename"] == _sdist_name(version)), None)
    if found is None:
        raise FileNotFoundError(
            f"{page} has no {_sdist_name(version)}: install a release of transformers that it has."
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
