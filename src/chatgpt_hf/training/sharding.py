"""Sharded training (FSDP2 and HSDP) through accelerate and torch, with checkpoints that any number of processes resumes from.

A checkpoint is either whole, with the files that one process writes, or divided by `torch.distributed.checkpoint`: see
`saves_shards`. Every run reads both, however many processes it has and whether or not they shard the model.
"""

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType
from torch import distributed, nn
from torch.distributed import checkpoint as shards
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer, TrainingArguments

from ..errors import ConfigError
from .optim import MuonAdamW

logger = logging.getLogger(__name__)

# Folders inside a checkpoint, and the entry in each, as accelerate writes them.
MODEL_SHARDS, MODEL_ENTRY = "pytorch_model_fsdp_0", "model"
OPTIMIZER_SHARDS, OPTIMIZER_ENTRY = "optimizer_0", "optimizer"
# Files of a whole checkpoint, as `Trainer` writes them.
OPTIMIZER_NAME, SCHEDULER_NAME = "optimizer.pt", "scheduler.pt"


def is_sharded(arguments: TrainingArguments) -> bool:
    """True if the arguments, or the file of `accelerate launch`, ask for FSDP."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def replicas_of(arguments: TrainingArguments) -> int:
    """Returns how many copies of a sharded model there are: above 1 for HSDP."""
    replicas = getattr(arguments, "fsdp_replicas", 1)
    if replicas > 1 and (arguments.world_size % replicas or arguments.world_size // replicas < 2):
        raise ConfigError(
            f"--fsdp_replicas {replicas} shares {arguments.world_size} processes among {replicas} copies of the model: give a number "
            f"that divides them and leaves at least 2 for each copy, or 1 for a single copy."
        )
    return replicas


@contextmanager
def sharding(arguments: TrainingArguments) -> Iterator[None]:
    """While the accelerator is made: lets accelerate shard on CPUs too, over a mesh with the replicas of the arguments.

    accelerate (1.15) ignores FSDP on CPUs and says nothing. FSDP2 itself works there over gloo, so this only tells accelerate
    otherwise; tests and trials on machines without GPUs then run the same code as GPUs.
    """
    if not is_sharded(arguments):
        yield
        return
    state, before = PartialState(), arguments.parallelism_config
    replicas = replicas_of(arguments)
    named = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true"
    if before is None and not named and arguments.world_size > 1:
        arguments.parallelism_config = ParallelismConfig(
            dp_replicate_size=replicas, dp_shard_size=arguments.world_size // replicas
        )
    if state.distributed_type == DistributedType.MULTI_CPU:
        if state.process_index == 0:
            logger.warning("The model is sharded on CPUs, which is for trials: all of it is slower than DDP.")
        # Any kind that accelerate shards; it replaces it by `FSDP`.
        state.distributed_type = DistributedType.MULTI_GPU
    try:
        yield
    finally:
        # A recipe cannot hold it.
        arguments.parallelism_config = before


class PlainCopy:
    """A model's modules without its weights, taken before it is sharded, to hold the whole weights afterwards."""

    def __init__(self, model: nn.Module) -> None:
        # Parameters that are there already are not copied.
        self._copies: dict[int, Any] = {
            id(parameter): nn.Parameter(
                torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
            )
            for parameter in model.parameters()
        }
        self.model: Any = copy.deepcopy(model, self._copies)

    def of(self, module: nn.Module) -> Any:
        """The copy of the model or of a module in it."""
        return self._copies[id(module)]

    def fill(self, sharded: nn.Module) -> Any:
        """Gathers all weights on the device of the sharded model. All processes call this together."""
        device = next(sharded.parameters()).device
        whole = {}
        for module in sharded.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        pairs = zip(self.model.parameters(), sharded.parameters(), strict=True)
        for empty, parameter in pairs:
            value = parameter.detach()
            value = value.full_tensor() if isinstance(value, DTensor) else value.clone()
            whole[id(empty)] = nn.Parameter(value, requires_grad=empty.requires_grad)
        for module in self.model.modules():
            for name, empty in list(module.named_parameters(recurse=False)):
                # Tied parameters are one.
                setattr(module, name, whole.get(id(empty), empty))
        return self.model.to(device).train(sharded.training)

    def scatter(self, sharded: nn.Module) -> None:
        """Puts the weights of the filled copy back into the sharded model. All processes call this together."""
        for own, parameter in zip(self.model.parameters(), sharded.parameters(), strict=True):
            if isinstance(parameter, DTensor):
                value = distribute_tensor(own.detach(), parameter.device_mesh, parameter.placements)
                parameter.detach().copy_(value)


class ShardedTrainer(Trainer):
    """`Trainer` that shards where its arguments say so, with one owner for each of Muon's matrices, on any topology."""

    # Of `Trainer`, whose module mypy cannot type.
    model: Any
    is_fsdp_enabled: bool

    plain_copy: PlainCopy | None = None
    _whole: Any = None

    @property
    def saves_shards(self) -> bool:
        """True if checkpoints are divided: `--fsdp_config '{"state_dict_type": "SHARDED_STATE_DICT"}'`."""
        return self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def whole_model(self) -> Any:
        """The model without wrappers and shards; after a sharded training, all processes call this together first."""
        if self.plain_copy is None or not _is_sharded_model(self.model):
            return self.accelerator.unwrap_model(self.model)
        if self._whole is None:
            self._whole = self.plain_copy.fill(self.model)
        return self._whole

    def whole_counterpart(self, model: Any) -> Any:
        """Returns the module of `whole_model()` that stands where `model`, the trained one or a part of it, stood."""
        if self._whole is None or self.plain_copy is None:
            return model
        return self.plain_copy.of(model)

    def create_accelerator_and_postprocess(self) -> None:
        with sharding(self.args):
            super().create_accelerator_and_postprocess()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `Trainer`. Of DDP's processes, each orthogonalizes some of Muon's matrices."""
        if self.is_fsdp_enabled and self.plain_copy is None and not _is_sharded_model(self.model):
            self.plain_copy = PlainCopy(self.model)
        self._whole = None
        optimizer = super().create_optimizer(model)
        replicated = self.args.world_size > 1 and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if isinstance(optimizer, MuonAdamW) and replicated and self.get_tp_size() == 1:
            optimizer.process_group = distributed.group.WORLD
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`. A whole checkpoint is loaded before the model is sharded."""
        if (
            isinstance(resume_from_checkpoint, str)
            and self.is_fsdp_enabled
            and not _has_shards(resume_from_checkpoint)
        ):
            self._load_from_checkpoint(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if _has_shards(resume_from_checkpoint):
            load_model_shards(model or self.model, Path(resume_from_checkpoint))
        elif not _is_sharded_model(self.model):
            with self._as_if_whole():
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if _has_shards(best):
            load_model_shards(self.model, Path(best))
        elif _is_sharded_model(self.model) and self.plain_copy is not None:
            sharded, self.model = self.model, self.whole_model()
            try:
                with self._as_if_whole():
                    super()._load_best_model()
            finally:
                self.model = sharded
            self.plain_copy.scatter(sharded)
        else:
            super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled or self.saves_shards:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = Path(checkpoint or "")
        divided = (folder / OPTIMIZER_SHARDS).is_dir()
        if checkpoint is None or self.is_deepspeed_enabled or not (divided or self.is_fsdp_enabled):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if divided:
            load_optimizer_shards(self.model, self.optimizer, folder)
        else:
            load_whole_state(self.optimizer, folder / OPTIMIZER_NAME)
        state = torch.load(folder / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(state)

    @contextmanager
    def _as_if_whole(self) -> Iterator[None]:
        """`Trainer` reads and writes the files of a model that is not sharded."""
        before, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            yield
        finally:
            self.is_fsdp_enabled = before


def _is_sharded_model(model: nn.Module) -> bool:
    # A compiled model is in another module.
    return any(isinstance(module, FSDPModule) for module in model.modules())


def _has_shards(checkpoint: str | Path) -> bool:
    return (Path(checkpoint) / MODEL_SHARDS).is_dir()


def _options(model: nn.Module) -> StateDictOptions:
    # As accelerate saves them: of a model with adapters, only what is trained.
    return StateDictOptions(
        ignore_frozen_params=hasattr(model, "peft_config"), strict=not hasattr(model, "peft_config")
    )


def load_model_shards(model: nn.Module, checkpoint: Path) -> None:
    """Loads divided weights into a model of any kind: plain, in DDP, or sharded otherwise than before."""
    options = _options(model)
    state = {MODEL_ENTRY: get_model_state_dict(model, options=options)}
    _load(state, checkpoint / MODEL_SHARDS)
    set_model_state_dict(model, state[MODEL_ENTRY], options=options)


def load_optimizer_shards(model: nn.Module, optimizer: Any, checkpoint: Path) -> None:
    """Loads a divided state of the optimizer, as `load_model_shards` does."""
    state = {OPTIMIZER_ENTRY: get_optimizer_state_dict(model, optimizer)}
    _load(state, checkpoint / OPTIMIZER_SHARDS)
    set_optimizer_state_dict(model, optimizer, state[OPTIMIZER_ENTRY])


def _load(state: dict[str, Any], folder: Path) -> None:
    shards.load(state, storage_reader=shards.FileSystemReader(folder), no_dist=not distributed.is_initialized())


def whole_state(optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer as one process would save it. All processes call this together."""
    state = optimizer.state_dict()
    whole: dict[Any, dict[str, Any]] = {}
    for index, values in state["state"].items():
        whole[index] = {}
        for name, value in values.items():
            if isinstance(value, DTensor):
                full = value.full_tensor()
                # Only the first process writes it.
                whole[index][name] = full.cpu() if distributed.get_rank() == 0 else None
            else:
                whole[index][name] = value
    return {**state, "state": whole}


def load_whole_state(optimizer: Any, file: Path) -> None:
    """Loads the state that one process saved into an optimizer of sharded parameters. All processes call this together."""
    state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        parameter = parameters[index]
        for name, value in values.items():
            if isinstance(parameter, DTensor) and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                mesh = parameter.device_mesh
                values[name] = distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements)
    optimizer.load_state_dict(state)
