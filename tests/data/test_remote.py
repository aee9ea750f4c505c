"""Files behind URLs: the same documents as from this machine, fetched once and only when they are read."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest

from chatgpt_hf.cache import entries, prune
from chatgpt_hf.data import remote
from chatgpt_hf.data.mixture import load_mixture, stream_mixture
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import DataError, MissingDependency

FILES = {
    "train/a.jsonl": "".join(json.dumps({"text": f"Text number {number}."}) + "\n" for number in range(30)),
    "train/b.csv": "text\n" + "".join(f"Row {number}\n" for number in range(20)),
    "test/c.jsonl": '{"text": "held out"}\n',
    "README.md": "About the data.",
    ".hidden/d.jsonl": '{"text": "hidden"}\n',
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATGPT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL with the files of `FILES`, which also lie in the folder `local`."""
    monkeypatch.setitem(remote._PACKAGES, "memory", None)
    system = fsspec.filesystem("memory")
    for name, text in FILES.items():
        system.pipe(f"/bucket/{name}", text.encode())
        file = tmp_path / "local" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def texts(source: str, **options: Any) -> dict[str, list[str]]:
    return {name: split["text"][:] for name, split in load_mixture(parse_sources(source), **options).items()}


def fetched(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "remote").glob("*/files/**/*") if path.is_file())


@pytest.mark.parametrize("named", ["", "/**/*.jsonl", "/train/*", "/train/a.jsonl"])
def test_documents_are_those_of_local_files(named: str, bucket: str, tmp_path: Path) -> None:
    local = texts(f"{tmp_path / 'local'}{named}", test_fraction=0.2)
    assert texts(f"{bucket}{named}", test_fraction=0.2) == local


def test_a_stream_fetches_what_it_reads(bucket: str, cache: Path) -> None:
    held_out = f"{bucket}/test/c.jsonl"
    streamed = stream_mixture(parse_sources(f"{bucket}/train"), eval_corpus=held_out)
    assert fetched(cache) == ["a.jsonl", "c.jsonl"]
    found = [row["text"] for row in islice(streamed.train, 50)]
    assert found[:2] == ["Text number 0.", "Text number 1."]
    assert found[-1] == "Row 19"
    assert fetched(cache) == ["a.jsonl", "b.csv", "c.jsonl"]


def test_changed_files_are_fetched_again(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"{bucket}/train/a.jsonl"
    before = texts(source, test_fraction=0.2)
    system = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "get_file", lambda *_: pytest.fail("it is there already"))
        assert texts(source, test_fraction=0.2) == before
    system.pipe("/bucket/train/a.jsonl", (FILES["train/a.jsonl"] + '{"text": "one more"}\n').encode())
    after = texts(source, test_fraction=0.2)
    assert sorted(after["train"] + after["test"]) == sorted([*before["train"], *before["test"], "one more"])


def test_nothing_is_left_of_a_file_that_cannot_be_fetched(
    bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fsspec.filesystem("memory")

    def broken(_: Any, path: str, target: str) -> None:
        Path(target).write_text("half of it")
        raise ConnectionError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(type(system), "get_file", broken)
        with pytest.raises(
            DataError, match=r"memory:.*/bucket/train/a.jsonl cannot be fetched: .*the network is gone"
        ):
            texts(f"{bucket}/train/a.jsonl")
    assert fetched(cache) == []
    assert texts(f"{bucket}/train/a.jsonl")["train"]


def test_what_cannot_be_read(bucket: str, cli: Callable[..., Any]) -> None:
    for source, said in (
        ("ftp://host/a.jsonl", r"ftp://host/a.jsonl is a kind of path that is not read: supported are s3://, gs://"),
        (f"{bucket}/missing.jsonl", "memory://bucket/missing.jsonl does not exist"),
        (f"{bucket}/*.parquet", r"memory://bucket/\*.parquet does not exist, or names no files"),
        ("hf://datasets/nobody/nothing/a.jsonl", "hf://datasets/nobody/nothing/a.jsonl cannot be read: .*[Oo]ffline"),
    ):
        with pytest.raises(DataError, match=said):
            texts(source)
    with pytest.raises(MissingDependency, match=r"Reading s3:// needs s3fs, .* pip install 'chatgpt-hf\[remote\]'"):
        texts("s3://bucket/a.jsonl")
    done = cli("prepare", "--corpus", "gs://bucket/a.jsonl")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "Reading gs:// needs gcsfs" in done.err


def test_pruning(bucket: str, cache: Path) -> None:
    texts(f"{bucket}/train")
    (entry,) = entries(cache)
    assert entry.kind == "remote"
    assert entry.bytes > sum(len(FILES[name]) for name in ("train/a.jsonl", "train/b.csv"))
    assert [each.path for each in prune(cache).in_use] == [entry.path]
    remote._IN_USE.close()
    remote._held.clear()
    assert [each.path for each in prune(cache).removed] == [entry.path]
    assert texts(f"{bucket}/train")["train"]
