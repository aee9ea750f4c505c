"""Parquet files that would end or fill the process that decodes them, and the process that does it instead."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatgpt_hf.data import decoding, files
from chatgpt_hf.data.arrow_rows import read_parquet
from chatgpt_hf.data.columns import load_file
from chatgpt_hf.data.corpus import load_corpus, stream_corpus
from chatgpt_hf.data.decoding import decode_batches, decode_schema
from chatgpt_hf.data.tables import read_rows
from chatgpt_hf.errors import DataError

ROWS = 77


def parquet(*columns: Any, names: tuple[str, ...] = ("text", "b", "c"), **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(list(columns), names=names[: len(columns)]), stream, **options)
    return stream.getvalue()


def with_footer(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A file whose footer is changed: `footer, its length in 4 bytes, PAR1`."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = change(content[start:-8])
    assert footer != content[start:-8]
    return content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def number(value: int) -> bytes:
    """A whole number as a footer has it."""
    rest, out = (value << 1) ^ (value >> 63), bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])


def crashing() -> bytes:
    """A file whose statistics count repeated values in a column that has none, over which Arrow 26 aborts the process."""
    # Two lists of numbers, for repetitions (empty) and definitions.
    return with_footer(
        parquet(["a", "b"]), lambda footer: footer.replace(b"\x19\x06\x19\x26", b"\x19\x26\x00\x02\x19\x26")
    )


@pytest.fixture
def crash(tmp_path: Path) -> Path:
    path = tmp_path / "crash.parquet"
    path.write_bytes(crashing())
    return path


def test_the_file_ends_a_process_that_decodes_it(crash: Path) -> None:
    """Without this, the tests below show nothing. If a later Arrow refuses the file, they need another one."""
    code = "import sys, pyarrow.parquet as pq; pq.ParquetFile(sys.argv[1]).metadata.row_group(0).column(0)"
    process = subprocess.run([sys.executable, "-I", "-c", code, str(crash)], capture_output=True)
    assert process.returncode == -signal.SIGABRT, process.stderr


def stream(path: str) -> None:
    for row in stream_corpus(path)["train"]:
        assert row


@pytest.mark.parametrize(
    "read", [lambda path: list(read_rows(Path(path))), lambda path: load_file(Path(path)), load_corpus, stream]
)
def test_a_crash_of_arrow_is_one_line(crash: Path, read: Callable[[str], object]) -> None:
    with pytest.raises(DataError) as error:
        read(str(crash))
    assert str(error.value) == (
        f"{crash} cannot be read as parquet: it is damaged in a way that makes Arrow's reader crash (SIGABRT). Write or download "
        "it again"
    )


@pytest.mark.parametrize("command", ["pretrain", "sft", "finetune"])
def test_a_crash_of_arrow_on_the_command_line(refused: Callable[..., str], crash: Path, command: str) -> None:
    message = refused("data", "preview", crash, "--for", command)
    assert message.startswith(
        f"{crash} cannot be read as parquet: it is damaged in a way that makes Arrow's reader crash"
    )
    assert message.count("\n") == 1


def test_a_broken_file_among_others(crash: Path, caplog: pytest.LogCaptureFixture) -> None:
    (crash.parent / "whole.parquet").write_bytes(parquet(["a document", "another"]))
    for load in (load_corpus, stream_corpus):
        rows = load(str(crash.parent), skip_broken_files=True)["train"]
        assert [row["text"] for row in rows] == ["a document", "another"]
        assert "crash.parquet cannot be read as parquet" in caplog.text
        caplog.clear()


# Numbers in the footer and what is said over each wrong one; None if Arrow does not need it.
LIES: dict[str, dict[int, str | None]] = {
    "num_rows": {1 << 40: "its footer says 1,099,511,627,776", -1: "Negative size"},
    "num_values": {1 << 40: "its footer says 1,099,511,627,776", -1: "Negative size"},
    "total_compressed_size": {
        1 << 62: "Invalid column",
        -1: "Invalid column",
        0: "it has 0 rows, and its footer says 77",
    },
    "total_uncompressed_size": {1 << 62: None, -1: None},
    "data_page_offset": {-5: "Invalid column", 0: "Deserializing page header failed"},
    "dictionary_page_offset": {1 << 50: "must be before data page", -5: "must be before", 3: "page header failed"},
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in LIES.items() for value in values])
def test_footers_that_lie(tmp_path: Path, field: str, value: int) -> None:
    content = parquet([f"text {index}" for index in range(ROWS)])
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(0)
    # Of rows: of the file, of its group, and as values of the column.
    true = ROWS if field in ("num_rows", "num_values") else getattr(column, field)
    tag = b"\x26" if field.endswith("offset") else b"\x16"
    path = tmp_path / "a.parquet"
    path.write_bytes(with_footer(content, lambda footer: footer.replace(tag + number(true), tag + number(value))))
    said = LIES[field][value]
    if said is None:
        assert len(list(read_rows(path))) == ROWS
    else:
        with pytest.raises(DataError, match=rf"a\.parquet cannot be read as parquet: .*{said}"):
            list(read_rows(path))


def lying_page(whole: int, stored: int, compression: str) -> bytes:
    """A file with a page whose header has these sizes, decompressed and stored."""
    content = parquet(["a text"] * 2, use_dictionary=False, compression=compression)
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(0)
    start, size = column.data_page_offset, column.total_compressed_size
    # Its kind, 0, and the two sizes, each in less than 64.
    assert content[start : start + 3] == b"\x15\x00\x15"
    assert content[start + 4] == 0x15
    header = b"\x15\x00\x15" + number(whole) + b"\x15" + number(stored)
    sizes = number(size), number(size + len(header) - 6)
    grown = content[:start] + header + content[start + 6 :]
    return grown if sizes[0] == sizes[1] else with_footer(grown, lambda footer: footer.replace(*sizes))


@pytest.mark.parametrize("sizes", [(2**31 - 1, 20), (20, 2**31 - 1), (-1, 20), (20, -1), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_pages_that_lie(tmp_path: Path, sizes: tuple[int, int], compression: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(lying_page(*sizes, compression))
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet: "):
        list(read_rows(path))


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(lying_page(2**31 - 1, 20, "zstd"))
    monkeypatch.setattr(decoding, "_MEMORY", 1 << 30)
    with pytest.raises(
        DataError, match=r"a\.parquet cannot be read as parquet: it takes more than 1,024 MiB of memory \(m"
    ):
        list(read_rows(path))


def test_text_that_is_longer_than_its_page(tmp_path: Path) -> None:
    content = parquet(["a text"] * 2, use_dictionary=False, compression="none")
    path = tmp_path / "a.parquet"
    for length in (7 + 4 + 6 + 1, 2**31 - 1, 2**32 - 1):
        path.write_bytes(
            content.replace((6).to_bytes(4, "little") + b"a text", length.to_bytes(4, "little") + b"a text", 1)
        )
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet: "):
            list(read_rows(path))


@pytest.mark.parametrize("compression", ["snappy", "gzip", "brotli", "zstd", "lz4"])
def test_pages_that_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    monkeypatch.setattr(files, "EXPANSION_BYTES", 1 << 20)
    monkeypatch.setattr(decoding, "EXPANSION_LIMIT", 5)
    monkeypatch.setattr(files, "EXPANSION_LIMIT", 5)
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(["a" * (1 << 20)] * 20, use_dictionary=False, compression=compression))
    with pytest.raises(DataError, match=r"a\.parquet expands to more than \d+ MiB, over 5 times its size"):
        list(read_rows(path))


LONG = pa.array(["a" * (1 << 20)]).dictionary_encode()
MANY = pa.DictionaryArray.from_arrays(pa.array([0] * 99, pa.int32()), LONG.dictionary)
REPEATED = {
    "dictionary": MANY,
    "in structs": pa.StructArray.from_arrays([MANY], ["a"]),
    "in lists": pa.ListArray.from_arrays(list(range(100)), MANY),
    "in maps": pa.MapArray.from_arrays(list(range(100)), pa.array(["key"] * 99), MANY),
    "nothing": pa.nulls(100_000),
    "empty structs": pa.array([{"a": None}] * 100_000, pa.struct([("a", pa.null())])),
    "empty lists": pa.array([[]] * 100_000, pa.list_(pa.int8())),
    "equal numbers": pa.array([7] * 1_000_000, pa.int8()),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_values_that_are_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(files, "EXPANSION_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(REPEATED[kind], compression="zstd"))
    assert path.stat().st_size < 5000
    with pytest.raises(DataError, match=r"a\.parquet expands to more than 1 MiB"):
        for _ in read_rows(path):
            pass


def nested(depth: int, leaf: pa.DataType) -> pa.Array:
    array = pa.array([1], leaf)
    for _ in range(depth):
        array = pa.ListArray.from_arrays([0, 1], array)
    return array


@pytest.mark.parametrize("depth", [10, 40, 60, 500])
def test_deep_lists(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(nested(depth, pa.int8())))
    if depth < 50:
        assert str(next(read_rows(path))["text"]) == "[" * depth + "1" + "]" * depth
        return
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet: "):
        list(read_rows(path))


def test_many_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    names = tuple(f"column {index}" for index in range(5000))
    path.write_bytes(parquet(*[pa.array(["x"])] * 5000, names=names))
    assert list(read_rows(path)) == [dict.fromkeys(names, "x")]
    assert load_corpus(str(path), text_column="column 4999")["train"]["text"] == ["x"]


def test_columns_in_any_order_and_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(["1"], ["2"], ["3"], names=("a", "a.b", "c")))
    for columns in (["c", "a"], ["a", "c"], ["a"], ["a.b", "a"], ["c", "a.b", "a"]):
        (row,) = read_parquet(path, columns)
        assert list(row.items()) == [(name, {"a": "1", "a.b": "2", "c": "3"}[name]) for name in columns]


@pytest.mark.parametrize("suffix", ["arrow", "feather", "orc", "ipc", "parquet.gz", "pq"])
def test_formats_that_are_not_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(parquet(["a"]))
    with pytest.raises(DataError, match="has an unsupported file ending; supported are txt, md, jsonl"):
        load_corpus(str(path))


# --- the process -------------------------------------------------------------------------------------------------------------------


def process_ids() -> list[int]:
    """Of the processes that wait for a file."""
    return [decoder._process.pid for decoder in decoding._idle]


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file of more rows than a pipe holds."""
    path = tmp_path / "numbers.parquet"
    path.write_bytes(parquet(pa.array(range(300_000)), compression="none"))
    return path


def test_one_process_decodes_many_files(tmp_path: Path, crash: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(["a", "b"]))
    assert list(read_rows(path)) == [{"text": "a"}, {"text": "b"}]
    first = process_ids()
    broken = tmp_path / "b.parquet"
    broken.write_bytes(b"PAR1")
    for _ in range(3):
        load_file(path)
        with pytest.raises(DataError):
            list(read_rows(broken))
        assert decode_schema(path).names == ["text"]
    assert process_ids() == first
    with pytest.raises(DataError):
        list(read_rows(crash))
    assert list(read_rows(path)) == [{"text": "a"}, {"text": "b"}]
    assert process_ids()[-1] not in first


def test_files_are_read_side_by_side_and_in_part(numbers: Path) -> None:
    readers = [decode_batches(numbers, ["text"]) for _ in range(4)]
    for start in (0, 1000):
        for reader in readers:
            assert next(reader)["text"][0].as_py() == start
    # One that is not read to its end.
    reader = readers.pop()
    del reader
    assert [sum(batch.num_rows for batch in reader) for reader in readers] == [298_000] * 3
    assert len(process_ids()) <= decoding._MOST_IDLE
    assert sum(batch.num_rows for batch in decode_batches(numbers, ["text"])) == 300_000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SIGXCPU", "a part of it takes more than 60 seconds of CPU time"),
        ("SIGKILL", "was killed, perhaps because the machine has too little memory"),
        ("SIGSEGV", r"makes Arrow's reader crash \(SIGSEGV\)"),
    ],
)
def test_a_process_that_ends_meanwhile(numbers: Path, name: str, said: str) -> None:
    decode_schema(numbers)
    process = process_ids()[-1]
    reader = decode_batches(numbers, ["text"])
    next(reader)
    os.kill(process, getattr(signal, name))
    with pytest.raises(DataError, match=rf"numbers\.parquet cannot be read as parquet: .*{said}"):
        list(reader)
    assert process not in process_ids()


def test_an_idle_process_that_ends_is_replaced(numbers: Path) -> None:
    decode_schema(numbers)
    decoder = decoding._idle[-1]
    decoder._process.kill()
    decoder._process.wait()
    assert decode_schema(numbers).names == ["text"]


def test_ctrl_c_does_not_reach_it(numbers: Path) -> None:
    decode_schema(numbers)
    assert os.getpgid(process_ids()[-1]) != os.getpgid(0)


def _read_in_child(path: Path, before: list[int], results: Any) -> None:
    rows = sum(batch.num_rows for batch in decode_batches(path, ["text"]))
    results.send((rows, set(process_ids()) & set(before)))


def test_a_forked_process_has_its_own(numbers: Path) -> None:
    decode_schema(numbers)
    before = process_ids()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(numbers, before, theirs))
    child.start()
    assert ours.recv() == (300_000, set())
    child.join()
    assert decode_schema(numbers).names == ["text"]
    assert process_ids() == before


def _read_and_wait(path: Path, results: Any) -> None:
    reader = decode_batches(path, ["text"])
    next(reader)
    decode_schema(path)
    results.send(process_ids())
    signal.pause()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_it_ends_with_the_process_that_started_it(
    numbers: Path, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_read_and_wait, args=(numbers, theirs))
    child.start()
    started = ours.recv()
    child.kill()
    child.join()

    def ended() -> bool:
        try:
            states = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] for process in started]
        except OSError:
            return True
        return set(states) == {"Z"}

    wait_until(ended)
