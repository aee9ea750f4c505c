"""Decodes parquet files in another process and passes their values on, so that no file can end or fill this one.

Over some broken files Arrow's code in C++ aborts, and the numbers in a file's footer can ask for any amount of memory.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import DataError, one_line
from .files import EXPANSION_LIMIT, Expansion

# Address space for decoding: this, and so many times the file's size.
_MEMORY = 4 << 30
_MEMORY_TIMES = 4
# CPU time for the schema or one batch.
_SECONDS = 60
# A process takes 0.15 s to start and about 60 MB.
_MOST_IDLE = 2
_ENVIRONMENT = {
    # Other allocators reserve addresses that they do not use.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def decode_schema(path: Path) -> pa.Schema:
    """Returns the schema of a parquet file.

    Raises:
        DataError: If the file cannot be read.
    """
    parts = _decode(path, None)
    schema = next(parts)
    # To its end, after which the process can decode another file.
    list(parts)
    return schema


def decode_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of some columns of a parquet file, in batches.

    Raises:
        DataError: If the file cannot be read, or its values are too large for a file of its size.
    """
    parts = _decode(path, columns)
    next(parts)
    yield from parts


def _decode(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    """Yields the schema, and then the batches."""
    expansion = Expansion(path)
    memory = _MEMORY + _MEMORY_TIMES * path.stat().st_size
    request = {
        "path": os.path.abspath(path),
        "columns": columns if columns is None else list(columns),
        "most_bytes": expansion.limit,
        "ratio": EXPANSION_LIMIT,
        "memory": memory,
        "seconds": _SECONDS,
    }
    decoder = _Decoder.idle()
    whole = False
    try:
        reason = decoder.begin(request)
        if not reason:
            yield from decoder.stream()
            reason = decoder.line()
        whole = True
    # Its process ended, or sent what this one has no memory for.
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {decoder.end(error)}") from error
    finally:
        decoder.release(whole)
    if "expands" in reason:
        raise expansion.error()
    if "memory" in reason:
        raise DataError(
            f"{path} cannot be read as parquet: it takes more than {memory >> 20:,} MiB of memory ({reason['memory']})"
        )
    if reason:
        raise DataError(f"{path} cannot be read as parquet: {reason['error']}")


class _Decoder:
    """A process that decodes one file after another."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        try:
            self._process = subprocess.Popen(
                # `-P`: the folder of this file has modules with common names.
                [sys.executable, "-P", str(Path(__file__).with_name("decoder.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # What Arrow says when it aborts.
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
                # Ctrl-C is for this process, which may still need rows before it stops.
                start_new_session=True,
            )
        except OSError as error:
            raise DataError(f"The process that decodes parquet files cannot be started: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    @classmethod
    def idle(cls) -> "_Decoder":
        """Returns one that waits for a request, or else a new one."""
        while True:
            try:
                decoder = _idle.pop()
            except IndexError:
                return cls()
            # After a fork, those of the parent are not ours.
            if decoder._owner == os.getpid():
                if decoder._process.poll() is None:
                    return decoder
                decoder._close()

    def begin(self, request: dict[str, Any]) -> dict[str, Any]:
        """Asks for a file; returns why it cannot be read, `{}` if a stream follows."""
        self._stdin.write(json.dumps(request).encode() + b"\n")
        self._stdin.flush()
        return self.line()

    def line(self) -> dict[str, Any]:
        """Returns a line of the answer; raises `ValueError` if the process has ended."""
        return dict(json.loads(self._stdout.readline()))

    def stream(self) -> Iterator[Any]:
        """Yields the schema, and then the batches."""
        reader = pa.ipc.open_stream(self._stdout)
        yield reader.schema
        yield from reader

    def end(self, error: Exception) -> str:
        """Lets the process end, and returns why it did not answer to the end.

        Args:
            error: What was raised over its answer.
        """
        with suppress(OSError):
            self._stdin.close()
        while self._stdout.read(1 << 20):
            pass
        code = self._process.wait()
        if code == 0:
            return one_line(error)
        if code > 0:
            return f"the process that decodes it ended with code {code}"
        name = signal.Signals(-code).name
        if name == "SIGXCPU":
            return f"a part of it takes more than {_SECONDS} seconds of CPU time"
        if name == "SIGKILL":
            return "the process that decodes it was killed, perhaps because the machine has too little memory"
        return f"it is damaged in a way that makes Arrow's reader crash ({name}). Write or download it again"

    def release(self, whole: bool) -> None:
        """Keeps the process for the next file if it has answered as a whole; or else ends it."""
        if self._owner != os.getpid():
            return
        if whole and len(_idle) < _MOST_IDLE:
            _idle.append(self)
        else:
            self._close()

    def _close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        with suppress(OSError):
            self._stdin.close()


_idle: list[_Decoder] = []


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().release(whole=False)
