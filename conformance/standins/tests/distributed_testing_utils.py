"""Replaces upstream's file of this name, which the source distribution leaves out: runs processes on this machine's CPU."""

import os

import torch
import torch.distributed as dist


def _get_distributed_device_type():
    return "cpu"


def _get_distributed_backend():
    return "gloo"


def _get_rank_device(rank=0):
    return torch.device("cpu")


def _set_rank_device(rank):
    pass


def _start_rank_processes(function, args=(), nprocs=2):
    """`function(rank, *args)` in as many processes; raises what one of them raised."""
    torch.multiprocessing.spawn(function, args=args, nprocs=nprocs)


def _run_rank(rank, function, args, world_size, host, port):
    os.environ.update(WORLD_SIZE=str(world_size), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    store = dist.TCPStore(host, port, world_size=None, is_master=False)
    dist.init_process_group(backend="gloo", store=store, rank=rank, world_size=world_size)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()


def run_distributed(world_size):
    """Makes `run_distributed(n)(function)(*args)` call `function(rank, *args)` in n processes of one group."""

    def decorate(function):
        def call(*args):
            store = dist.TCPStore("localhost", 0, world_size=None, is_master=True, wait_for_workers=False)
            _start_rank_processes(_run_rank, (function, args, world_size, store.host, store.port), world_size)

        return call

    return decorate
