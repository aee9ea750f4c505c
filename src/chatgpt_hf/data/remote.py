"""Files in object stores and on the Hub: listed through fsspec, and fetched into the cache when they are first opened.

The rest of the package sees paths in the cache, `remote/<key>/<name>`, which exist once somebody has opened them. The key
stands for names, sizes and versions of all files that a source names, so that changed files are fetched again. A stream
fetches file after file, and a process only those that it reads.
"""

import errno
import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec

from ..cache import ABOUT_NAME, REMOTE, building, cache_root, hold
from ..errors import DataError
from ..extras import require
from ..files import make_folder, write_atomically
from ..parsing import parse_json, read_file

# The package that reads each kind of path, if it is not part of the core. The Hub's comes with transformers.
_PACKAGES: dict[str, str | None] = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": None}
# What says that the content of a file is the same; each store has some of these.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "mtime", "LastModified")
# Sources that this process has listed. Their handles keep others from removing the files until it ends.
_IN_USE = ExitStack()
_held: set[Path] = set()


def is_remote(source: str) -> bool:
    """True if a source is a URL, such as `s3://bucket/folder/*.jsonl`."""
    return "://" in source


def remote_files(source: str) -> list[Path]:
    """Returns the paths in the cache of the files that a URL names: a file, all files of a folder, or those of a glob.

    Raises:
        DataError: If the kind of URL is not supported, or it names nothing that can be read.
        MissingDependency: If the package that reads it is not installed.
    """
    protocol = source.partition("://")[0]
    if protocol not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES)
        raise DataError(
            f"{source} is a kind of path that is not read: supported are {known} and files of this machine"
        )
    if (package := _PACKAGES[protocol]) is not None:
        require(f"Reading {protocol}://", package)
    try:
        system, path = fsspec.url_to_fs(source)
        found = _listed(system, path)
    except FileNotFoundError as error:
        raise DataError(f"{source} does not exist, or you may not read it") from error
    # Credentials, network, a bucket in another region: each store raises its own exceptions.
    except Exception as error:
        raise DataError(f"{source} cannot be read: {error!r:.300}") from error
    if not found:
        raise DataError(f"{source} does not exist, or names no files")
    base = _base(path, found)
    files = {
        name.removeprefix(base).lstrip("/"): [info.get("size"), *(str(info.get(key)) for key in _VERSIONS)]
        for name, info in sorted(found.items())
    }
    if bad := next((name for name in files if ".." in Path(name).parts), None):
        raise DataError(f"{source} has a file named {bad!r}, which no folder can hold")
    about = {"protocol": protocol, "base": base, "files": files}
    key = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = cache_root() / REMOTE / key
    record = folder / ABOUT_NAME
    if not record.exists():
        make_folder(folder)
        text = json.dumps(about, indent=1) + "\n"
        write_atomically(record, lambda file: file.write_text(text, encoding="utf-8"))
    if record not in _held and (handle := hold(record)) is not None:
        _held.add(record)
        _IN_USE.enter_context(handle)
    return [folder / "files" / name for name in files]


def remote_base(file: Path) -> Path | None:
    """Returns the folder that holds all files of the source of a file; None if it is not from a URL."""
    root = cache_root() / REMOTE
    return root / file.relative_to(root).parts[0] / "files" if file.is_relative_to(root) else None


def fetch(file: Path) -> None:
    """Makes a path that `remote_files` returned exist; does nothing for any other.

    Raises:
        DataError: If the file cannot be fetched.
        OutputError: If the cache cannot be written, or its disk is full.
    """
    base = remote_base(file)
    if base is None or file.exists():
        return
    with building(file):
        # Another process may have fetched it while this one waited.
        if file.exists():
            return
        about = parse_json(read_file(base.parent / ABOUT_NAME))
        url = f"{about['protocol']}://{about['base']}/{file.relative_to(base).as_posix()}"

        def get(target: Path) -> None:
            try:
                system, path = fsspec.url_to_fs(url)
                system.get_file(path, str(target))
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise DataError(f"{url} cannot be fetched: {error!r:.300}") from error

        write_atomically(file, get)


def _listed(system: Any, path: str) -> dict[str, dict[str, Any]]:
    """Names and facts of files."""
    if any(letter in path for letter in "*?["):
        found = system.glob(path, detail=True)
    elif system.isdir(path):
        found = system.find(path, detail=True)
    else:
        found = {path: system.info(path)}
    return {name: info for name, info in found.items() if info.get("type") != "directory"}


def _base(path: str, found: dict[str, Any]) -> str:
    """The folder that all names are below: the one that was named, or what a glob has before its first wildcard."""
    if path in found:
        return path.rpartition("/")[0]
    named = path.rstrip("/")
    while any(letter in named for letter in "*?["):
        named = named.rpartition("/")[0]
    return named
