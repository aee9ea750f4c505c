import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatgpt_hf.data import files
from chatgpt_hf.data.columns import load_file
from chatgpt_hf.data.tables import read_rows
from chatgpt_hf.errors import DataError


def stored(tmp_path: Path, array: pa.Array, **options: Any) -> Path:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": array}), path, **options)
    return path


def json_array(*texts: str) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (pa.array([2**60], pa.timestamp("us")), "out of range"),
        (pa.array([2**31 - 1], pa.date32()), "days"),
        (pa.array([0], pa.timestamp("us", "Mars/Olympus")), "Mars/Olympus"),
        (pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")), "utf-8"),
        (json_array("{"), "Expecting"),
        (json_array("[" * 5000), "more than 200 deep"),
        (json_array('"\\ud800"'), "half of a surrogate pair"),
    ],
)
def test_values_that_python_has_not(tmp_path: Path, array: pa.Array, said: str) -> None:
    path = stored(tmp_path, array)
    for read in (lambda: list(read_rows(path)), lambda: load_file(path)):
        with pytest.raises(
            DataError, match=rf"a\.parquet has a value in the column 'a' that cannot be read: .*{said}"
        ):
            read()


@pytest.mark.parametrize(
    "array",
    [
        pa.array([datetime.timedelta(3)]),
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))),
        pa.array([[(b"\xff", 1)]], pa.map_(pa.binary(), pa.int8())),
        pa.array([{"a": b"\xff"}]),
        pa.array([Decimal("1e30")], pa.decimal256(76, 0)),
    ],
    ids=lambda array: str(array.type),
)
def test_values_without_a_form_in_json_are_text(tmp_path: Path, array: pa.Array) -> None:
    try:
        path = stored(tmp_path, array)
    except pa.ArrowNotImplementedError:
        pytest.skip("parquet has no such type")
    assert load_file(path)["a"][0]


def test_metadata_of_datasets_that_are_broken(tmp_path: Path) -> None:
    for note in (b"{", b"\xff", b'{"info": {"features": {"a": {"_type": "Nothing"}}}}'):
        table = pa.table({"a": [1]}).replace_schema_metadata({b"huggingface": note})
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet has metadata of `datasets` that cannot be read"):
            load_file(tmp_path / "a.parquet")


def test_a_column_with_a_zero_byte_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "text\\u0000": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl has a column with a zero byte in its name"):
        load_file(path)


@pytest.mark.parametrize("text", ["a" * (1 << 20), "a"], ids=["long text", "many rows"])
def test_a_small_parquet_file_with_endless_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(files, "EXPANSION_BYTES", 1 << 20)
    array = pa.DictionaryArray.from_arrays(pa.array([0] * (99 if len(text) > 1 else 1_000_000), pa.int8()), [text])
    path = stored(tmp_path, array, compression="zstd", store_schema=False)
    assert path.stat().st_size < 5000
    with pytest.raises(DataError, match=r"a\.parquet expands to more than 1 MiB, over 200 times its size"):
        for _ in read_rows(path):
            pass
