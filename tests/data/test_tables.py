"""One reader of rows: values as they stand in the file, the same whole and streamed, and clear errors."""

import csv
import datetime
import decimal
import gzip
import io
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Json, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgpt_hf.data import files, tables
from chatgpt_hf.data.corpus import load_corpus, load_rows, stream_corpus
from chatgpt_hf.data.encodings import check_encoding
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.data.tables import read_rows, read_tables
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.tasks.generation.rows import load_pairs
from chatgpt_hf.tasks.tables import load_tables
from chatgpt_hf.training.tokenizer import train_tokenizer_on_corpus

Rows = list[dict[str, Any]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except DataError as error:
        return f"DataError: {error}"


def whole(path: Path, **options: Any) -> Any:
    return outcome(lambda: load_corpus(str(path), **options)["train"]["text"][:])


def streamed(path: Path, **options: Any) -> Any:
    """As `whole`: a stream also has blank documents."""
    return outcome(
        lambda: [
            row["text"]
            for row in stream_corpus(str(path), **options)["train"]
            if row["text"] and not row["text"].isspace()
        ]
    )


# What a file has, and the rows that it should give.
READ: dict[str, tuple[str | bytes, Rows]] = {
    "quote.tsv": ('id\ttext\n1\t"Never mind, he said.\n2\tSo "what"?\n', [{"id": "1", "text": '"Never mind, he said.'}, {"id": "2", "text": 'So "what"?'}]),
    "two quotes.tsv": ('id\ttext\n1\t"I like it\n2\tIt is "bad"\n3\t"No', [{"id": str(n), "text": text} for n, text in ((1, '"I like it'), (2, 'It is "bad"'), (3, '"No'))]),
    "quote and empty column.tsv": ('id\ttext\t\n1\t"Never\t\n2\ta\n', [{"id": "1", "text": '"Never'}, {"id": "2", "text": "a"}]),
    "one column with a quote.tsv": ('text\n"Never mind\nhe said\n', [{"text": '"Never mind'}, {"text": "he said"}]),
    "quote closes later.tsv": ('text\tlabel\n"I like it\tpos\nIt is bad"\tneg\n', [{"text": '"I like it', "label": "pos"}, {"text": 'It is bad"', "label": "neg"}]),
    "excel.tsv": ('text\tlabel\n"He said ""no"", twice"\tpos\n"two\nlines"\tneg\n', [{"text": 'He said "no", twice', "label": "pos"}, {"text": "two\nlines", "label": "neg"}]),
    "semicolon.csv": ("text;label\nHello, world;1\nBye;0\n", [{"text": "Hello, world", "label": "1"}, {"text": "Bye", "label": "0"}]),
    "semicolon quoted.csv": ('"text; long";"label"\n"a;b";"1,5"\n', [{"text; long": "a;b", "label": "1,5"}]),
    "sep.csv": ("sep=;\r\ntext;label, if any\r\na;1\r\n", [{"text": "a", "label, if any": "1"}]),
    "tabs.csv": ('text\tlabel\n"Hi, he said\tpos\nno, no\tneg\n', [{"text": '"Hi, he said', "label": "pos"}, {"text": "no, no", "label": "neg"}]),
    "bom.csv": ("\ufeff问题,回答\n你好,在\n", [{"问题": "你好", "回答": "在"}]),
    "utf16.csv": ("text\tlabel\r\n中文 é\t1\r\n".encode("utf-16"), [{"text": "中文 é", "label": "1"}]),
    "utf16be.tsv": (b"\xfe\xff" + "text\tlabel\n中文\t1\n".encode("utf-16-be"), [{"text": "中文", "label": "1"}]),
    "cr.csv": ("text,label\ra,1\rb,2\r", [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]),
    "crlf in a cell.csv": ('text,label\r\n"a\r\nb",1\r\n', [{"text": "a\r\nb", "label": "1"}]),
    "blank lines.csv": ("\n\ntext,label\n\na,1\n   \nb,2\n\n\n", [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]),
    "blank columns.csv": ("text,label,,\na,1,,\nb,2,,\n", [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]),
    "trailing commas.csv": ("text,label\na,1,\nb,2,,\n", [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]),
    "index.csv": (",text,label\n0,a,1\n1,b,2\n", [{"Unnamed: 0": "0", "text": "a", "label": "1"}, {"Unnamed: 0": "1", "text": "b", "label": "2"}]),
    "values.csv": ("text,label\n007,2020-01-01\nNA,1e3\ntrue,2.50\n,null\n", [{"text": a, "label": b} for a, b in (("007", "2020-01-01"), ("NA", "1e3"), ("true", "2.50"), ("", "null"))]),
    "apostrophe.csv": ("text,label\nit's 5\" wide,1\n", [{"text": "it's 5\" wide", "label": "1"}]),
    "one column.csv": ('text\n"a, b"\nc\n', [{"text": "a, b"}, {"text": "c"}]),
    "spaced header.csv": ("id, text \n1, a\n", [{"id": "1", "text": " a"}]),
    "line separator.csv": ("text,label\na\u2028b\x85c\x0bd,1\n", [{"text": "a\u2028b\x85c\x0bd", "label": "1"}]),
    "dates.jsonl": ('{"text":"2020-01-01"}\n{"text":"2020-01-02T10:00:00Z"}\n', [{"text": "2020-01-01"}, {"text": "2020-01-02T10:00:00Z"}]),
    "mixed.jsonl": ('{"a": 2}\n{"a": "2"}\n{"a": true}\n{"a": null}\n{"a": [1, "x"]}\n{"b": {"c": 1}}\n', [{"a": 2}, {"a": "2"}, {"a": True}, {"a": None}, {"a": [1, "x"]}, {"b": {"c": 1}}]),
    "lines.jsonl": ('\ufeff{"text": "a"}\r\n\r\n   \r\n{"text": "b\\u2028"}\r\n', [{"text": "a"}, {"text": "b\u2028"}]),
    "joined.jsonl": ('\ufeff{"text": "a"}\n\ufeff{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
    "pretty array.jsonl": ('[\n {"text": "a",\n  "n": 1},\n {"text": "b"}\n]\n', [{"text": "a", "n": 1}, {"text": "b"}]),
    "pretty object.jsonl": ('{\n "text": "a"\n}\n', [{"text": "a"}]),
    "one line array.jsonl": ('[{"text": "a"}, {"text": "b"}]', [{"text": "a"}, {"text": "b"}]),
    "lines.json": ('{"text": "a"}\n{"text": "b"}', [{"text": "a"}, {"text": "b"}]),
    "texts.json": ('["a", "b"]', [{"text": "a"}, {"text": "b"}]),
    "twice.jsonl": ('{"text": "a", "text": "b"}\n', [{"text": "b"}]),
    "pair.jsonl": ('{"text": "\\ud83d\\ude00 \\\\ud83d"}\n', [{"text": "😀 \\ud83d"}]),
    "huge.jsonl": ('{"text": "a", "n": 123456789012345678901234567890}\n', [{"text": "a", "n": 123456789012345678901234567890}]),
    "utf16.jsonl": ('{"text": "中"}\n'.encode("utf-16"), [{"text": "中"}]),
    "order.jsonl": ('{"z": 1, "a": 2}\n', [{"z": 1, "a": 2}]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_files_as_people_write_them(tmp_path: Path, name: str) -> None:
    content, rows = READ[name]
    path = write(tmp_path / name, content)
    assert list(read_rows(path)) == rows
    assert [list(row) for row in read_rows(path)] == [list(row) for row in rows]
    packed = write(tmp_path / f"{name}.gz", gzip.compress(path.read_bytes()))
    assert list(read_rows(packed)) == rows
    assert whole(path) == streamed(path)
    if all(isinstance(row.get("text"), str) for row in rows):
        assert streamed(path) == [row["text"] for row in rows if row["text"]]


# What a broken file has, and what the error says.
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "more.csv": ("text,label\na,1\nb,c,2\n", "more fields in line 3 (3) than in its header (2)"),
    "more after a text of two lines.csv": ('text,label\n"a\nb",1\nc,d,2\n', "in line 4 (3)"),
    "fewer.csv": ("text,label\na,1\nb\n", "fewer fields in line 3 (1) than in its header (2)"),
    "nameless.csv": ("text,label,\na,1,\nb,2,note\n", "in line 3 (3)"),
    "never closed.csv": ('text,label\na,1\n"b,2\nc,3\n', "in the row that begins in line 3 a quotation mark is never closed"),
    "junk.csv": ('text,label\na,1\n"b" c,2\n', "in line 3 text follows a closing quotation mark"),
    "backslash.csv": ('text,label\n"He said \\"hi\\"",2\n', "in line 2 text follows a closing quotation mark"),
    "zero.csv": ("text,label\na,1\nb\0,2\n", "zero byte in line 3"),
    "twice.csv": ("text,label,text\na,1,b\n", "two columns named 'text'"),
    "one column.tsv": ('text\n"Never mind\nhe said"\n', "quotation mark in line 2 that may be text"),
    "ragged with a quote.tsv": ('text\tlabel\n"Never\t1\na\tb\tc\nd\t2\n', "more fields in line 3 (3)"),
    "ragged.tsv": ("text\tlabel\na\t1\nb\n", "fewer fields in line 3"),
    "wide.txt": ("text é\n".encode("utf-16-le"), "--encoding utf-16-le"),
    "deep.jsonl": ('{"text": "a"}\n{"text": ' + "[" * 200_000 + "]" * 200_000 + "}\n", "200 deep in line 2"),
    "deep.json": ("[" * 200_000 + "]" * 200_000, "200 deep in"),
    "deep objects.json": ('{"a": ' * 200_000 + "1" + "}" * 200_000, "200 deep in"),
    "open.json": ("[" * 200_000, "200 deep in"),
    "rather deep.jsonl": ('{"text": ' + "[" * 300 + "]" * 300 + "}\n", "200 deep in line 1"),
    "half.jsonl": ('{"text": "a"}\n\n{"text": "hi \\ud83d"}\n', r"half of a surrogate pair, \ud83d, in line 3"),
    "other half.json": ('[{"text": "a"}, {"text": "\\uDC4D"}]', r"half of a surrogate pair, \udc4d, in row 2"),
    "half a key.jsonl": ('{"text": "a", "\\ud83d": 1}\n', r"\ud83d, in line 1"),
    "comma.jsonl": ('{"text": "a"},\n{"text": "b"},\n', "broken JSON in line 1: a comma follows"),
    "comma.json": ('[\n{"text": "a"},\n{"text": "b"},\n]', "broken JSON in line 3: a comma follows the last"),
    "joined.jsonl": ('{"text": "a"}\n{"text": "b"}{"text": "c"}\n', "broken JSON in line 2: a second value"),
    "missing comma.json": ('[{"text": "a"}\n{"text": "b"}]', "broken JSON in line 2: a comma or ]"),
    "cut.json": ('[{"text": "a"},\n{"text": "b"}', "broken JSON in line 2"),
    "after.json": ('[{"text": "a"}]\n[]', "broken JSON in line 2: something follows"),
    "numbers.json": ("[1, 2]", "something other than JSON objects: row 1 is 1"),
    "null.json": ('[{"a": 1}, null]', "something other than JSON objects: row 2 is null"),
    "number.jsonl": ("3\n", "no JSON object in line 1"),
    "quotes.jsonl": ("{'text': 'a'}\n", "broken JSON in line 1"),
    "digits.jsonl": ('{"text": "a", "n": ' + "1" * 5000 + "}\n", "more than 4300 digits in line 1"),
    "number text.jsonl": ('{"text": "a"}\n{"text": 3}\n', "column 'text' of line 2 of"),
    "other shape.jsonl": ('{"text": "a"}\n{"body": "b"}\n', "has no column 'text': set text_column to one of body"),
    "gbk.csv": ("text,label\n问题是什么,正面\n".encode("gb18030"), "in line 2. Add --encoding gb18030"),
    "latin.jsonl": ('{"text": "Un café très cher"}\n'.encode("cp1252"), "Add --encoding cp1252"),
    "sjis.txt": ("あなたは誰ですか。私はモデルです。\n".encode("shift_jis"), "Add --encoding shift_jis"),
    "big5.txt": ("問題是什麼？我們不知道。\n".encode("big5"), "--encoding big5"),
    "korean.tsv": ("text\tlabel\n너는 누구니\t1\n".encode("euc_kr"), "Add --encoding euc_kr"),
    "wide chinese.txt": ("问题是什么 正面\n".encode("utf-16-le"), "Add --encoding utf-16-le"),
    "plain.jsonl.gz": (b'{"text": "a"}\n', "cannot be read"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99 + os.urandom(999))[:-99], "cannot be read"),
    "no.parquet": (b"PAR1", "cannot be read as parquet"),
    "header.csv": ("text,label\n", "is empty"),
    "empty.csv": ("", "is empty"),
    "mark.csv": ("\ufeff", "is empty"),
    "empty.jsonl.gz": (gzip.compress(b""), "is empty"),
    "only marks.jsonl": (b"\xff\xfe" * 3, "broken JSON in line 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_name_and_place(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    path = write(tmp_path / name, content)
    error = whole(path)
    assert isinstance(error, str), error
    assert message in error
    assert name in error
    assert len(error) < 700
    if "is empty" not in message:
        assert streamed(path) == error
    if path.name.split(".")[1] != "txt" and "column 'text'" not in message:
        for read in (
            lambda: list(read_rows(path)),
            lambda: load_rows(str(path)),
            lambda: load_tables(str(path), header={"text"}),
        ):
            if "plain" in name or "has no" not in message:
                assert name in refused(read)


def test_values_keep_their_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 2.50, "b": 1e3, "c": NaN, "d": -Infinity, "e": [0.10], "f": 7}\n')
    (row,) = read_rows(path)
    assert [str(row[name]) for name in "abcdf"] == ["2.50", "1e3", "None", "-Infinity", "7"]
    assert f"{row['a']} {row['e'][0]!s}" == "2.50 0.10"
    assert row["a"] == 2.5


def test_columns_have_types_that_keep_the_values(tmp_path: Path) -> None:
    rows = [
        {"s": "a", "i": 1, "f": 0.5, "b": True, "n": 1, "l": ["x"], "k": [1, 2], "d": {"x": 1}, "m": "2"},
        {"s": None, "i": 2, "f": 1.5, "b": False, "n": 2.5, "l": [], "k": None, "d": {"y": [{"z": 0}]}, "m": 4},
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + '{"w": 2.50}\n')
    ((_, splits),) = load_rows(str(path))
    data = splits["train"]
    assert data.features == Features(
        {
            **{
                "s": Value("string"),
                "i": Value("int64"),
                "f": Value("float64"),
                "b": Value("bool"),
                "n": Value("string"),
            },
            **{"l": List(Value("string")), "k": List(Value("int64")), "d": Json(), "m": Value("string")},
            "w": Value("string"),
        }
    )
    assert data[0] == {**rows[0], "n": "1", "w": None}
    assert data[1] == {**rows[1], "n": "2.5", "m": "4", "w": None}
    assert data[2]["w"] == "2.50"
    pairs = load_pairs(str(path), prompt_template="{m}", completion_template="{n}", skip_invalid=True)
    assert pairs.train[:] == {"prompt": ["2", "4"], "completion": ["1", "2.5"]}


def test_values_that_no_type_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"a": {10**30}, "b": "{10**30}"}}\n')
    assert load_rows(str(path))[0][1]["train"][0] == {"a": str(10**30), "b": str(10**30)}
    write(path, f'{{"a": {{"b": [{10**30}]}}}}\n')
    assert "a.jsonl has an integer of more than 64 bits" in refused(lambda: load_rows(str(path)))
    pq.write_table(pa.table({"image": [{"bytes": b"\xff"}], "raw": [b"\xff"], "text": ["a"]}), tmp_path / "b.parquet")
    row = load_rows(str(tmp_path / "b.parquet"))[0][1]["train"][0]
    assert (row["raw"], row["text"]) == (b"\xff", "a")
    pq.write_table(pa.table([["a"], ["b"]], ["text", "text"]), tmp_path / "c.parquet")
    assert "two columns named 'text'" in whole(tmp_path / "c.parquet", template="{text}")
    assert "two columns named 'text'" in refused(lambda: list(read_rows(tmp_path / "c.parquet")))


def test_names_of_labels_in_parquet_are_kept(tmp_path: Path) -> None:
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "tags": List(ClassLabel(names=["O", "B"]))}
    )
    Dataset.from_dict({"text": ["a"], "label": [1], "tags": [[0, 1]]}, features).to_parquet(tmp_path / "a.parquet")
    ((_, splits),) = load_rows(str(tmp_path / "a.parquet"))
    assert splits["train"].features == features
    assert splits["train"][0] == {"text": "a", "label": 1, "tags": [0, 1]}


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    frame = pd.DataFrame(
        {
            "args": [{"city": "Oslo", "when": None}, {"city": None, "days": [{"n": 1}, {"m": None}]}],
            "day": pd.to_datetime(["2020-01-01", None]),
            "time": pd.to_datetime(["2020-01-01T00:00:00", "2020-01-02T03:04:05"]),
            "zone": pd.to_datetime(["2020-01-01", "2020-01-02"], utc=True),
            "date": [datetime.date(2020, 1, 1), None],
            "price": [decimal.Decimal("2.50"), None],
            "small": np.array([0.1, 2.0], np.float32),
            "kind": pd.Categorical(["x", "y"]),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def test_parquet_has_what_json_would_have(typed: Path) -> None:
    first, second = read_rows(typed)
    assert first["args"] == {"city": "Oslo"}
    assert second["args"] == {"days": [{"n": 1}, {}]}
    assert [row["day"] for row in (first, second)] == ["2020-01-01", None]
    assert [row["time"] for row in (first, second)] == ["2020-01-01T00:00:00", "2020-01-02T03:04:05"]
    assert first["zone"] == "2020-01-01T00:00:00+00:00"
    assert first["date"] == "2020-01-01"
    assert str(first["price"]) == "2.50"
    assert str(first["small"]) == "0.1"
    assert first["kind"] == "x"
    ((_, splits),) = load_rows(str(typed))
    assert splits["train"][1]["args"] == second["args"]
    assert splits["train"]["day"][:] == ["2020-01-01", None]


def test_data_sets_have_it_too(typed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.from_parquet(str(typed)).add_column("json", ['{"a": null}'] * 2, feature=Json())
    monkeypatch.setattr(tables, "load_dataset", lambda name: DatasetDict(train=data, test=data))
    train, test = read_tables("some/data")
    assert (train.where, train.split, test.split) == ("some/data", "train", "test")
    assert list(train.rows()) == list(test.rows()) == [{**row, "json": {"a": None}} for row in read_rows(typed)]


def test_null_in_a_json_column_of_parquet_stays(tmp_path: Path) -> None:
    rows = [{"m": [{"a": None, "b": "2"}], "t": "2"}]
    Dataset.from_list(rows, Features({"m": List(Json()), "t": Value("string")})).to_parquet(tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == rows


@pytest.mark.parametrize("encoding", ["gb18030", "GBK", "utf-16-le", "big5"])
def test_an_encoding_that_is_given(tmp_path: Path, encoding: str) -> None:
    for name, content in {
        "a.csv": "text,label\n你好,1\n",
        "b.jsonl": '{"text": "你好"}\n',
        "c.json": '[{"text": "你好"}]',
        "d.tsv": "label\ttext\n1\t你好\n",
        "e.txt": "你好",
        "f.md.gz": "你好",
    }.items():
        data = content.encode(encoding)
        write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    # A mark at the beginning is certain.
    write(tmp_path / "g.txt", "\ufeff你好")
    assert whole(tmp_path, encoding=encoding) == streamed(tmp_path, encoding=encoding) == ["你好"] * 7
    pairs = load_pairs(
        str(tmp_path / "[ad].*"), prompt_template="{text}", completion_template="{label}", encoding=encoding
    )
    assert pairs.train["prompt"][:] == ["你好", "你好"]
    assert (
        len(train_tokenizer_on_corpus(str(tmp_path), tmp_path / "tokenizer", vocab_size=260, encoding=encoding)) == 260
    )


def test_a_wrong_or_unknown_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\ncaf\xe9 au lait\n".encode("cp1252"))
    assert whole(path, encoding="shift_jis") == streamed(path, encoding="shift_jis")
    assert "is not SHIFT_JIS" in whole(path, encoding="shift_jis")
    for unknown in ("utf9", "hex", "", "no\0name"):
        with pytest.raises(ConfigError, match="which is no text encoding"):
            check_encoding(unknown)
    with pytest.raises(ConfigError, match=r"corpus item .* no text encoding"):
        parse_sources([{"source": "a", "encoding": "utf9"}])
    utf8 = write(tmp_path / "utf8.txt", "这是一个用来测试的句子。")
    for encoding in ("gb18030", "cp1252"):
        assert f"utf8.txt is UTF-8, not {encoding}" in whole(utf8, encoding=encoding)
    given, own = parse_sources(["a", {"source": "b", "encoding": "big5"}], encoding="gbk")
    assert (given.encoding, own.encoding) == ("gbk", "big5")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is a pipe, not a file" in whole(tmp_path / "pipe.jsonl")
    os.symlink("/dev/zero", tmp_path / "device.txt")
    assert "is a device" in whole(tmp_path / "device.txt")
    assert "is a device" in streamed(tmp_path / "device.txt")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refused(lambda: list(read_rows(tmp_path / "folder.csv")))
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "is a pipe" in whole(tmp_path / "pipe.parquet")
    os.mkfifo(tmp_path / "pipe.csv.gz")
    assert "is a pipe" in refused(lambda: load_tables(str(tmp_path / "pipe.csv.gz")))
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)
        server.bind("socket.md")
    assert "is a socket" in streamed(tmp_path / "socket.md")
    assert whole(write(tmp_path / "z.txt", "z").parent, skip_broken_files=True) == ["z"]


def test_a_folder_that_changes_while_it_is_read(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", json.dumps({"text": name}) + "\n")
    stream = iter(stream_corpus(str(tmp_path))["train"])
    assert next(stream) == {"text": "a"}
    (tmp_path / "b.jsonl").unlink()
    assert "b.jsonl cannot be read: it does not exist, or no longer" in refused(lambda: list(stream))
    stream = iter(stream_corpus(str(tmp_path), skip_broken_files=True)["train"])
    (tmp_path / "c.jsonl").write_text('{"text": "cut sh')
    assert [row["text"] for row in stream] == ["a"]
    table = read_tables(str(tmp_path / "a.jsonl"))[0]
    (tmp_path / "a.jsonl").write_text("")
    assert "a.jsonl is empty" in refused(lambda: list(table.rows()))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.csv.gz"])
def test_an_archive_that_expands_beyond_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(files, "EXPANSION_BYTES", 1 << 20)
    data = b'{"text": "' + b"a" * (4 << 20) + b'"}'
    packed = gzip.compress(data) if name.endswith("gz") else pa.compress(data, codec="zstd", asbytes=True)
    path = write(tmp_path / name, packed)
    assert whole(path) == streamed(path)
    assert f"{name} expands to more than 1 MiB, over 200 times its size" in whole(path)
    noise = gzip.compress(json.dumps({"text": os.urandom(2 << 20).hex()}).encode())
    assert len(whole(write(tmp_path / "b.jsonl.gz", noise))) == 1


def test_files_without_rows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.csv", "text,label\n")
    write(tmp_path / "b.jsonl", '{"text": "b"}\n')
    write(tmp_path / "c.txt", "")
    with caplog.at_level(logging.WARNING):
        assert whole(tmp_path) == ["b"]
    assert "a.csv has no rows" in caplog.text
    assert "c.txt is empty" in caplog.text


def test_columns_that_some_rows_lack(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1}\n{"id": 2, "text": "a"}\n{"text": "b", "title": "T"}\n{"id": 3}\n')
    assert whole(path) == streamed(path) == ["a", "b"]
    template = {"template": "{title}: {text}"}
    assert whole(path, **template) == streamed(path, **template) == [": ", ": a", "T: b", ": "]


@pytest.mark.parametrize("name", ["dates.jsonl", "tsv_quote_corpus.tsv", "surr_chat.jsonl", "d_numstr.jsonl"])
def test_cases_whole_and_streamed(shared_data: Path, name: str) -> None:
    path = shared_data / "cases" / "train" / name
    assert whole(path) == streamed(path)


def test_rows_of_the_cases(shared_data: Path) -> None:
    def rows(name: str) -> Rows:
        return list(read_rows(shared_data / "cases" / "train" / name))

    lines = (shared_data / "cases" / "train" / "tsv_quote.tsv").read_text("utf-8").splitlines()
    assert [list(row.values()) for row in rows("tsv_quote.tsv")] == [line.split("\t") for line in lines[1:]]
    assert [row["text"] for row in rows("tsv_quote_corpus.tsv")][1] == '"Never mind, he said.'
    assert [row["text"] for row in rows("dates.jsonl")] == ["2020-01-01", "2020-01-02"]
    assert [row["answer"] for row in rows("datechat.jsonl")] == ["2020-01-01", "2021-02-03"]
    call = rows("d_args_time.jsonl")[0]["messages"][1]["tool_calls"][0]
    assert call["function"]["arguments"] == {"city": "Oslo", "at": "2024-05-01T10:00:00Z"}
    assert [row["completion"] for row in rows("d_numstr.jsonl")] == [2, 4]
    assert [row["answer"] for row in rows("mixed_answer.jsonl")] == ["2", 4, "y"]
    assert [list(row) for row in rows("mixed_shapes.jsonl")] == [["messages"], ["conversations"], ["messages"]]
    path = shared_data / "cases" / "train" / "surr_chat.jsonl"
    assert r"half of a surrogate pair, \ud83d, in line 2" in refused(lambda: list(read_rows(path)))
    assert r"in line 2" in refused(lambda: load_rows(str(path)))


# A cell of a tab-separated file with both a tab and a line end cannot be told from two lines, see `_is_quoted`.
_cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_plain_cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t"), max_size=8)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _cells,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_cells, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.data())
def test_what_the_csv_module_writes_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dialect = data.draw(st.sampled_from([",", ";", "\t"]))
    width = data.draw(st.integers(2, 3))
    cell = _plain_cells if dialect == "\t" else _cells
    rows = data.draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=5))
    names = ["text", "label", "note"][:width]
    stream = io.StringIO(newline="")
    ends = data.draw(st.sampled_from(["\n", "\r\n"]))
    if ends == "\n":  # then the writer leaves a carriage return without quotation marks
        rows = [[cell.replace("\r", " ") for cell in row] for row in rows]
    csv.writer(stream, delimiter=dialect, lineterminator=ends).writerows([names, *rows])
    path = tmp_path_factory.getbasetemp() / ("a.tsv" if dialect == "\t" else "a.csv")
    path.write_bytes(stream.getvalue().encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))))
    assert list(read_rows(path)) == [dict(zip(names, row, strict=True)) for row in rows]


@settings(max_examples=100)
@given(rows=st.lists(st.dictionaries(_cells, _json, max_size=3), min_size=1, max_size=4), is_ascii=st.booleans())
def test_what_json_writes_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: Rows, is_ascii: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in rows), "utf-8")
    assert list(read_rows(path)) == rows
    path.write_text(json.dumps(rows, ensure_ascii=is_ascii, indent=1), "utf-8")
    assert list(read_rows(path)) == rows


@settings(max_examples=40)
@given(
    texts=st.lists(st.none() | _cells, min_size=1, max_size=5),
    numbers=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5),
    lists=st.lists(st.none() | st.lists(st.floats(allow_nan=False)), min_size=5, max_size=5),
)
def test_what_parquet_holds_comes_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[Any], numbers: list[Any], lists: list[Any]
) -> None:
    rows = [{"a": a, "b": b, "c": c} for a, b, c in zip(texts, numbers, lists, strict=False)]
    path = tmp_path_factory.getbasetemp() / "a.parquet"
    types = pa.schema([("a", pa.string()), ("b", pa.int64()), ("c", pa.list_(pa.float64()))])
    pq.write_table(pa.Table.from_pylist(rows, types), path)
    assert list(read_rows(path)) == rows
