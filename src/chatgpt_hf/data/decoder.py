"""Decodes parquet files in a separate process, because over some broken files Arrow aborts the process that reads them.

`decoding.py` starts this file by its path, so it imports nothing of the package. Each line of standard input is a request, as JSON;
`_answer` describes what follows on standard output.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 1000
# Added for each value: a file can hold any number of empty ones in a few bytes, Python cannot.
_VALUE_BYTES = 16


class _Expands(Exception):
    """The values have more bytes than the request allows."""


def main() -> None:
    """Answers requests until standard input ends."""
    _limit("CORE", 0)
    for line in sys.stdin.buffer:
        _answer(json.loads(line), sys.stdout.buffer)


def _answer(request: dict[str, Any], out: BinaryIO) -> None:
    """Writes a line of JSON, a stream in Arrow's format, and another line of JSON.

    A line is `{}`, or says why no more follows: `{"error": "..."}`, `{"memory": "..."}` or `{"expands": true}`.

    Args:
        request: `path`; `columns`, the names of those to decode, or None for a stream without batches, which shows the schema of
            all; and limits: `most_bytes` of values, `ratio` of ordinary compression, `memory` in bytes, and `seconds` of CPU time
            for each batch.
        out: Receives the answer.
    """
    parts = _parts(request)
    schema, reason = _next(parts)
    _say(reason, out)
    if reason:
        return
    # If writing fails, the process ends: the reader of half a message would wait for the rest.
    stream = pa.ipc.new_stream(out, schema)
    while True:
        batch, reason = _next(parts)
        if batch is None:
            break
        stream.write_batch(batch)
        out.flush()
    stream.close()
    _say(reason, out)


def _next(parts: Iterator[Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the next part, None at the end; and why there is none, if it cannot be made."""
    try:
        return next(parts, None), {}
    except _Expands:
        return None, {"expands": True}
    except MemoryError as error:
        return None, {"memory": str(error)}
    # Arrow's own exceptions, and those of Python over texts, names and depths that it does not allow.
    except Exception as error:
        return None, {"error": " ".join(str(error).split()) or type(error).__name__}


def _say(reason: dict[str, Any], out: BinaryIO) -> None:
    out.write(json.dumps(reason).encode() + b"\n")
    out.flush()


def _parts(request: dict[str, Any]) -> Iterator[Any]:
    """Yields the schema of the columns, and then their batches."""
    _limit("AS", request["memory"])
    _limit_seconds(request["seconds"])
    # An open file, because pyarrow takes only names in UTF-8.
    with open(request["path"], "rb") as opened, pq.ParquetFile(opened) as file:
        names = request["columns"]
        if names is None:
            # Types may nest too deep for a stream.
            schema = file.schema_arrow
            schema.serialize()
            yield schema
            return
        # By number: a name with odd characters is not found by itself.
        schema = pa.schema([file.schema_arrow.field(place) for place in _places(file.schema_arrow, names)])
        schema.serialize()
        yield schema
        count = rows = 0
        for batch in file.iter_batches(_batch_rows(file, request["ratio"]), columns=names, use_threads=False):
            # A dictionary stores a long text once for all its rows, and a run of equal rows takes a few bytes.
            count += sum(_bytes_of(column) + _VALUE_BYTES * batch.num_rows for column in batch.columns)
            if count > request["most_bytes"]:
                raise _Expands
            # With a column `a`, Arrow also reads one whose name is `a.b`.
            yield batch.select(_places(batch.schema, names))
            rows += batch.num_rows
            _limit_seconds(request["seconds"])
        if names and rows != file.metadata.num_rows:
            raise ValueError(f"it has {rows:,} rows, and its footer says {file.metadata.num_rows:,}")


def _places(schema: pa.Schema, names: list[str]) -> list[int]:
    places = {name: place for place, name in enumerate(schema.names)}
    return [places[name] for name in names]


def _batch_rows(file: pq.ParquetFile, ratio: int) -> int:
    """Returns how many rows to decode at once: one if a column is smaller than its text by more than ordinary text can be."""
    metadata = file.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    suspicious = any(
        chunk.total_uncompressed_size > max(1 << 20, ratio * chunk.total_compressed_size) for chunk in chunks
    )
    return 1 if suspicious else _ROWS


def _bytes_of(array: pa.Array) -> int:
    """Returns the size of an array's values at any depth, each counted as often as it occurs."""
    if isinstance(array, pa.ExtensionArray):
        return _bytes_of(array.storage)
    if isinstance(array, pa.DictionaryArray):
        return array.dictionary_decode().nbytes
    if isinstance(array, pa.StructArray):
        return sum(map(_bytes_of, array.flatten()))
    if isinstance(array, pa.MapArray):
        # Keys and items are those of all rows that the array is a slice of.
        inner = slice(array.offsets[0].as_py(), array.offsets[-1].as_py())
        return _bytes_of(array.keys[inner]) + _bytes_of(array.items[inner])
    if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        return _bytes_of(array.flatten())
    return array.nbytes


def _limit_seconds(seconds: int) -> None:
    """Allows so much more CPU time, after which the system ends the process with SIGXCPU."""
    _limit("CPU", int(time.process_time()) + seconds)


def _limit(name: str, value: int) -> None:
    """Sets a soft limit, where the system has any."""
    with suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


if __name__ == "__main__":
    main()
