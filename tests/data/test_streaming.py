"""A resumed stream yields what it would have yielded, for every kind of source and number of readers."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import PreTrainedTokenizerBase, default_data_collator

from chatgpt_hf import train_tokenizer
from chatgpt_hf.data import corpus
from chatgpt_hf.data.mixture import stream_mixture
from chatgpt_hf.data.sources import CorpusSource
from chatgpt_hf.data.streaming import ShardedRows, StreamingRows
from chatgpt_hf.errors import CheckpointError, ConfigError, DataError
from chatgpt_hf.tokenization_chatgpt import encode_documents

TEXTS = [f"Document {number}. " + "Some more words follow here. " * (number % 7) for number in range(50)]
BLOCK = 16


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300, show_progress=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("stream")
    paths = []
    for name, texts in (("a.jsonl", TEXTS[:30]), ("b.jsonl", TEXTS[30:])):
        path = folder / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        paths.append(str(path))
    (folder / "c.csv").write_text("text\n" + "".join(f'"row {number}, of a table"\n' for number in range(9)))
    return [*paths, str(folder / "c.csv")]


def finite(texts: list[str]) -> IterableDataset:
    return Dataset.from_dict({"text": texts}).to_iterable_dataset()


def plain(row: dict[str, torch.Tensor]) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in row.items()}


def learned(rows: list[dict[str, torch.Tensor]]) -> list[int]:
    return sorted(label for row in rows for label in row["labels"].tolist() if label != -100)


def expected(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return sorted(token for ids in encode_documents(tokenizer, texts) for token in ids[1:])


@pytest.mark.parametrize("window_tokens", [None, 1, 100])
def test_a_finite_stream_is_learned_once(tokenizer: PreTrainedTokenizerBase, window_tokens: int | None) -> None:
    rows = list(StreamingRows(finite(TEXTS), tokenizer, BLOCK, window_tokens=window_tokens))
    assert learned(rows) == expected(tokenizer, TEXTS)
    assert all(value.shape == (BLOCK,) and value.dtype == torch.int64 for row in rows for value in row.values())
    padded = [row for row in rows if tokenizer.pad_token_id in row["input_ids"]]
    assert len(padded) <= 1


def test_seeds(tokenizer: PreTrainedTokenizerBase) -> None:
    once, again, other = (
        [plain(row) for row in StreamingRows(finite(TEXTS), tokenizer, BLOCK, seed=seed)] for seed in (1, 1, 2)
    )
    assert once == again != other


def test_units_share_the_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    parts = [
        list(StreamingRows(finite(TEXTS), tokenizer, BLOCK, window_tokens=100, rank=rank, world_size=3))
        for rank in range(3)
    ]
    for rank, rows in enumerate(parts):
        assert learned(rows) == expected(tokenizer, TEXTS[rank::3])


def test_iterating_again_starts_again(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = StreamingRows(finite(TEXTS), tokenizer, BLOCK, window_tokens=100)
    first = [plain(row) for row in islice(rows, 7)]
    state = rows.state_dict()
    assert [plain(row) for row in islice(rows, 7)] == first
    rows.load_state_dict(state)
    assert rows.state_dict() == state
    following = plain(next(iter(rows)))
    assert following not in first
    assert plain(next(iter(rows))) == first[0]


def mixed(files: list[str], kind: str) -> IterableDataset:
    weights = {"one": [None], "turns": [None] * 3, "weights": [1, 3, 0.5], "builtin": [1, 1]}[kind]
    names = ["builtin:python-docs", files[0]] if kind == "builtin" else files[: len(weights)]
    sources = [CorpusSource(name, weight) for name, weight in zip(names, weights, strict=True)]
    return stream_mixture(sources, test_fraction=0.1, eval_documents=1, eval_corpus=files[0], seed=5).train


@pytest.mark.parametrize("kind", ["one", "turns", "weights", "builtin"])
def test_a_resumed_stream_goes_on_exactly(kind: str, files: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Saves the state after every row as JSON; the small sources repeat several times during the test."""

    def stream() -> StreamingRows:
        return StreamingRows(mixed(files, kind), tokenizer, BLOCK, window_tokens=150, seed=2)

    uninterrupted, states = [], [stream().state_dict()]
    running = stream()
    for row in islice(running, 220):
        uninterrupted.append(plain(row))
        states.append(running.state_dict())
    for after in [0, 1, 2, 3, 11, 30, 64, 101, 137, 180, 209]:
        resumed = stream()
        resumed.load_state_dict(json.loads(json.dumps(states[after])))
        assert [plain(row) for row in islice(resumed, 10)] == uninterrupted[after : after + 10], f"after {after} rows"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["turns", "weights"])
def test_a_resumed_loader_gives_the_same_batches(
    kind: str, workers: int, files: list[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    def loader() -> StatefulDataLoader:
        rows = StreamingRows(mixed(files, kind), tokenizer, BLOCK, window_tokens=150, seed=2)
        return StatefulDataLoader(rows, batch_size=3, num_workers=workers, collate_fn=default_data_collator)

    uninterrupted, states = [], []
    running = loader()
    for batch in islice(running, 60):
        uninterrupted.append(plain(batch))
        states.append(running.state_dict())
    for after in [1, 2, 9, 40] if workers else [1, 2, 3, 5, 8, 13, 21, 29, 34, 41, 46, 50]:
        resumed = loader()
        resumed.load_state_dict(json.loads(json.dumps(states[after - 1])))
        assert [plain(batch) for batch in islice(resumed, 8)] == uninterrupted[after : after + 8], f"after {after}"


def test_a_state_is_small(files: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    rows = StreamingRows(mixed(files, "weights"), tokenizer, BLOCK)
    for _ in islice(rows, 300):
        pass
    assert len(json.dumps(rows.state_dict())) < 5000


def test_another_number_of_workers_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = StreamingRows(finite(TEXTS), tokenizer, BLOCK)
    next(iter(rows))
    other = StreamingRows(finite(TEXTS), tokenizer, BLOCK, world_size=2)
    other.load_state_dict(rows.state_dict())
    with pytest.raises(ConfigError, match="shared by 1 readers and is now shared by 2"):
        next(iter(other))


def test_nothing_to_stream(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="no documents"):
        list(StreamingRows(finite(TEXTS).filter(lambda row: False), tokenizer, BLOCK))
    with pytest.raises(ConfigError, match="block_size is 1"):
        StreamingRows(finite(TEXTS), tokenizer, 1)


def test_a_broken_line_names_its_file_in_a_worker(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "whole"}\n{"text": ')
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("held out")
    train = stream_mixture([CorpusSource(str(path))], eval_corpus=str(held_out)).train
    for workers in (0, 1):
        loader = StatefulDataLoader(StreamingRows(train, tokenizer, BLOCK), num_workers=workers)
        with pytest.raises(DataError, match=r"broken\.jsonl is broken JSON in line 2"):
            list(loader)


def sharded(
    files: list[str], count: int, rank: int, world_size: int, tokenizer: PreTrainedTokenizerBase
) -> ShardedRows:
    """The rows of one of several processes."""
    sources = [CorpusSource(name, weight) for name, weight in zip(files, (1, 2), strict=True)]
    streamed = stream_mixture(sources, test_fraction=0.1, eval_documents=1, eval_corpus=files[0], seed=5)
    shards = {
        number: StreamingRows(streamed.shard(number, count), tokenizer, BLOCK, window_tokens=150, seed=2, shard=number)
        for number in range(rank, count, world_size)
    }
    return ShardedRows(shards, count)


def together(processes: list[ShardedRows], number: int) -> list[dict[str, list[Any]]]:
    """The next rows of all processes, which take turns."""
    running = [islice(process, number // len(processes)) for process in processes]
    return [plain(row) for rows in zip(*running, strict=True) for row in rows]


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two folders: one with as many files as there are shards, one with fewer."""
    folder = tmp_path_factory.mktemp("shards")
    for name, number in (("many", 6), ("few", 2)):
        for place in range(number):
            path = folder / name / f"{place}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps({"text": f"{name} {text}"}) + "\n" for text in TEXTS[place::number]))
    return [str(folder / "many"), str(folder / "few")]


def test_shards_give_the_same_rows_to_any_number_of_processes(
    many_files: list[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    def processes(number: int) -> list[ShardedRows]:
        return [sharded(many_files, 6, rank, number, tokenizer) for rank in range(number)]

    expected = together(processes(1), 240)
    assert len({json.dumps(row) for row in expected}) > 100
    for number in (2, 3, 6):
        assert together(processes(number), 240) == expected, number
    # Resumed by other numbers, from what the data loaders of all processes saved.
    for before, after in ((2, 3), (3, 1), (1, 6), (6, 2), (2, 2)):
        begun = processes(before)
        assert together(begun, 120) == expected[:120]
        saved = [json.loads(json.dumps({"inner": [process.state_dict()]})) for process in begun]
        resumed = processes(after)
        for process in resumed:
            process.load_states(saved)
        assert together(resumed, 120) == expected[120:], (before, after)


def test_shards_divide_the_documents(many_files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [CorpusSource(name) for name in many_files]
    streamed = stream_mixture(sources, eval_corpus=str(Path(many_files[0]) / "0.jsonl"))
    opened: list[str] = []
    read = corpus._documents
    monkeypatch.setattr(
        corpus, "_documents", lambda path, selection: opened.append(str(path)) or read(path, selection)
    )
    found: list[set[str]] = []
    for number in range(6):
        opened.clear()
        shard = streamed.shard(number, 6)
        found.append({row["text"] for row in islice(shard, 40)})
        assert set(opened) == {f"{many_files[0]}/{number}.jsonl", f"{many_files[1]}/{number % 2}.jsonl"}
    everything = [f"{name} {text}" for name in ("many", "few") for text in TEXTS]
    assert sorted(text for texts in found for text in texts) == sorted(everything)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_of_shards_resumes(workers: int, many_files: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    def loader(rows: ShardedRows) -> StatefulDataLoader:
        return StatefulDataLoader(rows, batch_size=3, num_workers=workers, collate_fn=default_data_collator)

    uninterrupted, states = [], []
    running = loader(sharded(many_files, 4, 0, 2, tokenizer))
    for batch in islice(running, 12):
        uninterrupted.append(plain(batch))
        states.append(json.loads(json.dumps(running.state_dict())))
    for after in (1, 6):
        rows = sharded(many_files, 4, 0, 2, tokenizer)
        rows.load_states([states[after - 1]])
        assert [plain(batch) for batch in islice(loader(rows), 4)] == uninterrupted[after : after + 4]


def test_shards_that_do_not_fit(many_files: list[str], files: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    rows = sharded(many_files, 4, 0, 2, tokenizer)
    with pytest.raises(CheckpointError, match=r"cut into 4 shards and is now cut into 2: give --stream_shards 4"):
        sharded(many_files, 2, 0, 1, tokenizer).load_states([rows.state_dict()])
    with pytest.raises(CheckpointError, match="no position in shard 1 of the stream"):
        sharded(many_files, 4, 1, 2, tokenizer).load_states([rows.state_dict()])
    with pytest.raises(CheckpointError, match="no positions in the stream's shards"):
        rows.load_states([{"units": 1}])
    with pytest.raises(ConfigError, match="read by 0 or 1 workers of each process"):
        list(StatefulDataLoader(rows, num_workers=2))
    with pytest.raises(DataError, match=r"Shard 31 of 31 of the stream has no documents of one of the sources"):
        stream_mixture([CorpusSource(files[0])], eval_corpus=files[1]).shard(30, 31)
