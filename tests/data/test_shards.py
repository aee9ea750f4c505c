"""A corpus that several processes prepare: the rows of `prepare_rows`, whoever makes them and whoever is killed meanwhile."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import train_tokenizer
from chatgpt_hf.cache import entries, prune
from chatgpt_hf.data import packing, shards
from chatgpt_hf.data.prepare import prepare_rows, tokenizer_fingerprint
from chatgpt_hf.data.shards import CorpusShards, PreparedCorpus
from chatgpt_hf.errors import ConfigError, DataError, OutputError

TEXTS = [f"Document {number} of a small corpus, 文 {number * number}. " * (number % 9) for number in range(1, 180)]
BLOCK, SEED = 32, 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 280, show_progress=False)


@pytest.fixture
def documents() -> DatasetDict:
    train, test = TEXTS[:-20], TEXTS[-20:]
    return DatasetDict(
        train=Dataset.from_dict({"text": train, "source": ["b"] * 100 + ["a"] * (len(train) - 100)}),
        test=Dataset.from_dict({"text": test, "source": ["b"] * 20}),
    )


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files of a small corpus."""
    monkeypatch.setattr(shards, "_BATCH", 10)
    monkeypatch.setattr(shards, "_PART_BYTES", 3000)
    monkeypatch.setattr(shards, "_SHARD_WINDOWS", 2)
    monkeypatch.setattr(packing, "_WINDOW_TOKENS", 1500)


def check(found: PreparedCorpus, documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Compares with what one process makes for itself."""
    for split, prepared in (("train", found.train), ("test", found.held_out)):
        expected = prepare_rows(documents[split], tokenizer, BLOCK, seed=SEED, cache_dir=folder)
        assert prepared.rows[:] == expected.rows[:]
        assert prepared.statistics == expected.statistics
        assert prepared.share_of_positions_used == expected.share_of_positions_used
    assert found.held_out_documents[:] == documents["test"][:]


@pytest.mark.parametrize("windows", [1, 2, 100])
def test_rows_are_those_of_one_process(
    windows: int,
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "_SHARD_WINDOWS", windows)
    made = CorpusShards("a", lambda: documents, tokenizer, BLOCK, seed=SEED, root=tmp_path)
    assert made.find() is None
    found = made.prepare()
    check(found, documents, tokenizer, tmp_path / "alone")
    expected = prepare_rows(documents["train"], tokenizer, BLOCK, seed=SEED, cache_dir=tmp_path / "alone")
    assert found.train.fingerprint == expected.fingerprint
    names = {path.name for path in made.folder.iterdir()}
    rows = {name for name in names if name.startswith("rows-")}
    assert names - rows == {"about.json", "held-out.arrow", "prepared.json"}
    assert len([name for name in rows if "held-out" not in name]) > (1 if windows < 100 else 0)


def test_what_is_there_is_not_made_again(
    documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def read_again() -> DatasetDict:
        raise AssertionError

    def made(description: str, block: int = BLOCK, seed: int = SEED) -> CorpusShards:
        return CorpusShards(description, read_again, tokenizer, block, seed=seed, root=tmp_path)

    first = CorpusShards("a", lambda: documents, tokenizer, BLOCK, seed=SEED, root=tmp_path).prepare()
    assert made("a").prepare().train.rows[:] == first.train.rows[:]
    assert [made("b").find(), made("a", 33).find(), made("a", seed=4).find()] == [None] * 3


def test_a_tokenizer_of_the_corpus_is_trained_once(documents: DatasetDict, tmp_path: Path) -> None:
    calls = []

    def train(texts: Iterable[str]) -> PreTrainedTokenizerBase:
        calls.append(list(texts))
        return train_tokenizer(calls[-1], 270, show_progress=False)

    made = CorpusShards("a", lambda: documents, (train, [270]), BLOCK, seed=SEED, root=tmp_path)
    found, again = made.prepare(), made.find()
    assert calls == [documents["train"]["text"][:]]
    expected = train_tokenizer(documents["train"]["text"], 270, show_progress=False)
    assert again is not None
    for tokenizer in (found.tokenizer, again.tokenizer):
        assert tokenizer is not None
        assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(expected)
    check(found, documents, expected, tmp_path / "alone")


def test_two_processes_share_the_work(
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], object]], None],
) -> None:
    """The first is held up in the middle of its first part, until the second has done all others."""
    encode, encoded = shards.encode_batch, []
    begun, released = threading.Event(), threading.Event()

    def slow(batch: dict[str, list[Any]], *arguments: Any) -> Any:
        encoded.append((threading.current_thread().name, batch["text"][0]))
        if threading.current_thread().name == "first":
            begun.set()
            assert released.wait(600)
        return encode(batch, *arguments)

    monkeypatch.setattr(shards, "encode_batch", slow)
    found: dict[str, PreparedCorpus] = {}

    def work() -> None:
        made = CorpusShards("a", lambda: documents, tokenizer, BLOCK, seed=SEED, root=tmp_path)
        found[threading.current_thread().name] = made.prepare()

    first, second = (threading.Thread(target=work, name=name) for name in ("first", "second"))
    first.start()
    try:
        assert begun.wait(600)
        second.start()
        folder = next((tmp_path / "prepared").glob("?" * 32))
        parts = len(list(folder.glob("documents-*.arrow")))
        assert parts > 3
        # The tokens of all parts but one, and those of the held-out documents.
        wait_until(lambda: len(list(folder.glob("tokens-*.arrow"))) == parts)
        assert not found
    finally:
        released.set()
        first.join()
        if second.ident is not None:
            second.join()
    assert len(set(encoded)) == len(encoded)
    assert {name for name, _ in encoded} == {"first", "second"}
    assert found["first"].train.rows[:] == found["second"].train.rows[:]
    check(found["first"], documents, tokenizer, tmp_path / "alone")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("where", "call"), [("_mapped", 2), ("encode_batch", 3), ("rows_table", 3), ("stamp", 2)])
def test_a_killed_process_is_taken_over(
    where: str,
    call: int,
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = CorpusShards("a", lambda: documents, tokenizer, BLOCK, seed=SEED, root=tmp_path)
    function, calls = getattr(shards, where), []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(shards, where, killed)
            made.prepare()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    finished = {path.name for path in made.folder.glob("tokens-*.arrow")}
    assert made.find() is None
    encode, encoded = shards.encode_batch, []
    monkeypatch.setattr(shards, "encode_batch", lambda *each: encoded.append(each) or encode(*each))
    check(made.prepare(), documents, tokenizer, tmp_path / "alone")
    assert not any(path.name.startswith((".saving", ".tokens")) for path in made.folder.iterdir())
    if where in ("rows_table", "checksum"):
        assert finished
        assert not encoded


@pytest.mark.parametrize("damage", ["bit", "cut", "removed", "record", "not json"])
def test_damaged_rows_are_made_again(
    damage: str,
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = CorpusShards("a", lambda: documents, tokenizer, BLOCK, seed=SEED, root=tmp_path)
    made.prepare()
    rows, record = made.folder / "rows-00001.arrow", made.folder / "prepared.json"
    content = rows.read_bytes()
    if damage == "bit":
        rows.write_bytes(content[:-200] + bytes([content[-200] ^ 1]) + content[-199:])
        # Of the processes of one machine, only the first reads all of it.
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert made.find() is not None
        monkeypatch.setenv("LOCAL_RANK", "0")
    elif damage == "cut":
        rows.write_bytes(content[:-8])
    elif damage == "removed":
        rows.unlink()
    else:
        record.write_text(record.read_text().replace('"rows": ', '"rows": 1') if damage == "record" else "{")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(DataError, match=r"The prepared rows in .* are damaged .*: start again"):
        made.find()
    check(made.prepare(), documents, tokenizer, tmp_path / "alone")


def test_pruning(documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    made = CorpusShards("a", lambda: documents, tokenizer, BLOCK, seed=SEED, root=tmp_path)
    found = made.prepare()
    (entry,) = entries(tmp_path)
    assert (entry.kind, entry.path) == ("prepared", made.folder)
    assert entry.bytes == sum(path.stat().st_size for path in made.folder.iterdir())
    assert [each.path for each in prune(tmp_path).in_use] == [made.folder]
    assert found.train.rows[0]
    del found
    (made.folder / "mine.txt").write_text("somebody else's")
    assert not entries(tmp_path)
    (made.folder / "mine.txt").unlink()
    assert [each.path for each in prune(tmp_path).removed] == [made.folder]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_prepared(documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    def prepare(splits: DatasetDict, block: int = BLOCK, root: Path = tmp_path) -> None:
        CorpusShards("a", lambda: splits, tokenizer, block, root=root).prepare()

    with pytest.raises(ConfigError, match="block_size is 1"):
        prepare(documents, 1)
    with pytest.raises(DataError, match="no documents"):
        prepare(DatasetDict(train=documents["train"].select([]), test=documents["test"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file is not a folder"):
        prepare(documents, root=tmp_path / "file")
