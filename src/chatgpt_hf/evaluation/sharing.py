"""Evaluations that the processes of a training divide among them, with the results of one process.

Whole batches are divided, so each is computed as one process would compute it, and every process gets all results.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """The part of one process.

    Attributes:
        rank: Which process this is, from 0.
        size: Number of processes.
        gather: Returns in every process the values of all, in the order of their ranks. Values are what JSON can hold.
    """

    rank: int
    size: int
    gather: Callable[[Any], list[Any]]

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Returns every `size`-th item, from `rank` on: the lists of all processes are about equally long."""
        return list(items[self.rank :: self.size])


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def shared(share: Share) -> Iterator[None]:
    """Divides the evaluations of the block, which all processes must run alike with the same model and data.

    Those that can be divided are scores of texts and greedy answers. All others are repeated by each process.
    """
    token = _share.set(share if share.size > 1 else None)
    try:
        yield
    finally:
        _share.reset(token)


def share_of(model: PreTrainedModel) -> Share | None:
    """Returns the part of this process; None if it computes everything.

    It does if the model is sharded: then each batch needs all processes.
    """
    share = _share.get()
    if share is None or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    return share
