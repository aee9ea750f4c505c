"""Counts what a run on many GPUs takes: memory and traffic of each, speed and price. Measures nothing.

docs/scaling.md states every assumption. Bandwidths are bytes per second of one GPU in one direction.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.loss_chatgpt import LOSS_CHUNK_ROWS
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from .optim import hidden_matrices
from .scaling import activation_bytes, flops_per_token, resized

SHARDS = ("ddp", "fsdp2", "hsdp")
# The rest of a GPU's memory is for the CUDA context, NCCL's buffers and the allocator's gaps.
USABLE_MEMORY = 0.9
# NCCL's large collectives reach about this share of a published bandwidth.
LINK_SHARE = 0.8
# Time of one hop of a collective, whatever its size.
HOP_SECONDS = 5e-6
# DDP's default.
BUCKET_BYTES = 25 * 2**20
# `orthogonalize` iterates four times, on stacks of matrices with at most this many elements.
MUON_STEPS = 4
STACK_ELEMENTS = 1 << 27
FLOAT32 = 4


@dataclass(frozen=True)
class Cluster:
    """The machines of a run.

    Attributes:
        gpus: Number of GPUs, one process each.
        gpus_per_node: GPUs of one machine.
        shard: `ddp`: every GPU holds everything. `fsdp2`: weights, gradients and optimizer are shared among all GPUs.
            `hsdp`: they are shared among the GPUs of each machine, and the machines hold the same.
        link: Bandwidth between GPUs of one machine.
        network: Bandwidth from a GPU to other machines.

    Raises:
        ConfigError: If the numbers contradict each other.
    """

    gpus: int
    gpus_per_node: int
    shard: str
    link: float
    network: float

    def __post_init__(self) -> None:
        if self.shard not in SHARDS:
            raise ConfigError(f"--shard {self.shard} is unknown; choose from {', '.join(SHARDS)}.")
        for name in ("gpus", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ConfigError(
                f"--gpus {self.gpus} does not divide into machines of {self.gpus_per_node}: change it or --gpus_per_node."
            )

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return max(1, self.gpus // self.gpus_per_node)

    @property
    def shards(self) -> int:
        """Number of GPUs that share one copy of weights, gradients and optimizer."""
        if self.shard == "ddp":
            return 1
        return self.gpus if self.shard == "fsdp2" else min(self.gpus, self.gpus_per_node)

    @property
    def replicas(self) -> int:
        """Number of such copies."""
        return self.gpus // self.shards

    @property
    def muon_group(self) -> int:
        """Number of GPUs that share the matrices to orthogonalize: each is done by one owner."""
        return self.gpus if self.shard == "ddp" else self.shards

    def ring(self, ranks: int) -> float:
        """Bandwidth of a collective in which data passes from GPU to GPU: machines are left through all their cards."""
        if ranks <= self.gpus_per_node:
            return self.link
        return min(self.link, self.gpus_per_node * self.network)


@dataclass(frozen=True)
class Shape:
    """Parameters of a model by how they are sharded.

    Attributes:
        total: All parameters; a tied head counts once.
        layers: Those of all layers.
        layer: Those of the largest layer.
        head: The head's, tied or not.
        matrices: Number of matrices of each shape in the layers.
    """

    total: int
    layers: int
    layer: int
    head: int
    matrices: Counter[tuple[int, int]]

    @classmethod
    def of(cls, config: ChatGPTConfig) -> "Shape":
        """Counts a model without allocating it."""
        with torch.device("meta"):
            model = ChatGPTForCausalLM(config)
        named = dict(model.named_parameters())
        layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in model.model.layers]
        shapes = (named[name].shape for name in hidden_matrices(model))
        return cls(
            total=sum(parameter.numel() for parameter in named.values()),
            layers=sum(layers),
            layer=max(layers),
            head=model.lm_head.weight.numel(),
            matrices=Counter((rows, columns) for rows, columns in shapes),
        )

    @property
    def hidden(self) -> int:
        """Elements of all matrices that Muon updates."""
        return sum(rows * columns * count for (rows, columns), count in self.matrices.items())


@dataclass(frozen=True)
class RankMemory:
    """Peak memory of one process in bytes, by part.

    Attributes:
        weights: Its share of the parameters.
        gradients: Its share of the gradients. FSDP2 keeps them whole while it accumulates without reducing.
        optimizer: Its share of the optimizer's state.
        buckets: DDP's copies of the gradients, in which it sends them.
        gathered: Whole weights and gradients of the layers at work, and of the head.
        activations: Tensors kept for the backward pass of one micro-batch.
        loss: Logits of one chunk, and the head's gradient.
        update: Muon's temporary tensors; never at the same time as the last three.
    """

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int
    activations: int
    loss: int
    update: int

    @property
    def total(self) -> int:
        """The peak."""
        kept = self.weights + self.gradients + self.optimizer + self.buckets
        return kept + max(self.gathered + self.activations + self.loss, self.update)


class RunOnCluster:
    """One recipe on one cluster.

    Args:
        config: The model.
        block_size: Tokens per row.
        accumulation: Micro-batches per step.
        muon: The optimizer is Muon and not AdamW.
        dtype: Dtype of computing and of what FSDP2 sends. Weights, gradients and optimizer are float32.
        checkpointing: Layers are computed again in the backward pass.
        reduce_each: Gradients are reduced after each micro-batch and not once per step (`sync_each_batch`).
    """

    def __init__(
        self,
        cluster: Cluster,
        config: ChatGPTConfig,
        block_size: int,
        accumulation: int,
        *,
        muon: bool,
        dtype: torch.dtype = torch.bfloat16,
        checkpointing: bool = False,
        reduce_each: bool = False,
    ) -> None:
        self.cluster, self.config, self.block_size, self.accumulation = cluster, config, block_size, accumulation
        self.muon, self.size = muon, dtype.itemsize
        self.shape = Shape.of(config)
        self.reductions = accumulation if reduce_each else 1
        # Linear in the rows, but for casts of whole weights, which FSDP2 has not.
        sharded = cluster.shard != "ddp"
        counted = resized(config, layers=1) if checkpointing else config
        one, two = (activation_bytes(counted, rows, block_size, dtype, cast_weights=sharded) for rows in (1, 2))
        self.row, self.casts = two - one, 0 if sharded else max(0, 2 * one - two)
        if checkpointing:
            # The input of each layer, beside all tensors of the one that is computed again.
            stream = self.size if sharded else FLOAT32
            self.row += config.num_hidden_layers * block_size * config.hidden_size * stream

    def memory(self, rows: int) -> RankMemory:
        """Peak memory of one process with micro-batches of `rows` rows."""
        shape, shards = self.shape, self.cluster.shards
        hidden = shape.hidden if self.muon else 0
        sharded = shards > 1
        whole_gradients = sharded and self.accumulation > self.reductions
        chunk = min(LOSS_CHUNK_ROWS, rows * self.block_size)
        return RankMemory(
            weights=FLOAT32 * _share(shape.total, shards),
            gradients=FLOAT32 * _share(shape.total, shards) + (self.size * shape.total if whole_gradients else 0),
            optimizer=FLOAT32 * _share(hidden, shards) + 2 * FLOAT32 * _share(shape.total - hidden, shards),
            buckets=FLOAT32 * shape.total if self.cluster.shard == "ddp" and self.cluster.gpus > 1 else 0,
            # Weights of a layer and of the next one, which is fetched meanwhile; the same of gradients.
            gathered=2 * self.size * (2 * shape.layer + shape.head) if sharded else 0,
            activations=self.casts + rows * self.row,
            loss=FLOAT32 * (2 * chunk * self.config.vocab_size + shape.head),
            update=self._update() if self.muon else 0,
        )

    def _rounds(self, rows: int, columns: int, count: int) -> tuple[int, int]:
        """How many matrices of one shape Muon takes at a time, and how many times; each owner has a stack of them."""
        group = self.cluster.muon_group
        stack = max(1, STACK_ELEMENTS // (rows * columns))
        together = min(count, stack * group if self.cluster.shards > 1 else max(stack, group))
        return together, -(-count // together)

    def _update(self) -> int:
        """Muon's temporary tensors, for the shape that takes the most."""
        most = 0
        for (rows, columns), count in self.shape.matrices.items():
            together, _ = self._rounds(rows, columns, count)
            owned = -(-together // self.cluster.muon_group)
            # The stack, its iterate, the product with the Gram matrix, and their sum.
            copies = 4 * owned
            if self.cluster.shards > 1:
                # This process's rows of all matrices, before and after, on each of the two ways.
                copies += 4 * owned
            elif self.cluster.gpus > 1:
                # All matrices before, which every process holds, and after.
                copies += 2 * together
            most = max(most, FLOAT32 * rows * columns * copies)
        return most

    def largest_batch(self, memory: float) -> int:
        """Rows of the largest micro-batch that fits into `USABLE_MEMORY` of `memory` bytes; 0 if none does."""
        limit = USABLE_MEMORY * memory
        if self.memory(1).total > limit:
            return 0
        low, high = 1, 2
        while self.memory(high).total <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.memory(middle).total <= limit else (low, middle)
        return low

    def muon_flops(self, owners: int) -> float:
        """Operations of the busiest owner's orthogonalizations in a step: two for each multiplication and addition."""

        def each(rows: int, columns: int) -> float:
            short, long = sorted((rows, columns))
            return MUON_STEPS * (4 * short**2 * long + 2 * short**3)

        if not self.muon:
            return 0.0
        return sum(-(-count // owners) * each(*shape) for shape, count in self.shape.matrices.items())

    def traffic(self) -> dict[str, dict[str, float]]:
        """Bytes that each GPU sends per step, and the seconds that this takes alone, by purpose.

        `weights`: FSDP2 gathers each layer before its forward and again before its backward pass. `gradients`: summed
        over all GPUs. `muon`: matrices to their owners, and updates back.
        """
        cluster, shape = self.cluster, self.shape
        shards, replicas, layers = cluster.shards, cluster.replicas, self.config.num_hidden_layers
        found: dict[str, dict[str, float]] = {}

        def add(purpose: str, size: float, bandwidth: float, hops: float) -> None:
            if size:
                figures = found.setdefault(purpose, {"bytes": 0.0, "seconds": 0.0})
                figures["bytes"] += size
                figures["seconds"] += size / bandwidth + hops * HOP_SECONDS

        if shards > 1:
            sent, hops, ring = (shards - 1) / shards, shards - 1, cluster.ring(shards)
            # The head and what stays gathered beside it is fetched once.
            parameters = 2 * shape.layers + (shape.total - shape.layers)
            collectives = 2 * layers + 1
            add(
                "weights",
                self.accumulation * sent * self.size * parameters,
                ring,
                self.accumulation * collectives * hops,
            )
            add(
                "gradients",
                self.reductions * sent * self.size * shape.total,
                ring,
                self.reductions * (layers + 1) * hops,
            )
        if replicas > 1:
            size = (self.size if shards > 1 else FLOAT32) * _share(shape.total, shards)
            # Every GPU of a machine has another part of the gradients, and sends it through its own card.
            bandwidth = cluster.ring(cluster.gpus) if shards == 1 else cluster.network
            buckets = -(-size // BUCKET_BYTES) if shards == 1 else layers + 1
            # NCCL sums along a tree where many machines make a ring slow.
            add("gradients", 2 * (replicas - 1) / replicas * size, bandwidth, 2 * buckets * math.log2(replicas))
        if self.muon and cluster.muon_group > 1:
            self._add_muon(add)
        return found

    def _add_muon(self, add: Any) -> None:
        cluster, group = self.cluster, self.cluster.muon_group
        away = (group - 1) / group
        rounds = sum(self._rounds(*shape, count)[1] for shape, count in self.shape.matrices.items())
        if cluster.shards == 1:
            # Gradients are whole everywhere: only the updates travel.
            add("muon", away * FLOAT32 * self.shape.hidden, cluster.ring(group), rounds * math.log2(group))
            return
        bandwidth = cluster.link if group <= cluster.gpus_per_node else cluster.network
        add("muon", 2 * away * FLOAT32 * self.shape.hidden / group, bandwidth, 2 * rounds * (group - 1))

    def figures(
        self, rows: int, *, computing: float, memory_of_gpu: float, tokens: float, price: float | None
    ) -> dict[str, Any]:
        """All figures of a run.

        Args:
            rows: Rows per micro-batch.
            computing: Seconds that a GPU computes per step.
            memory_of_gpu: Bytes.
            tokens: Tokens of the run.
            price: Dollars per GPU and hour, or None.
        """
        cluster = self.cluster
        memory, traffic = self.memory(rows), self.traffic()
        communication = sum(item["seconds"] for item in traffic.values())
        per_step = rows * self.accumulation * cluster.gpus * self.block_size
        # All communication behind computing, as far as there is enough of it; or none of it.
        step = {"overlapped": max(computing, communication), "exposed": computing + communication}
        hours = {name: tokens / per_step * seconds / 3600 for name, seconds in step.items()}
        return {
            "gpus": cluster.gpus,
            "nodes": cluster.nodes,
            "shard": cluster.shard,
            "link_bandwidth": cluster.link,
            "network_bandwidth": cluster.network,
            "memory": {**asdict(memory), "total": memory.total},
            "memory_of_gpu": memory_of_gpu,
            "communication": traffic,
            "communication_seconds": communication,
            "computing_seconds": computing,
            "step_seconds": step,
            "tokens_per_second": {name: per_step / seconds for name, seconds in step.items()},
            "total_seconds": {name: 3600 * value for name, value in hours.items()},
            "dollars": price and {name: price * cluster.gpus * value for name, value in hours.items()},
            "largest_micro_batch": self.largest_batch(memory_of_gpu),
        }

    def computing_seconds(self, rows: int, peak: float) -> float:
        """Seconds that a GPU computes per step, at `peak` FLOP/s reached."""
        tokens = rows * self.accumulation * self.block_size
        flops = flops_per_token(self.config, self.block_size) * tokens
        return (flops + self.muon_flops(self.cluster.muon_group)) / peak


def _share(count: int, shards: int) -> int:
    return -(-count // shards)
