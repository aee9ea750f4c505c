"""Makes rows from parquet files and data sets, whose types are those of a whole column, not of a value."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataError
from .decoding import decode_batches, decode_schema
from .files import check_regular, faults_named
from .json_rows import WrittenFloat, parse_text

_Convert = Callable[[Any], Any]

# Values that a file may hold and Python has not: years beyond 9999, unknown time zones, text that is not UTF-8, broken JSON.
_NO_VALUES = (pa.ArrowException, ValueError, OverflowError, LookupError, DataError)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a parquet file as `plain_rows` does.

    Args:
        path: The file.
        columns: Those to read, in this order; all if not given.

    Raises:
        DataError: If the file cannot be read.
    """
    with faults_named(path):
        schema = parquet_schema(path)
        found = schema.names
        names = found if columns is None else list(columns)
        counts = Counter(found)
        if twice := next((name for name in names if counts[name] > 1), None):
            raise DataError(f"{path} has two columns named {twice!r}: give each its own name")
        # By number: a name with odd characters is not found by itself.
        places = {name: place for place, name in enumerate(found)}
        chosen = pa.schema([schema.field(places[name]) for name in names])
        yield from plain_rows(chosen, partial(decode_batches, path), str(path))


def parquet_schema(path: Path) -> pa.Schema:
    """Returns the schema of a parquet file; raises `DataError` if it cannot be read."""
    check_regular(path)
    with faults_named(path):
        return decode_schema(path)


def plain_rows(
    schema: pa.Schema, batches: Callable[[Sequence[str]], Iterable[pa.RecordBatch | pa.Table]], where: str
) -> Iterator[dict[str, Any]]:
    """Yields rows of plain values, as JSON has them.

    All values of a column of structs have the keys of all of them, so keys without a value are left out, at any depth.
    Dates and times become text in ISO's format; a column whose times are all midnight has dates. A decimal number keeps
    its digits. NaN, as pandas writes a missing value, is None.

    Args:
        schema: Of the columns to read.
        batches: Returns the batches of some columns, from the beginning.
        where: The file or data set, for messages.

    Raises:
        DataError: If a column has a value that cannot be read.
    """
    timed = [field.name for field in schema if _has_times(field.type)]
    dates = set(timed)
    if timed:
        for batch in batches(timed):
            dates = {name for name in dates if _are_midnight(batch.column(name))}
            if not dates:
                break
    converts = {field.name: _convert(field.type, field.name in dates) for field in schema}
    for batch in batches(schema.names):
        columns = []
        for name, convert in converts.items():
            try:
                values = batch.column(name).to_pylist()
                plain = values if convert is None else [None if item is None else convert(item) for item in values]
            except _NO_VALUES as error:
                raise DataError(f"{where} has a value in the column {name!r} that cannot be read: {error}") from error
            columns.append(plain)
        for cells in zip(*columns, strict=True):
            yield dict(zip(converts, cells, strict=True))


def _convert(type_: pa.DataType, is_date: bool) -> _Convert | None:
    """Returns the function that makes values of a type plain; None if they are."""
    if isinstance(type_, pa.JsonType):
        return parse_text
    if isinstance(type_, pa.BaseExtensionType):
        return _convert(type_.storage_type, is_date)
    if pa.types.is_dictionary(type_):
        return _convert(type_.value_type, is_date)
    if pa.types.is_struct(type_):
        fields = {field.name: _convert(field.type, is_date) for field in type_}
        return lambda value: _without_null(value, fields)
    if pa.types.is_map(type_):
        of_key, of_item = _convert(type_.key_type, is_date), _convert(type_.item_type, is_date)
        return lambda value: {_as_key(_apply(of_key, key)): _apply(of_item, item) for key, item in value}
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        of_item = _convert(type_.value_type, is_date)
        return of_item and (lambda value: [_apply(of_item, item) for item in value])
    if pa.types.is_timestamp(type_):
        return (lambda value: value.date().isoformat()) if is_date else (lambda value: value.isoformat())
    if pa.types.is_date(type_) or pa.types.is_time(type_):
        return lambda value: value.isoformat()
    if pa.types.is_decimal(type_):
        return lambda value: WrittenFloat(str(value))
    if pa.types.is_float16(type_) or pa.types.is_float32(type_):
        # 0.1, not 0.10000000149011612.
        return lambda value: None if math.isnan(value) else WrittenFloat(str(np.float32(value)))
    if pa.types.is_float64(type_):
        return lambda value: None if math.isnan(value) else value
    return None


def _as_key(key: Any) -> str | int | float:
    """Returns a key of a mapping as JSON takes it."""
    return key if isinstance(key, (str, int, float)) else str(key)


def _apply(convert: _Convert | None, value: Any) -> Any:
    return value if value is None or convert is None else convert(value)


def _without_null(value: Mapping[str, Any], fields: Mapping[str, _Convert | None]) -> dict[str, Any]:
    return {name: _apply(fields[name], item) for name, item in value.items() if item is not None}


def _has_times(type_: pa.DataType) -> bool:
    if isinstance(type_, pa.BaseExtensionType):
        return _has_times(type_.storage_type)
    return pa.types.is_timestamp(type_) or any(
        _has_times(type_.field(index).type) for index in range(type_.num_fields)
    )


def _are_midnight(array: Any) -> bool:
    """True if all times in a column, at any depth, are midnight in no particular zone."""
    if isinstance(array, pa.ChunkedArray):
        return all(map(_are_midnight, array.chunks))
    type_ = array.type
    if pa.types.is_timestamp(type_):
        if type_.tz is not None:
            return False
        return bool(pc.all(pc.equal(array, pc.floor_temporal(array, unit="day"))).as_py() is not False)
    if pa.types.is_struct(type_):
        return all(
            _are_midnight(array.field(index)) for index in range(type_.num_fields) if _has_times(type_[index].type)
        )
    if pa.types.is_map(type_):
        return all(_are_midnight(part) for part in (array.keys, array.items) if _has_times(part.type))
    if _has_times(type_) and type_.num_fields:
        return _are_midnight(array.flatten())
    return True
