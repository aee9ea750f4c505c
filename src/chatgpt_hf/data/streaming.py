"""Makes training rows from a stream of documents and resumes exactly from a state of a few kilobytes."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase

from ..errors import CheckpointError, ConfigError, DataError
from ..tokenization_chatgpt import encode_document_arrays
from .packing import ROW_COLUMNS, Packing, Tokens, pack_rest, pack_tokens

_WINDOW_BLOCKS = 256
# Documents are tokenized in batches of about this many characters.
_ENCODED_CHARACTERS = 1 << 16
_ASSEMBLED_ROWS = 64
# In a state: the number of shards.
_STREAM_SHARDS = "stream_shards"


class StreamingRows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Packs a stream of documents into rows, one window of documents at a time.

    A row has `input_ids`, `labels` and `position_ids`, each (block_size,), as `pack_documents` describes them.

    The documents of a window are packed like those of a finite corpus. Its full rows are yielded in random order; the
    pieces of the one unfilled row move to the next window. There is no shuffle buffer, so a state is small and exact:
    where the window begins in the stream, the pieces carried into it, and how many of its rows were yielded. On
    resuming, the window is read and packed again and the rows already yielded are skipped.

    Every process and data loader worker reads the whole stream and takes its share of the documents.

    The class follows the protocol of `torchdata.stateful_dataloader.StatefulDataLoader`: a loaded state applies to the
    next iteration only; later ones start from the beginning.

    Args:
        documents: The stream, with a column `text`, as `stream_mixture` returns it; may be endless.
        tokenizer: A tokenizer with an eos token.
        block_size: Tokens in a row.
        window_tokens: Minimum number of tokens to shuffle and pack together; 256 rows by default.
        seed: Seed of the row order.
        rank: Rank of this process, below `world_size`.
        world_size: Number of processes that share the stream.
        shard: Number of the part of a stream that `documents` are, by which its order differs from that of other parts.

    Raises:
        ConfigError: If `block_size` is below 2 or, on resuming, the number of processes or workers has changed.
        DataError: If the stream has no documents, or one that cannot be read.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        *,
        window_tokens: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shard: int = 0,
    ) -> None:
        if block_size < 2:
            raise ConfigError(f"block_size is {block_size}: a row of fewer than 2 tokens has nothing to predict.")
        self.documents = documents
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.window_tokens = window_tokens or _WINDOW_BLOCKS * block_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shard = shard
        # Only plain Python types, so that it can be saved as JSON. `documents` counts those that all units have read.
        self._beginning: dict[str, Any] = {
            "source": documents.state_dict(),
            "documents": 0,
            "window": 0,
            "carried": [],
            "yielded": 0,
        }
        self._loaded: dict[str, Any] | None = None
        self._state = self._beginning

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the iteration, after the last row that was yielded."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next iteration resume from a state."""
        self._state = self._loaded = dict(state_dict)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        unit, units = self.rank * workers + (0 if worker is None else worker.id), self.world_size * workers
        state, self._loaded = self._loaded or self._beginning, None
        if state.get("units", units) != units:
            raise ConfigError(
                f"The stream was shared by {state['units']} readers and is now shared by {units} (processes times "
                "data loader workers): resume with as many processes and workers as the run started with."
            )
        self._state = state = {**state, "units": units}
        self.documents.load_state_dict(state["source"])
        # `iter` reads the whole stream; plain iteration would divide its files among workers.
        stream = self.documents.iter(batch_size=1)
        ended = False
        while not ended:
            carried = [np.array(ids, np.int32) for ids in state["carried"]]
            read, count, ended = self._read_window(stream, state["documents"], unit, units)
            packing, rest = pack_tokens(Tokens.of([*carried, *read]), self.block_size)
            del read
            order = np.random.default_rng([self.seed, unit + self.shard, state["window"]]).permutation(
                packing.num_rows()
            )
            rows = self._assembled(packing, order)
            if ended:
                last = pack_rest(rest, self.block_size)
                rows = chain(rows, self._assembled(last, np.arange(last.num_rows())))
            for index, row in enumerate(rows):
                if index >= state["yielded"]:
                    self._state = {**state, "yielded": index + 1}
                    yield row
            if count == 0:
                raise DataError("The stream has no documents to train on.")
            # A document can be a whole book: free this window's memory before reading the next.
            del packing, rows
            state = {
                "source": self.documents.state_dict(),
                "documents": count,
                "window": state["window"] + 1,
                "carried": [ids.tolist() for ids in rest.documents()],
                "yielded": 0,
                "units": units,
            }

    def _read_window(
        self, stream: Iterator[dict[str, list[str]]], count: int, unit: int, units: int
    ) -> tuple[list[npt.NDArray[np.int32]], int, bool]:
        """Reads one window for this unit: its documents, the count for all units, and whether the stream ended."""
        read: list[npt.NDArray[np.int32]] = []
        tokens, ended = 0, False
        while tokens < self.window_tokens and not ended:
            texts: list[str] = []
            characters = 0
            while characters < min(_ENCODED_CHARACTERS, self.window_tokens):
                row = next(stream, None)
                if row is None:
                    ended = True
                    break
                if count % units == unit:
                    texts += row["text"]
                    characters += len(row["text"][0])
                count += 1
            encoded = encode_document_arrays(self.tokenizer, texts)
            read += encoded
            tokens += sum(map(len, encoded))
        return read, count, ended

    def _assembled(self, packing: Packing, order: npt.NDArray[np.int64]) -> Iterator[dict[str, torch.Tensor]]:
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        for some in np.split(order, range(_ASSEMBLED_ROWS, len(order), _ASSEMBLED_ROWS)):
            rows = packing.assemble(some, pad)._asdict()
            arrays = {name: torch.from_numpy(rows[name].astype(np.int64)) for name in ROW_COLUMNS}
            for index in range(len(arrays["labels"])):
                yield {name: array[index] for name, array in arrays.items()}


class ShardedRows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Rows of a stream that is cut into shards, each read by one process only.

    Of `count` shards, a process reads every `world_size`-th and takes a row from each in turn. So the processes together
    take the rows in the order in which a single process would: row number n comes from shard n modulo `count`. After a
    step, what has been taken from each shard does not depend on the number of processes, and a run can resume on another
    one that divides `count`.

    Args:
        shards: The endless rows of this process' shards, by their numbers.
        count: Number of all shards.

    Raises:
        ConfigError: When read by more than one worker of a data loader.
        CheckpointError: If a loaded state lacks a shard, or was saved with another number of shards.
    """

    def __init__(self, shards: Mapping[int, StreamingRows], count: int) -> None:
        self.shards = dict(sorted(shards.items()))
        self.count = count
        self._taken = dict.fromkeys(self.shards, 0)
        self._loaded = False

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in each shard, after the last row that was yielded."""
        shards = {
            str(number): {"taken": self._taken[number], "position": rows.state_dict()}
            for number, rows in self.shards.items()
        }
        return {_STREAM_SHARDS: self.count, "shards": shards}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next iteration resume from a state, which may hold the shards of other processes too."""
        if state_dict[_STREAM_SHARDS] != self.count:
            raise CheckpointError(
                f"The stream was cut into {state_dict[_STREAM_SHARDS]} shards and is now cut into {self.count}: give "
                f"--stream_shards {state_dict[_STREAM_SHARDS]}."
            )
        for number, rows in self.shards.items():
            if (shard := state_dict["shards"].get(str(number))) is None:
                raise CheckpointError(
                    f"The checkpoint has no position in shard {number} of the stream: use an earlier checkpoint."
                )
            self._taken[number] = shard["taken"]
            rows.load_state_dict(shard["position"])
        self._loaded = True

    def load_states(self, states: Iterable[Any]) -> None:
        """Makes the next iteration resume from what the data loaders of all processes saved."""
        found = [state for saved in states for state in _sharded_states(saved)]
        if not found:
            raise CheckpointError("The checkpoint has no positions in the stream's shards: use an earlier checkpoint.")
        merged = {number: shard for state in found for number, shard in state["shards"].items()}
        self.load_state_dict({**found[0], "shards": merged})

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError(
                f"--dataloader_num_workers is {worker.num_workers}: a stream that is cut into shards is read by 0 or 1 "
                "workers of each process."
            )
        if not self._loaded:
            self._taken = dict.fromkeys(self.shards, 0)
        self._loaded = False
        iterators = {number: iter(rows) for number, rows in self.shards.items()}
        while True:
            number = min(self._taken, key=lambda shard: (self._taken[shard], shard))
            row = next(iterators[number], None)
            if row is None:
                return
            self._taken[number] += 1
            yield row


def _sharded_states(saved: Any) -> Iterator[dict[str, Any]]:
    """Finds the states of `ShardedRows` within that of a data loader, which wraps them."""
    if isinstance(saved, Mapping):
        if _STREAM_SHARDS in saved:
            yield dict(saved)
            return
        saved = saved.values()
    elif not isinstance(saved, list):
        return
    for value in saved:
        yield from _sharded_states(value)
