"""Muon on several processes: every matrix is orthogonalized by one of them, its owner, and never twice.

The result is the one that a single process computes from whole matrices: `MuonAdamW` without owners is the reference.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor, Replicate, Shard

# Matrices are orthogonalized in stacks of at most this many elements (512 MB in float32), or one by one: the iteration
# holds several copies of a stack.
STACK_ELEMENTS = 1 << 27

Orthogonalize = Callable[[torch.Tensor], torch.Tensor]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that this process holds, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def layout(tensor: torch.Tensor) -> Any:
    """Returns how a tensor is distributed, as a key: equal for tensors on the same mesh with the same placements."""
    return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None


class Owners:
    """Orthogonalizes updates of equal shape and layout; each process does its share.

    - Plain matrices of one process, or without a group: one after the other, in stacks.
    - Plain matrices that all processes of a group hold (DDP): each orthogonalizes its share and all gather the results.
    - Matrices sharded by rows over one dimension of a mesh (FSDP2, and HSDP within each replica): an all-to-all brings each matrix
      to its owner, another takes its rows back. Between replicas nothing is sent, so each replica repeats the work.
    - Any other layout: every process gathers and orthogonalizes whole matrices.

    Args:
        example: One of the matrices, or a parameter like them.
        group: Processes that hold the same plain matrices and call this together; None for one process.
        orthogonalize: Maps a stack (batch, rows, columns) to one of the same shape.
    """

    def __init__(self, example: torch.Tensor, group: Any, orthogonalize: Orthogonalize) -> None:
        self.orthogonalize = orthogonalize
        self.rows, self.columns = example.shape
        self.example = example
        self.group = None
        if isinstance(example, DTensor):
            sharded = [index for index, placement in enumerate(example.placements) if not placement.is_replicate()]
            if len(sharded) == 1 and example.placements[sharded[0]] == Shard(0):
                self.group = example.device_mesh.get_group(sharded[0])
        elif group is not None and distributed.get_world_size(group) > 1:
            self.group = group
        self.processes = 1 if self.group is None else distributed.get_world_size(self.group)
        stack = max(1, STACK_ELEMENTS // max(1, self.rows * self.columns))
        # All processes of DDP hold all results of a round, those of FSDP2 one stack each.
        self.round = max(stack, self.processes) if not isinstance(example, DTensor) else stack * self.processes

    def rounds(self, matrices: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
        """Splits matrices into parts for `apply`, which bound its memory."""
        for begin in range(0, len(matrices), self.round):
            yield matrices[begin : begin + self.round]

    def apply(self, updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Orthogonalizes the matrices of one round.

        Args:
            updates: The local part of each, as `local` gives it.

        Returns:
            The local parts of the orthogonalized matrices.
        """
        if isinstance(self.example, DTensor):
            return self._from_rows(updates) if self.group is not None else self._from_any_layout(updates)
        if self.group is None:
            return list(self.orthogonalize(torch.stack(list(updates))).unbind())
        return self._from_copies(updates)

    def _share(self, matrices: int) -> list[int]:
        """How many consecutive matrices each process owns."""
        most = -(-matrices // self.processes)
        return [max(0, min(most, matrices - rank * most)) for rank in range(self.processes)]

    def _from_copies(self, updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        shares, rank = self._share(len(updates)), distributed.get_rank(self.group)
        own = updates[sum(shares[:rank]) : sum(shares[: rank + 1])]
        # All must contribute equally many.
        done = updates[0].new_zeros(shares[0], self.rows, self.columns)
        if own:
            done[: len(own)] = self.orthogonalize(torch.stack(list(own)))
        gathered = done.new_empty(self.processes, shares[0], self.rows, self.columns)
        distributed.all_gather(list(gathered.unbind()), done, group=self.group)
        return list(gathered.flatten(0, 1)[: len(updates)].unbind())

    def _from_rows(self, updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        shares, rank = self._share(len(updates)), distributed.get_rank(self.group)
        # Rows of each process: `Shard` divides as `torch.chunk` does.
        most = -(-self.rows // self.processes)
        heights = [max(0, min(most, self.rows - each * most)) for each in range(self.processes)]
        out = [share * heights[rank] * self.columns for share in shares]
        back = [shares[rank] * height * self.columns for height in heights]
        sent = torch.cat([update.reshape(-1) for update in updates])
        received = sent.new_empty(sum(back))
        distributed.all_to_all_single(received, sent, back, out, group=self.group)
        if shares[rank]:
            parts = zip(received.split(back), heights, strict=True)
            whole = torch.cat([part.view(shares[rank], height, self.columns) for part, height in parts], dim=1)
            done = self.orthogonalize(whole).split(heights, dim=1)
            received = torch.cat([part.reshape(-1) for part in done])
        result = torch.empty_like(sent)
        distributed.all_to_all_single(result, received, out, back, group=self.group)
        return list(result.view(len(updates), heights[rank], self.columns).unbind())

    def _from_any_layout(self, updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert isinstance(self.example, DTensor)
        mesh, placements, results = self.example.device_mesh, self.example.placements, []
        for update in updates:
            shape, stride = self.example.shape, self.example.stride()
            sharded = DTensor.from_local(update, mesh, placements, run_check=False, shape=shape, stride=stride)
            done = self.orthogonalize(sharded.full_tensor()[None])[0].contiguous()
            whole = DTensor.from_local(done, mesh, [Replicate()] * mesh.ndim, run_check=False)
            results.append(whole.redistribute(placements=placements).to_local())
        return results
