"""A stream of rows whose order does not depend on how many processes read it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..errors import ConfigError, DataError
from .streaming import StreamingRows


class SharedStream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Rows from a fixed number of virtual shards in turn: row number k of the whole stream comes from shard k modulo their number.

    Of `n` readers, number `r` takes the rows k with k = r modulo n. So the rows of a step are the same for every number of
    processes, and their order too. A process reads only the shards of its rows. If its processes divide the shards, nobody reads
    what it does not use; otherwise several read one shard, and each skips the rows of the others.

    A shard that ends begins again, so the stream never ends.

    Args:
        shard: Returns the rows of a shard, by its number: a new `StreamingRows` with it as `rank` and the number of shards as
            `world_size`.
        shards: Number of virtual shards.
        rank: Rank of this process, below `world_size`.
        world_size: Number of processes.
    """

    def __init__(
        self, shard: Callable[[int], StreamingRows], shards: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.shard = shard
        self.shards = shards
        self.rank = rank
        self.world_size = world_size
        # `row` counts the rows of all readers, and `passed` those of a shard, which may be a little fewer than were read of it
        # elsewhere: the others are skipped.
        self._loaded: dict[str, Any] | None = None
        self._state: Callable[[], dict[str, Any]] = lambda: self._loaded or {"row": 0, "shards": {}}

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the iteration, after the last row that was yielded. Only plain Python types."""
        return self._state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next iteration resume from a state of a reader with the same rank, of as many."""
        self._loaded = dict(state_dict)
        self._state = lambda: dict(state_dict)

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Makes the next iteration resume from the states of all readers, however many there were.

        Args:
            states: In the order of their ranks; of this class, or each of a `StreamingRows` that was a shard of its own.

        Raises:
            ConfigError: If they are of another number of shards.
        """
        if all("shards" not in state for state in states):
            # All had read equally many rows, and the counts begin here.
            states = [
                {"row": 0, "of": len(states), "shards": {str(number): {"passed": 0, "rows": state}}}
                for number, state in enumerate(states)
            ]
        merged: dict[str, Any] = {}
        for state in states:
            if state.get("of", self.shards) != self.shards:
                raise ConfigError(
                    f"The stream had {state['of']} virtual shards and now has {self.shards}: give --stream_shards {state['of']}."
                )
            for number, place in state["shards"].items():
                if number not in merged or merged[number]["passed"] < place["passed"]:
                    merged[number] = place
        self.load_state_dict({"row": states[0]["row"], "of": self.shards, "shards": merged})

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        readers, reader = self.world_size * workers, self.rank * workers + number
        state, self._loaded = self._loaded or {"row": 0, "shards": {}}, None
        if "shards" not in state:
            # Of a `StreamingRows` in a data loader worker, of which there are as many as before.
            state = {"row": 0, "shards": {str(reader): {"passed": 0, "rows": state}}}
        sources: dict[int, StreamingRows] = {}
        passed: dict[int, int] = {}
        iterators: dict[int, Iterator[dict[str, torch.Tensor]]] = {}
        common = math.gcd(self.shards, readers)
        for each in range(reader % common, self.shards, common):
            sources[each], passed[each] = self.shard(each), 0
            if (place := state["shards"].get(str(each))) is not None:
                passed[each] = place["passed"]
                sources[each].load_state_dict(place["rows"])
            iterators[each] = iter(sources[each])
        done = state["row"]

        def position() -> dict[str, Any]:
            places = {
                str(each): {"passed": passed[each], "rows": source.state_dict()} for each, source in sources.items()
            }
            return {"row": done, "of": self.shards, "shards": places}

        self._state = position
        row = done + (reader - done) % readers
        while True:
            each, wanted = row % self.shards, row // self.shards
            while passed[each] <= wanted:
                values = next(iterators[each], None)
                if values is None:
                    iterators[each] = iter(sources[each])
                    values = next(iterators[each], None)
                    if values is None:
                        raise DataError(
                            f"The stream has too few documents for {self.shards} virtual shards: give --stream_shards 1."
                        )
                passed[each] += 1
            row += readers
            done = row - reader
            yield values
