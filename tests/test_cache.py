"""The cache: several processes write and read it, a damaged part is made again, and pruning removes only what is ours."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import cache, load_model, load_tokenizer
from chatgpt_hf.cache import building, entries, prune
from chatgpt_hf.data import prepare
from chatgpt_hf.data.prepare import PreparedRows, prepare_rows
from chatgpt_hf.errors import OutputError
from chatgpt_hf.training import adaptation

TEXTS = [f"Document {number} of a small corpus, 文 {number * number}." for number in range(40)]
KEY = "0123456789abcdef0123456789abcdef"

# Carries out a line of JSON at a time; each stops while it writes, until the next line.
OTHER = """
import json, sys
from pathlib import Path
from datasets import Dataset
from chatgpt_hf import load_tokenizer
from chatgpt_hf.data import prepare
from chatgpt_hf.training import adaptation

def stopping(function):
    def stop(*arguments, **options):
        print("stopped", flush=True)
        sys.stdin.readline()
        return function(*arguments, **options)
    return stop

prepare._write = stopping(prepare._write)
adaptation.train_tokenizer = stopping(adaptation.train_tokenizer)
kept = []
for line in sys.stdin:
    job = json.loads(line)
    if job["what"] == "rows":
        documents = Dataset.from_dict({"text": job["texts"], "source": ["a"] * len(job["texts"])})
        kept.append(prepare.prepare_rows(documents, load_tokenizer(job["base"]), 32))
    else:
        adaptation._changed(job["texts"], 290, job["base"], None)
    print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATGPT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(base_folder)


def documents(texts: list[str] = TEXTS) -> Dataset:
    return Dataset.from_dict({"text": texts, "source": ["a"] * len(texts)})


class Other:
    """Another process that works with the same cache."""

    def __init__(self, base: Path) -> None:
        self.base = base
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen([sys.executable, "-c", OTHER], env=environment, **pipes)  # type: ignore[call-overload]

    def begins(self, what: str, texts: list[str] = TEXTS) -> None:
        self.says(json.dumps({"what": what, "texts": texts, "base": str(self.base)}))
        self.hears("stopped")

    def says(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hears(self, line: str) -> None:
        # The training of a tokenizer prints empty lines.
        for heard in self.process.stdout:
            if heard.strip():
                assert heard == line + "\n"
                return
        pytest.fail("the other process has ended")

    def is_killed(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(base_folder: Path, root: Path) -> Iterator[Other]:
    process = Other(base_folder)
    yield process
    process.is_killed()


class InThread(threading.Thread):
    """A call that waits for the other process."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.start()

    def run(self) -> None:
        self.result = self.function()


def test_two_processes(
    other: Other,
    tokenizer: PreTrainedTokenizerBase,
    base_folder: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_until: Callable[[Callable[[], object]], None],
    patience: int,
) -> None:
    writes: list[Path] = []
    write = prepare._write
    monkeypatch.setattr(prepare, "_write", lambda folder, *rest: writes.append(folder) or write(folder, *rest))
    caplog.set_level(logging.WARNING)

    def waits_for_the_other(function: Callable[[], Any], ends: Callable[[], None]) -> Any:
        caplog.clear()
        thread = InThread(function)
        wait_until(lambda: "Another process is writing" in caplog.text)
        # What another process writes is not removed.
        assert not {"rows", "unfinished"} & {entry.kind for entry in prune(root).removed}
        ends()
        thread.join(patience)
        return thread.result

    def goes_on() -> None:
        other.says("")
        other.hears("done")

    other.begins("rows")
    found = waits_for_the_other(lambda: prepare_rows(documents(), tokenizer, 32), goes_on)
    assert writes == []
    assert len(found.rows) > 1
    del found
    # The other process still has them in memory.
    pruned = prune(root)
    assert [entry.kind for entry in pruned.in_use] == ["rows"]
    assert pruned.removed == []
    assert isinstance(prepare_rows(documents(), tokenizer, 32), PreparedRows)
    assert writes == []

    other.begins("model")
    folder = waits_for_the_other(lambda: adaptation._changed(TEXTS, 290, str(base_folder), None), goes_on)
    assert len(load_tokenizer(folder)) == load_model(folder).config.vocab_size == 290
    assert [entry.kind for entry in entries(root)] == ["rows", "models"]

    # A process that is killed leaves no lock, and what it began is removed.
    other.begins("rows", TEXTS[:30])
    expected = waits_for_the_other(lambda: prepare_rows(documents(TEXTS[:30]), tokenizer, 32), other.is_killed)
    assert len(writes) == 1
    assert expected.rows[:] == prepare_rows(documents(TEXTS[:30]), tokenizer, 32, cache_dir=root / "else").rows[:]
    assert not list(root.rglob(".*"))
    del expected
    assert [entry.kind for entry in prune(root).removed] == ["rows", "rows"]
    assert [path.name for path in root.iterdir()] == ["else"]


@pytest.mark.parametrize("where", ["first", "middle", "last", "zeros", "statistics"])
def test_a_changed_bit_is_noticed(where: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    expected = prepare_rows(documents(), tokenizer, 32)
    ids, counts = expected.rows[:], expected.statistics
    del expected
    (folder,) = root.iterdir()
    file = folder / "rows.arrow"
    content = bytearray(file.read_bytes())
    if where == "zeros":
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    elif where == "statistics":
        file = folder / "statistics.json"
        content = bytearray(file.read_bytes().replace(b'"documents": 40', b'"documents": 41'))
    else:
        content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    assert file.read_bytes() != content
    file.write_bytes(content)
    again = prepare_rows(documents(), tokenizer, 32)
    assert (again.rows[:], again.statistics) == (ids, counts)


def test_damaged_texts_and_models_are_made_again(base_folder: Path, root: Path) -> None:
    file = adaptation._file(TEXTS)
    content = file.read_bytes()
    for damaged in (b"", content[:-9], content.replace(b"Document 7", b"Dokument 7")):
        file.write_bytes(damaged)
        assert adaptation._file(TEXTS).read_bytes() == content
    folder = Path(adaptation._changed(TEXTS, None, str(base_folder), 1))
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("model.safetensors", "config.json", "written.json"):
        (folder / name).write_bytes(whole[name][:-5])
        assert adaptation._changed(TEXTS, None, str(base_folder), 1) == str(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
        (folder / name).unlink()
        adaptation._changed(TEXTS, None, str(base_folder), 1)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_pruning_by_age(tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    for texts in (TEXTS, TEXTS[:9]):
        prepare_rows(documents(texts), tokenizer, 32)
        for path in root.rglob("*.*"):
            os.utime(path, (0, time.time() - 10 * 86400))
    prepare_rows(documents(), tokenizer, 32)  # used again today
    assert prune(root, older_than=11).removed == []
    (removed,) = prune(root, older_than=9).removed
    assert removed.bytes > 1000
    assert [entry.path for entry in prune(root).removed] != [removed.path]
    assert list(root.iterdir()) == []
    assert prune(root).removed == []


def test_what_we_did_not_write_stays(tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    """As if the cache were a home folder."""
    prepare_rows(documents(), tokenizer, 32)
    others = {
        "letter.txt": b"Dear",
        ".ssh/key": b"secret",
        ".saving-1/model.safetensors": b"a run's",
        "conformance/tests.py": b"",
        f"{KEY}/notes.txt": b"mine",
        f"{KEY[::-1]}/rows.arrow": b"other bytes",
        f"{KEY[1:]}0/rows.arrow": b"\xff\xff\xff\xff and",
        f"{KEY[1:]}0/more.csv": b"a,b",
        f"{KEY[1:]}1/.saving-2/file": b"a run that begins in a folder with",
        f"{KEY[1:]}1/recipe.yaml": b"seed: 1",
        f"texts/{KEY}.jsonl": b'{"prompt": "of another program"}',
        f"texts/{KEY}.txt": b"text",
        "texts/poem.jsonl": b'{"text": "a rose"}',
        "texts/.saving-3/model.safetensors": b"a run's",
        f"models/{KEY}/config.json": b'{"model_type": "chatgpt"}',
        f"models/{KEY}/model.safetensors": b"a user's model",
        f"models/{KEY[1:]}2/written.json": b'{"config.json": 1}',
        f"models/{KEY[1:]}2/diary.txt": b"",
        f".{KEY}.lock": b"with content",
    }
    for name, content in others.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.arrow").write_bytes(b"\xff\xff\xff\xff")
    (root / f"{KEY[1:]}3").symlink_to(elsewhere)
    assert [entry.kind for entry in prune(root).removed] == ["rows"]
    left = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert left == others
    assert (elsewhere / "rows.arrow").exists()


def test_what_killed_processes_left_is_removed(root: Path) -> None:
    half = {
        f"{KEY}/.saving-a/scratch/tokens.arrow": b"1" * 100,
        f"{KEY[1:]}0/rows.arrow": b"\xff\xff\xff\xff and more",
        f"{KEY[1:]}0/.saving-b/statistics.json": b"{}",
        f"texts/.saving-c/{KEY}.jsonl": b'{"te',
        f"models/{KEY}/.saving-d/config.json": b"{}",
        f"models/{KEY[1:]}0/config.json": b"{}",
        f"models/{KEY[1:]}0/.saving-e/written.json": b'{"config.json": 1}',
        f".{KEY}.lock": b"",
        f"models/.{KEY}.lock": b"",
        ".texts.lock": b"",
    }
    for name, content in half.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    kinds = [entry.kind for entry in prune(root).removed]
    assert sorted(kinds) == ["models", "rows", *["unfinished"] * 5]
    assert list(root.iterdir()) == []


def test_a_cache_that_is_a_file(tokenizer: PreTrainedTokenizerBase, root: Path, base_folder: Path) -> None:
    root.write_text("")
    message = f"^The cache folder .* cannot be written: {root} is a file. Set CHATGPT_HF_CACHE to a folder"
    calls: list[Callable[[], Any]] = [
        lambda: prepare_rows(documents(), tokenizer, 32),
        lambda: adaptation._file(TEXTS),
        lambda: adaptation._changed(TEXTS, None, str(base_folder), 1),
        lambda: prune(root),
    ]
    for call in calls:
        with pytest.raises(OutputError, match=message):
            call()
    assert entries(root) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written(
    number: int, tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "file")

    # Whatever is the first to write: the folder, the lock, the temporary folder, the rows.
    places = ((Path, "mkdir"), (cache.FileLock, "acquire"), (cache, "atomic_folder"), (prepare, "encode_batch"))
    for place, name in places[:2] if number == errno.EROFS else places[::3]:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refuse)
            with pytest.raises(OutputError, match=rf"^The cache folder {root} cannot be written: .*CHATGPT_HF_CACHE"):
                prepare_rows(documents(), tokenizer, 32)
        assert not [path for path in root.rglob("*") if path.is_file()]


def test_rows_on_a_read_only_disk_are_read(
    tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    prepare_rows(documents(), tokenizer, 32)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(cache.FileLock, "acquire", refuse)
    assert len(prepare_rows(documents(), tokenizer, 32).rows) > 1


Usage = namedtuple("Usage", "total used free")


def test_the_space_is_checked_before_rows_are_made(
    tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = sum(source.tokens for source in prepare_rows(documents(), tokenizer, 32, cache_dir=root / "a").statistics)
    monkeypatch.setattr(prepare, "_write", lambda *_: pytest.fail("rows are written"))
    for share in (0, 0.5):
        free = int(share * tokens * 12)
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda _, free=free: Usage(10**12, 0, free))
        with pytest.raises(
            OutputError, match=rf"the disk of the cache folder {root} has only .* set CHATGPT_HF_CACHE"
        ):
            prepare_rows(documents(), tokenizer, 32)
    assert not [path for path in root.iterdir() if path.name != "a"]
    # More than half of the free space is taken, but all of it fits.
    monkeypatch.undo()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Usage(10**12, 0, tokens * 16))
    prepare_rows(documents(), tokenizer, 32, cache_dir=root / "b")


def test_a_large_cache_is_pointed_out_once(
    tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare_rows(documents(TEXTS[:20]), tokenizer, 32)
    assert "--prune" not in caplog.text
    monkeypatch.setattr(cache, "LARGE", 1000)
    prepare_rows(documents(TEXTS[:20]), tokenizer, 32)
    assert "--prune" not in caplog.text
    prepare_rows(documents(), tokenizer, 32)
    assert f"The cache {root} has grown to" in caplog.text
    assert "`chatgpt-hf env --prune` empties it" in caplog.text


def test_a_failure_releases_the_lock(root: Path) -> None:
    with pytest.raises(ValueError, match="no"), building(root / KEY):
        raise ValueError("no")
    with building(root / KEY):
        assert [path.name for path in root.iterdir()] == [f".{KEY}.lock"]
    assert list(root.iterdir()) == []
