"""Finds and opens text files, and reports where one is broken."""

import codecs
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from ..errors import DataError

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
FORMATS = ", ".join(suffix[1:] for suffix in SUFFIXES) + " (all but parquet also with .gz or .zst)"


def format_of(path: Path) -> str | None:
    """Returns the format's suffix, without a compression suffix; None if the format is not supported."""
    name = re.sub(r"\.(gz|zst)$", "", path.name.lower())
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES and not (suffix == ".parquet" and name != path.name.lower()) else None


def is_one_document(path: Path) -> bool:
    """True if a file is one document instead of one document per row."""
    return format_of(path) in (".txt", ".md")


def source_files(source: str) -> list[Path] | None:
    """Returns the files that a path or glob names, in order; None if nothing matches.

    Raises:
        DataError: If none of them has a supported format.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):
        files = _files_below(path)
    elif os.path.exists(path):
        if format_of(path) is None:
            raise DataError(f"{source} has an unsupported file ending; supported are {FORMATS}")
        files = [path]
    elif matches := glob.glob(str(path), recursive=True):
        files = sorted({file for match in map(Path, matches) for file in _files_below(match)})
    else:
        return None
    if not files:
        raise DataError(f"{source} contains no file with a supported ending: {FORMATS}")
    return files


def _files_below(path: Path) -> list[Path]:
    """Returns a file itself, or all files below a folder, but only those with a supported format."""
    if not path.is_dir():
        return [path] if format_of(path) else []
    found = sorted(file for file in path.rglob("*") if not file.is_dir() and format_of(file))
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def open_bytes(path: Path) -> BinaryIO:
    """Opens a file to read its bytes, decompressed."""
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix.lower() == ".zst":
        return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def read_text(path: Path) -> str:
    """Returns the text of a file that is one document, with line ends converted to line feeds."""
    # One rare character makes every character of a string four bytes wide. Reading the file at once would also keep
    # narrower copies of the text before it.
    return "".join(text_chunks(path))


def text_chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Yields the characters `start` to `stop` of `read_text`, about a million at a time."""
    position = 0
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as stream:
        for chunk in iter(partial(stream.read, 1 << 20), ""):
            yield chunk[max(0, start - position) : None if stop is None else max(0, stop - position)]
            position += len(chunk)
            if stop is not None and position >= stop:
                return


def has_content(path: Path) -> bool:
    """Reads a file once; True if it is not empty. Raises `DataError` if it is unreadable, or text but not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = line = 0
    try:
        with open_bytes(path) as stream:
            if format_of(path) == ".parquet":
                return bool(stream.read(1))
            while True:
                chunk = stream.read(1 << 20)
                pending = len(decoder.getstate()[0])
                decoder.decode(chunk, final=not chunk)
                offset += len(chunk)
                line += chunk.count(b"\n")
                if not chunk:
                    return offset > 0
    except UnicodeDecodeError as error:
        line += chunk.count(b"\n", 0, max(0, error.start - pending)) + 1
        raise DataError(
            f"{path} is not UTF-8: {error.reason} at byte {offset - pending + error.start} of its text, in line {line}. "
            "Convert it, for example with iconv"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def json_fault(path: Path) -> str | None:
    """Describes where a JSON or JSON Lines file is broken; None if its JSON is fine."""
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as stream:
        text = stream.read()
    if format_of(path) == ".json":
        try:
            json.loads(text)
            return None
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # several values: JSON Lines in a file named .json
                return f"{path} is broken JSON in line {error.lineno}: {error.msg}"
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"{path} has no JSON object in line {number}"
        except json.JSONDecodeError as error:
            return f"{path} is broken JSON in line {number}: {error.msg}"
    return None
