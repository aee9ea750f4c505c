"""Makes training rows from a stream of documents and resumes exactly from a state of a few kilobytes."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..tokenization_chatgpt import encode_document_arrays
from .packing import ROW_COLUMNS, Packing, Tokens, pack_rest, pack_tokens

_WINDOW_BLOCKS = 256
# Documents are tokenized in batches of about this many characters.
_ENCODED_CHARACTERS = 1 << 16
_ASSEMBLED_ROWS = 64


class StreamingRows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Packs a stream of documents into rows, one window of documents at a time.

    A row has `input_ids`, `labels` and `position_ids`, each (block_size,), as `pack_documents` describes them.

    The documents of a window are packed like those of a finite corpus. Its full rows are yielded in random order; the
    pieces of the one unfilled row move to the next window. There is no shuffle buffer, so a state is small and exact:
    where the window begins in the stream, the pieces carried into it, and how many of its rows were yielded. On
    resuming, the window is read and packed again and the rows already yielded are skipped.

    Every process and data loader worker reads the whole stream and takes its share of the documents; `SharedStream` makes the order
    of rows independent of their number.

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
        whole: Do not share the documents of this rank among data loader workers.

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
        whole: bool = False,
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
        self.whole = whole
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
        worker = None if self.whole else torch.utils.data.get_worker_info()
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
            order = np.random.default_rng([self.seed, unit, state["window"]]).permutation(packing.num_rows())
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
