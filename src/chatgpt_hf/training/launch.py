"""Reads from the environment which process of a run this is, and checks that the run can use what its launcher started."""

import os
import socket
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DistributedError


@dataclass(frozen=True)
class Place:
    """Which process of how many this one is, as its launcher says.

    Attributes:
        rank: From 0; the first process decides and prints.
        size: Number of processes.
        local_rank, local_size: The same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place:
    """Reads this process's place from the environment.

    Raises:
        DistributedError: If the variables are missing or contradict one another.
    """
    size = environment_number("WORLD_SIZE", 1)
    if size == 1:
        return Place()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise DistributedError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: start the "
            "processes with torchrun or accelerate launch, or unset WORLD_SIZE to train with one process."
        )
    rank = environment_number("RANK", 0)
    local_rank, local_size = environment_number("LOCAL_RANK", rank), environment_number("LOCAL_WORLD_SIZE", size)
    for name, value, of, limit in (
        ("RANK", rank, "WORLD_SIZE", size),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size),
        ("LOCAL_WORLD_SIZE", local_size - 1, "WORLD_SIZE", size),
    ):
        if not 0 <= value < limit:
            shown = local_size if name == "LOCAL_WORLD_SIZE" else value
            raise DistributedError(
                f"{name} is {shown} and {of} {limit}: the launcher's numbers contradict one another."
            )
    return Place(rank, size, local_rank, local_size)


def environment_number(name: str, default: int) -> int:
    """Reads a whole number from an environment variable.

    Raises:
        DistributedError: If it is anything else.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise DistributedError(f"{name} is {text} in the environment: give a whole number, as launchers do.")
    return int(text)


def check_found(arguments: Any) -> None:
    """Checks, after the `__post_init__` of a `TrainingArguments`, that the processes found one another.

    Where accelerate sees no device for its configuration, each process trains by itself.

    Raises:
        ValueError: If their number is not that of the launcher.
    """
    # None in an instance that only holds defaults.
    if arguments.distributed_state is None:
        return
    started = place().size
    if arguments.world_size == started:
        return
    if arguments.world_size == 1:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE), but each would train by itself, because {socket.gethostname()} has "
            "no accelerator that they could use: give --use_cpu true to train on its CPUs, or start one process."
        )
    raise ValueError(
        f"{arguments.world_size} processes found one another, but WORLD_SIZE is {started}: start them with torchrun or "
        "accelerate launch."
    )


def check_devices(arguments: Any) -> None:
    """Checks, before the `__post_init__` of a `TrainingArguments`, that each process of this machine has a device.

    Raises:
        ValueError: With both numbers.
    """
    if getattr(arguments, "distributed_state", arguments) is None or arguments.use_cpu:
        return
    devices, wanted = torch.accelerator.device_count(), place().local_size
    if 0 < devices < wanted:
        raise ValueError(
            f"{wanted} processes were started on {socket.gethostname()}, which has {devices} "
            f"{'device' if devices == 1 else 'devices'} of type {torch.accelerator.current_accelerator()}: start {devices} "
            "(--nproc-per-node of torchrun, --num_processes of accelerate launch)."
        )


def check_divisible(arguments: Any) -> None:
    """Checks that accelerate can divide a batch among the processes, where it is told to.

    Raises:
        ValueError: If it cannot.
    """
    config = arguments.accelerator_config
    splits = config.get("split_batches") if isinstance(config, dict) else getattr(config, "split_batches", False)
    batch, size = arguments.per_device_train_batch_size, place().size
    if splits and batch % size:
        raise ValueError(
            f"--per_device_train_batch_size is {batch}, which {size} processes cannot share equally, as `split_batches` asks: "
            f"give a multiple of {size}, or leave out split_batches."
        )
