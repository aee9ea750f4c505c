import gzip
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from chatgpt_hf.data import tables
from chatgpt_hf.data.corpus import load_corpus, split_by_hash, stream_corpus
from chatgpt_hf.errors import ConfigError, DataError

DOCUMENTS = ["First document.\nTwo lines.", 'Quotes ", commas, and\ttabs.', "中文 👍", "null", "007"]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def delimited(separator: str) -> bytes:
    cells = ('"' + text.replace('"', '""') + '"' for text in DOCUMENTS)
    return "\n".join([f"id{separator}text", *(f"1{separator}{cell}" for cell in cells), ""]).encode()


FORMATS = {
    "a.jsonl": jsonl({"text": text, "id": 1} for text in DOCUMENTS),
    "a.json": json.dumps([{"text": text} for text in DOCUMENTS], indent=1).encode(),
    "lines.json": jsonl({"text": text} for text in DOCUMENTS),
    "a.csv": delimited(","),
    "a.tsv": delimited("\t"),
}


def texts(source, **options) -> list[str]:
    splits = load_corpus(str(source), **options)
    assert isinstance(splits, DatasetDict)
    assert list(splits) == ["train"]
    assert splits["train"].column_names == ["text"]
    assert splits["train"].features["text"].dtype == "string"
    return list(splits["train"]["text"])


def refused(source, **options) -> str:
    with pytest.raises(DataError) as error:
        load_corpus(str(source), **options)
    assert os.path.basename(str(source)).rstrip("*") in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compressed", [False, True])
def test_formats_with_rows(tmp_path, name, compressed):
    data = FORMATS[name]
    path = tmp_path / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert texts(path) == DOCUMENTS


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()])
def test_parquet(tmp_path, type_):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1] * 5, "body": pa.array(DOCUMENTS, type_)}), path)
    assert texts(path, text_column="body") == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "B.MD", "a.txt.gz"])
def test_text_file_is_one_document(tmp_path, name):
    data = "\ufeffOne.\r\n\r\nTwo 中文.\n".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts(path) == ["One.\n\nTwo 中文.\n"]


def test_zst_text(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(pa.compress("packed 中文\n".encode(), codec="zstd", asbytes=True))
    assert texts(path) == ["packed 中文\n"]


def test_zst_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(pa.compress(FORMATS["a.jsonl"], codec="zstd", asbytes=True))
    assert texts(path) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.csv", "a.jsonl.gz"])
def test_changed_file_is_read_again(tmp_path, name):
    path = tmp_path / name
    for seconds, text in enumerate(["one", "two"]):
        data = {"t": text, "c": f"text\n{text}\n", "j": json.dumps({"text": text})}[name[2]].encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        os.utime(path, (seconds, seconds))
        assert texts(path) == [text]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts [1]"
    (root / "deep" / ".hidden").mkdir(parents=True)
    (root / "b.txt").write_text("b")
    (root / "deep" / "a.md").write_text("a")
    (root / "deep" / "rows.jsonl").write_text('{"text": "row", "more": 1}\n')
    (root / "deep" / "others.jsonl").write_text('{"text": "other", "less": "x"}\n')
    (root / "empty.txt").touch()
    (root / "blank.txt").write_text(" \n")
    (root / ".hidden.txt").write_text("hidden")
    (root / "deep" / ".hidden" / "c.txt").write_text("hidden")
    (root / "script.py").write_text("ignored")
    return root


def test_folder_mixes_formats(folder, caplog):
    assert texts(folder) == ["b", "a", "other", "row"]
    assert "empty.txt is empty" in caplog.text
    assert "1 blank documents" in caplog.text


def test_globs(folder):
    root = str(folder).replace("[", "[[]")
    assert texts(f"{root}/*.txt") == ["b"]
    assert texts(f"{root}/**/*.md") == ["a"]
    assert texts(f"{root}/d*") == ["a", "other", "row"]


def test_relative_and_home_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert texts("b.txt") == texts("./b.txt") == texts("~/b.txt") == ["b"]


def test_rows_of_json_strings(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('["a", "b"]')
    assert texts(path) == ["a", "b"]


def test_rows_without_text_are_left_out(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n{"id": 3}\n')
    assert texts(path) == ["a"]
    assert "3 blank documents" in caplog.text


def test_builtin():
    splits = load_corpus("builtin:python-docs")
    assert set(splits) == {"train", "test"}
    assert all(split.column_names == ["text"] and len(split) > 100 for split in splits.values())


@pytest.mark.parametrize("source", ["absent", "absent/", "./absent.txt", "absent.txt", "no/such/folder", "absent*"])
def test_missing(source):
    assert "is not a file, a folder, a glob that matches" in refused(source)


def test_hub(monkeypatch):
    rows = Dataset.from_dict({"body": ["a", " "], "id": [1, 2]})
    splits = DatasetDict(train=rows, validation=rows, test=rows)
    monkeypatch.setattr(tables, "load_dataset", lambda name: splits if name == "some/corpus" else None)
    loaded = load_corpus("some/corpus", text_column="body")
    assert {name: split[:] for name, split in loaded.items()} == {"train": {"text": ["a"]}, "test": {"text": ["a"]}}
    assert "'text': set text_column to one of body, id" in refused("some/corpus")
    del splits["train"]
    assert "only validation, test" in refused("some/corpus", text_column="body")


def test_hub_that_fails(monkeypatch):
    def fail(name):
        raise ConnectionError("offline")

    monkeypatch.setattr(tables, "load_dataset", fail)
    assert "or a Hub id that could be loaded: offline" in refused("some/corpus")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("data", [b"", b" \n\n"])
def test_empty_file(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name)


def test_empty_sources(tmp_path):
    assert "contains no file" in refused(tmp_path)
    (tmp_path / "a.csv").write_text("text,id\n")
    assert "is empty" in refused(tmp_path)
    (tmp_path / "a.txt").touch()
    assert "is empty" in refused(tmp_path / "*.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b""))
    assert "is empty" in refused(tmp_path / "b.txt.gz")


@pytest.mark.parametrize("offset", [0, 5, (1 << 20) - 1, 1 << 20, (1 << 20) + 7])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe4\xb8!", b"\xe4\xb8"])
def test_not_utf8(tmp_path, offset, bad):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * offset + bad)
    message = refused(path)
    assert "not UTF-8" in message
    assert f"at byte {offset} of" in message


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz"])
def test_not_utf8_in_other_formats(tmp_path, name):
    path = tmp_path / name
    data = b'{"text": "caf\xe9"}\n'
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "at byte 13" in refused(path)


def test_unreadable(tmp_path):
    whole = gzip.compress(os.urandom(2000).hex().encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused(tmp_path / "cut.txt.gz")
    (tmp_path / "fake.txt.gz").write_bytes(b"not gzip")
    assert "cannot be read" in refused(tmp_path / "fake.txt.gz")
    (tmp_path / "fake.parquet").write_bytes(b"not parquet")
    assert "cannot be read as parquet" in refused(tmp_path / "fake.parquet")
    (tmp_path / "text.log").write_text("text")
    assert "txt, md, jsonl" in refused(tmp_path / "text.log")


def test_dangling_link_in_a_folder(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"a\.txt cannot be read"):
        load_corpus(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    path.chmod(0)
    assert "Permission denied" in refused(path)


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n{"text": "c"}\n', "line 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b', "line 2"),
        ("a.jsonl", '{"text": "a"}\n3\n', "no JSON object in line 2"),
        ("a.json", '{"text": "a"}\n{"text": "b"\n', "line 2"),
        ("a.json", '[{"text": "a"},\n{"text": }]', "line 2"),
        ("a.json", '{"text":\n"a",\n}', "line 3"),
        ("a.csv", 'text,id\na,1\n"b,2\n', "cannot be read as csv"),
        ("a.csv", "text,id\na,1\nb,2,3,4\n", "line 3"),
        ("a.csv", "id,text\n1,Hello, world\n", "more fields in line 2"),
        ("a.tsv", "text\tid\na\tb\tc\n", "more fields in line 2"),
    ],
)
def test_broken_rows(tmp_path, name, data, place):
    (tmp_path / name).write_text(data)
    assert place in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_missing_column_lists_the_others(tmp_path, name):
    rows = Dataset.from_dict({"body": ["a"], "id": [1]})
    {"a.jsonl": rows.to_json, "a.csv": rows.to_csv, "a.parquet": rows.to_parquet}[name](tmp_path / name)
    assert "no column 'text': set text_column to one of body, id" in refused(tmp_path / name)
    assert texts(tmp_path / name, text_column="body") == ["a"]


@pytest.mark.parametrize("values", [[1, 2], ["a", 2], [["a"], ["b"]], [{"x": 1}, {"x": 2}]])
def test_column_not_of_strings(tmp_path, values):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": value} for value in values))
    assert "column 'text'" in refused(path)
    assert "must contain strings" in refused(path)


def test_numbers_in_csv_are_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,text2\n007,x\nNA,y\n1e3,\n")
    assert texts(path) == ["007", "NA", "1e3"]


def test_hash_split_is_stable():
    documents = [f"document {index}" for index in range(400)]
    first = split_by_hash(Dataset.from_dict({"text": documents, "id": range(400)}), 0.1)
    assert 20 <= len(first["test"]) <= 60
    assert sorted([*first["train"]["text"], *first["test"]["text"]]) == sorted(documents)
    assert list(first["test"]["id"]) == sorted(first["test"]["id"])

    more = [*(f"new {index}" for index in range(100)), *reversed(documents)]
    second = split_by_hash(Dataset.from_dict({"text": more}), 0.1)
    assert set(first["test"]["text"]) == set(second["test"]["text"]) & set(documents)
    wider = split_by_hash(Dataset.from_dict({"text": documents}), 0.3)
    assert set(first["test"]["text"]) < set(wider["test"]["text"])


def test_hash_split_of_another_column():
    rows = Dataset.from_dict({"name": [f"n{index}" for index in range(100)], "text": ["same"] * 100})
    splits = split_by_hash(rows, 0.2, column="name")
    assert not set(splits["train"]["name"]) & set(splits["test"]["name"])
    with pytest.raises(DataError, match="one part empty"):
        split_by_hash(rows, 0.2)


def test_single_document_is_cut_at_a_line():
    text = "".join(f"line {index}\n" for index in range(100))
    splits = split_by_hash(Dataset.from_dict({"text": [text], "name": ["a"]}), 0.1)
    train, test = splits["train"][0], splits["test"][0]
    assert train["text"] + test["text"] == text
    assert train["name"] == test["name"] == "a"
    assert test["text"].startswith("line ")
    assert 0.1 * len(text) <= len(test["text"]) < 0.1 * len(text) + 9


def test_single_document_with_a_long_last_line():
    splits = split_by_hash(Dataset.from_dict({"text": ["a" * 90 + "\n" + "b" * 5]}), 0.5)
    assert splits["test"]["text"] == ["b" * 5]


def test_split_errors():
    with pytest.raises(DataError, match="without a line end"):
        split_by_hash(Dataset.from_dict({"text": ["one line only"]}))
    with pytest.raises(DataError, match="one part empty"):
        split_by_hash(Dataset.from_dict({"text": ["a", "a"]}), 1e-9)
    for fraction in (0, 1, -0.1, 2):
        with pytest.raises(ConfigError, match="test_fraction"):
            split_by_hash(Dataset.from_dict({"text": ["a", "b"]}), fraction)


def test_real_corpora(shared_data):
    folder = shared_data / "corpus"
    assert len(texts(folder / "gutenberg_en")) == 10
    assert texts(folder / "tinyshakespeare.txt")[0] == (folder / "tinyshakespeare.txt").read_text("utf-8")
    assert "paragraphs" in refused(folder / "zh_poems" / "tang300.json")
    assert len(texts(shared_data / "eval" / "gsm8k_train.jsonl.gz", text_column="question")) == 7473


@pytest.fixture
def one_broken(tmp_path):
    """Three intact files and two broken ones."""
    for name in ("a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"text": "cut sh')
    (tmp_path / "d.txt").write_bytes(b"one line\ncaf\xe9")
    (tmp_path / "e.txt").write_text("e")
    return tmp_path


def test_one_broken_file_among_many_is_refused_and_named(one_broken):
    with pytest.raises(DataError, match=r"b\.jsonl is broken JSON in line 2"):
        load_corpus(str(one_broken))
    with pytest.raises(DataError, match=r"d\.txt is not UTF-8: .* at byte 12 of its text, in line 2"):
        load_corpus(str(one_broken / "*.txt"))


def test_broken_files_are_skipped_when_asked_for(one_broken, caplog):
    assert texts(one_broken, skip_broken_files=True) == ["a", "c", "e"]
    assert "b.jsonl is broken JSON in line 2" in caplog.text
    assert "d.txt is not UTF-8" in caplog.text


def test_nothing_left_after_skipping(one_broken):
    assert "cannot be used" in refused(one_broken / "b*", skip_broken_files=True)
    assert "line 2" in refused(one_broken / "d.txt", skip_broken_files=True)


def test_template(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"title": "T", "lines": ["1", "2"], "text": "x"}, {"title": None, "lines": []}]))
    assert texts(path, template="{title}:\n{lines}") == ["T:\n1\n2", ":\n"]
    assert "no column 'author': the template may name title, lines, text" in refused(path, template="{author}")
    for name in ("a.csv", "a.parquet"):
        rows = Dataset.from_dict({"a": ["x"], "b": ["y"]})
        {"a.csv": rows.to_csv, "a.parquet": rows.to_parquet}[name](tmp_path / name)
        assert texts(tmp_path / name, template="{b}{a}") == ["yx"]
        assert "no column 'c': the template may name a, b" in refused(tmp_path / name, template="{c}")
    with pytest.raises(ConfigError, match="give only one of them"):
        load_corpus(str(path), template="{title}", text_column="text2")
    with pytest.raises(ConfigError, match="is not a template"):
        load_corpus(str(path), template="title")


def test_template_of_the_builtin_corpus():
    plain = load_corpus("builtin:python-docs")["test"]["text"]
    assert load_corpus("builtin:python-docs", template="{name}: {text}")["test"]["text"][0].endswith(f": {plain[0]}")


def test_template_of_real_poems(shared_data):
    folder = shared_data / "corpus" / "zh_poems"
    poems = load_corpus(str(folder), template="{title}\n{author}\n{paragraphs}")["train"]
    raw = json.loads((folder / "tang300.json").read_text("utf-8"))
    assert len(poems) == 3 * 1000 + 2 + len(raw)
    assert poems[-len(raw)]["text"] == "\n".join([raw[0]["title"], raw[0]["author"], *raw[0]["paragraphs"]])


def streamed(source, **options) -> list[str]:
    splits = stream_corpus(str(source), **options)
    assert list(splits) == ["train"]
    return [row["text"] for row in splits["train"]]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compressed", [False, True])
def test_streams_give_what_loading_gives(tmp_path, name, compressed):
    path = tmp_path / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(FORMATS[name]) if compressed else FORMATS[name])
    assert streamed(path) == DOCUMENTS


def test_stream_of_a_folder(folder, tmp_path):
    pq.write_table(pa.table({"text": ["p1", "p2"], "id": [1, 2]}), folder / "a.parquet")
    assert streamed(folder) == ["p1", "p2", "b", " \n", "a", "other", "row", ""]
    assert streamed(folder / "deep" / "rows.jsonl", template="{text}{more}") == ["row1"]


def test_stream_of_the_builtin_corpus_keeps_its_split():
    splits = stream_corpus("builtin:python-docs", template="{text}")
    assert [row["text"] for row in splits["test"]] == load_corpus("builtin:python-docs")["test"]["text"][:]


def test_stream_of_the_hub(monkeypatch):
    rows = Dataset.from_dict({"body": ["a", "b"], "id": [1, 2]}).to_iterable_dataset()
    monkeypatch.setattr(tables, "load_dataset", lambda name, streaming: {"train": rows})
    assert streamed("some/corpus", text_column="body") == ["a", "b"]
    with pytest.raises(DataError, match="'text': set text_column to one of body, id"):
        stream_corpus("some/corpus")


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "is broken JSON in line 2"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "no JSON object in line 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "not UTF-8: .*, in line 2"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"body": "b"}\n',
            "line 2 of .* no column 'text': set text_column to one of body",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "column 'text' of line 2 of .* must contain strings"),
        ("a.json", b'[{"text": "a"},\n{"text": }]', "is broken JSON in line 2"),
        ("a.json", b"[1, 2]", "something other than JSON objects"),
        ("a.txt", b"a\nb\xff", "not UTF-8: .*, in line 2"),
        ("a.csv", b"text,id\na,1\nb,2,3,4\n", "line 3"),
        ("a.csv", b"id,body\n1,a\n", "no column 'text': set text_column to one of id, body"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
    ],
)
def test_broken_streams(tmp_path, name, data, place, caplog):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "z.txt").write_text("whole")
    with pytest.raises(DataError, match=place) as error:
        streamed(tmp_path)
    assert name in str(error.value)
    rest = streamed(tmp_path, skip_broken_files=True)
    assert rest[-1] == "whole"
    assert len(rest) <= 2
    assert name in caplog.text


def test_stream_of_a_cut_archive(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({"text": os.urandom(9).hex()}).encode() + b"\n" for _ in range(2000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be read"):
        streamed(tmp_path)
