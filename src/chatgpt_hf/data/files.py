"""Finds and opens the files of a corpus or data set, and reports where one cannot be read."""

import codecs
import glob
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa

from ..errors import DataError
from ..parsing import special_kind
from .encodings import MARKS, check_encoding, encoding_by_mark, is_surely_utf8, likely_encodings, looks_like_utf16
from .remote import fetch, is_remote, remote_base, remote_files

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
FORMATS = ", ".join(suffix[1:] for suffix in SUFFIXES) + " (all but parquet also with .gz or .zst)"
# A small compressed file can fill the memory or the disk. Real text, even a log, shrinks to no less than a fiftieth;
# only files that are both larger and more repetitive than that are refused.
EXPANSION_LIMIT = 200
EXPANSION_BYTES = 1 << 30


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
        DataError: If none of them has a supported format, or a URL names nothing that can be read.
        MissingDependency: If the package that reads a kind of URL is not installed.
    """
    if is_remote(source):
        files = [file for file in remote_files(source) if format_of(file) and not _is_hidden(file)]
        if not files:
            raise DataError(f"{source} contains no file with a supported ending: {FORMATS}")
        return files
    path = Path(source).expanduser()
    try:
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
    except (OSError, ValueError) as error:  # a folder that vanishes meanwhile; a zero byte in the name
        raise DataError(f"{source!r} cannot be read: {error}") from error
    if not files:
        raise DataError(f"{source} contains no file with a supported ending: {FORMATS}")
    return files


def _is_hidden(file: Path) -> bool:
    base = remote_base(file)
    return base is not None and any(part.startswith(".") for part in file.relative_to(base).parts)


def _files_below(path: Path) -> list[Path]:
    """Returns a file itself, or all files below a folder, but only those with a supported format."""
    if not path.is_dir():
        return [path] if format_of(path) else []
    found = sorted(file for file in path.rglob("*") if not file.is_dir() and format_of(file))
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]


@contextmanager
def faults_named(path: Path, encoding: str | None = None) -> Iterator[None]:
    """Turns the errors of reading a file into a `DataError` that names it and, if it is not UTF-8, the place."""
    try:
        yield
    except UnicodeError as error:
        raise DataError(_encoding_fault(path, encoding) or f"{path} cannot be decoded: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read: it does not exist, or no longer") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def check_regular(path: Path) -> None:
    """Raises `DataError` if a path is a folder, pipe, socket or device: reading one may never end.

    Of a source that is a URL, this fetches the file.
    """
    fetch(path)
    with faults_named(path):
        kind = special_kind(path)
    if kind is not None:
        raise DataError(f"{path} cannot be read: it is {kind}, not a file")


def open_bytes(path: Path) -> BinaryIO:
    """Opens a regular file to read its bytes, decompressed.

    Raises:
        DataError: If it is something other than a regular file; when read, if it expands beyond all measure.
    """
    check_regular(path)
    if path.suffix.lower() == ".gz":
        return _limited(cast(BinaryIO, gzip.open(path)), path)
    if path.suffix.lower() == ".zst":
        return _limited(cast(BinaryIO, pa.input_stream(str(path), compression="zstd")), path)
    return path.open("rb")


def _limited(stream: BinaryIO, path: Path) -> BinaryIO:
    return io.BufferedReader(cast(io.RawIOBase, _Decompressed(stream, path)), 1 << 18)


class Expansion:
    """Counts what is decompressed from a file, up to a limit.

    Attributes:
        limit: The most bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.limit = max(EXPANSION_BYTES, EXPANSION_LIMIT * path.stat().st_size)
        self._count = 0

    def add(self, count: int) -> None:
        """Raises `DataError` if these bytes are too many."""
        self._count += count
        if self._count > self.limit:
            raise self.error()

    def error(self) -> DataError:
        """Returns the error of a file that has more bytes than the limit."""
        return DataError(
            f"{self._path} expands to more than {self.limit >> 20} MiB, over {EXPANSION_LIMIT} times its size, which "
            "no ordinary text does: decompress it yourself if you trust it"
        )


class _Decompressed(io.RawIOBase):
    """Reads a compressed stream up to a limit."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._expansion = Expansion(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._expansion.add(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_text(path: Path, encoding: str | None = None, newline: str | None = None) -> TextIO:
    """Opens a file to read its text, decompressed and without a byte order mark.

    Args:
        path: The file.
        encoding: Its encoding, UTF-8 if not given. A byte order mark at the file's beginning outweighs both.
        newline: As for `open`.
    """
    with faults_named(path):
        stream = open_bytes(path)
        buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
        return io.TextIOWrapper(buffered, encoding=_encoding(buffered, path, encoding), newline=newline)


def _encoding(stream: io.BufferedReader, path: Path, encoding: str | None) -> str:
    """Returns the encoding to read a stream with; reads nothing of it."""
    check_encoding(encoding)
    head = stream.peek(1024)
    if (marked := encoding_by_mark(head)) is not None:
        return marked
    if encoding is not None:
        if codecs.lookup(encoding).name == "utf-8":
            return "utf-8-sig"
        if is_surely_utf8(head):
            # Most encodings would read it without an error, as other characters.
            stream.close()
            raise DataError(
                f"{path} is UTF-8, not {encoding}: leave out --encoding, or give it only for the other files"
            )
        return encoding
    if (wide := looks_like_utf16(head)) is not None:
        stream.close()
        raise DataError(f"{path} is not UTF-8 but looks like {wide.upper()}: add --encoding {wide}")
    return "utf-8-sig"


def read_text(path: Path, encoding: str | None = None) -> str:
    """Returns the text of a file that is one document, with line ends converted to line feeds."""
    # One rare character makes every character of a string four bytes wide. Reading the file at once would also keep
    # narrower copies of the text before it.
    return "".join(text_chunks(path, encoding=encoding))


def text_chunks(path: Path, start: int = 0, stop: int | None = None, *, encoding: str | None = None) -> Iterator[str]:
    """Yields the characters `start` to `stop` of `read_text`, about a million at a time."""
    position = 0
    with faults_named(path, encoding), open_text(path, encoding) as stream:
        for chunk in iter(partial(stream.read, 1 << 20), ""):
            yield chunk[max(0, start - position) : None if stop is None else max(0, stop - position)]
            position += len(chunk)
            if stop is not None and position >= stop:
                return


def has_content(path: Path, encoding: str | None = None) -> bool:
    """Reads a file once; True if it is not empty. Raises `DataError` if it is unreadable, or text but not UTF-8."""
    if format_of(path) == ".parquet":
        return not is_empty(path)
    if fault := _encoding_fault(path, encoding):
        raise DataError(fault)
    return not is_empty(path)


def is_empty(path: Path) -> bool:
    """True if a file has no bytes, or only a byte order mark; reads only its beginning."""
    with faults_named(path), open_bytes(path) as stream:
        return stream.read(5) in (b"", *(mark for mark, _ in MARKS))


def _encoding_fault(path: Path, encoding: str | None) -> str | None:
    """Reads a file and describes the first place that its encoding does not allow; None if there is none."""
    offset = line = 0
    with faults_named(path), open_bytes(path) as stream:
        buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
        name = _encoding(buffered, path, encoding)
        plain = "utf-8" if name == "utf-8-sig" else name
        decoder = codecs.getincrementaldecoder(plain)()
        while True:
            chunk = buffered.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                found = getattr(error, "start", pending) - pending
                line += chunk.count(b"\n", 0, max(0, found)) + 1
                reason = getattr(error, "reason", str(error))
                place = f"{reason} at byte {offset + found} of its text, in line {line}"
                break
            offset += len(chunk)
            line += chunk.count(b"\n")
            if not chunk:
                return None
    fault = f"{path} is not {plain.upper()}: {place}"
    with faults_named(path), open_bytes(path) as stream:
        likely = [item for item in likely_encodings(stream, offset + found) if item[0] != plain]
    if not likely:
        return f"{fault}. Convert it, for example with iconv"
    (best, piece), *others = likely
    also = "".join(f", or --encoding {name} ({piece!r})" for name, piece in others)
    return f"{fault}. Add --encoding {best}, if {piece!r} is what it says there{also}"
