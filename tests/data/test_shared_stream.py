"""The rows of a stream have the same order for every number of processes, and after it changes."""

import json
from itertools import islice
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import train_tokenizer
from chatgpt_hf.data.shared_stream import SharedStream
from chatgpt_hf.data.streaming import StreamingRows
from chatgpt_hf.errors import ConfigError, DataError

TEXTS = [f"Document {number}. " + "Some more words follow here. " * (number % 7) for number in range(50)]
# Rows of a step: every number of processes in the tests divides it.
STEP = 12


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300, show_progress=False)


def shard(tokenizer: PreTrainedTokenizerBase, number: int, shards: int, texts: list[str] = TEXTS) -> StreamingRows:
    documents = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    return StreamingRows(documents, tokenizer, 16, window_tokens=150, rank=number, world_size=shards, whole=True)


def readers(tokenizer: PreTrainedTokenizerBase, shards: int, processes: int) -> list[SharedStream]:
    return [
        SharedStream(lambda number: shard(tokenizer, number, shards), shards, rank=rank, world_size=processes)
        for rank in range(processes)
    ]


def steps(streams: list[SharedStream], count: int) -> list[list[Any]]:
    """The rows of each step, of all processes together."""
    parts = [iter(islice(stream, count * STEP // len(streams))) for stream in streams]
    taken = [
        [row["input_ids"].tolist() for part in parts for row in islice(part, STEP // len(streams))]
        for _ in range(count)
    ]
    assert all(len(step) == STEP for step in taken)
    return [sorted(step) for step in taken]


def states(streams: list[SharedStream]) -> list[dict[str, Any]]:
    return json.loads(json.dumps([stream.state_dict() for stream in streams]))


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_any_number_of_processes_goes_on_with_the_same_rows(tokenizer: PreTrainedTokenizerBase, shards: int) -> None:
    expected = steps(readers(tokenizer, shards, 1), 9)
    # There are fewer rows than these: the shards end and begin again.
    for before, after in ((1, 2), (4, 1), (2, 3)):
        first = readers(tokenizer, shards, before)
        assert steps(first, 3) == expected[:3], f"{before} processes"
        then = readers(tokenizer, shards, after)
        for stream in then:
            stream.load_states(states(first))
        assert steps(then, 3) == expected[3:6], f"{before} to {after} processes"
        last = readers(tokenizer, shards, before)
        for stream in last:
            stream.load_states(states(then))
        assert steps(last, 3) == expected[6:], f"{after} to {before} processes"


def test_a_process_reads_only_its_shards(tokenizer: PreTrainedTokenizerBase) -> None:
    made: list[int] = []

    def noted(number: int) -> StreamingRows:
        made.append(number)
        return shard(tokenizer, number, 4)

    for rank, own in ((0, [0, 2]), (1, [1, 3])):
        made.clear()
        list(islice(SharedStream(noted, 4, rank=rank, world_size=2), 5))
        assert made == own


def test_a_stream_of_an_earlier_version_goes_on(tokenizer: PreTrainedTokenizerBase) -> None:
    """Its processes were the shards, and saved the state of their own rows."""
    parts = [shard(tokenizer, number, 2) for number in range(2)]
    rows = [[row["input_ids"].tolist() for row in islice(part, 6)] for part in parts]
    saved = json.loads(json.dumps([part.state_dict() for part in parts]))
    expected = [sorted(row["input_ids"].tolist() for part in parts for row in list(islice(part, 12))[6:])]
    assert rows[0] != rows[1]
    for processes in (1, 2):
        streams = readers(tokenizer, 2, processes)
        for stream in streams:
            stream.load_states(saved)
        assert steps(streams, 1) == expected


def test_other_shards_and_too_few_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = readers(tokenizer, 2, 1)[0]
    next(iter(stream))
    with pytest.raises(ConfigError, match="had 2 virtual shards and now has 4: give --stream_shards 2"):
        readers(tokenizer, 4, 1)[0].load_states(states([stream]))
    few = SharedStream(lambda number: shard(tokenizer, number, 3, ["one", "two"]), 3)
    with pytest.raises(DataError, match=r"too few documents for 3 virtual shards|no documents"):
        list(islice(few, 9))
