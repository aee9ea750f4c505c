"""Predicts a run's size, operations, memory and time from a short measurement on this machine."""

import copy
import math
import tempfile
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    IntervalStrategy,
    PrinterCallback,
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from ..checkpoints import load_model
from ..errors import ConfigError
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..stored import is_foreign
from ..tokenization_chatgpt import load_tokenizer
from .arguments import CorpusArguments, ModelArguments, PretrainArguments
from .cluster import LINK_SHARE, SHARDS, Cluster, RunOnCluster
from .hardware import GPU, GPUS, find_gpu, free_memory, matmul_peak, synchronize, training_device
from .ranges import has_steps
from .scaling import count_parameters, flops_per_token, memory_bytes, model_config, resized
from .trainer import PretrainTrainer

# Each of the three measurements stops at whichever limit it reaches first.
SECONDS = 15.0
REPETITIONS = 8
SMALL_VOCAB = 256
LAYERS = 3
# Instead of the name of a GPU.
HERE = "here"
# A card of 400 Gbit/s for each GPU, as in NVIDIA's reference machines.
NETWORK = 50e9


@dataclass
class PlanArguments:
    """The GPU that a plan is compared with, how many of them, and the format of the output."""

    gpu: str = field(
        default="h100",
        metadata={
            "help": f"GPU to estimate the time for: {', '.join(GPUS)}. With --gpus also {HERE}: this machine's device, measured."
        },
    )
    mfu: float = field(
        default=0.4,
        metadata={"help": "Share of that GPU's peak that the run is assumed to reach; 0.3 to 0.5 is common."},
    )
    gpus: int | None = field(
        default=None, metadata={"help": "Plan for this many GPUs, from published figures; nothing is measured here."}
    )
    shard: str = field(
        default="ddp",
        metadata={
            "help": f"With --gpus, what they share: {', '.join(SHARDS)} (nothing; weights, gradients and optimizer; the same within each machine)."
        },
    )
    gpus_per_node: int = field(default=8, metadata={"help": "With --gpus, GPUs in a machine."})
    link_bandwidth: float | None = field(
        default=None,
        metadata={
            "help": "With --gpus, GB/s that a GPU sends to others of its machine; 80 % of the published figure if not given."
        },
    )
    network_bandwidth: float | None = field(
        default=None,
        metadata={
            "help": "With --gpus, GB/s that a GPU sends to other machines; 40, 80 % of a 400 Gbit/s card for each, if not given."
        },
    )
    price_per_hour: float | None = field(
        default=None, metadata={"help": "With --gpus, dollars for a GPU and hour, to estimate the price of the run."}
    )
    json: bool = field(default=False, metadata={"help": "Print JSON instead of the table."})


def plan(
    model_arguments: ModelArguments,
    architecture: Any,
    corpus_arguments: CorpusArguments,
    plan_arguments: PlanArguments,
    arguments: PretrainArguments,
) -> dict[str, Any]:
    """Predicts the run that `pretrain` would do with the same arguments. Reads no corpus and writes nothing.

    Args:
        architecture: `ArchitectureArguments`.

    Raises:
        ConfigError: If the run's length depends on the corpus, the GPU is unknown, the cluster contradicts itself, or the
            model's shape is impossible.
    """
    gpus = plan_arguments.gpus
    gpu = None if plan_arguments.gpu == HERE else find_gpu(plan_arguments.gpu)
    cluster = _cluster(plan_arguments, gpu)
    if not 0 < plan_arguments.mfu <= 1:
        raise ConfigError(f"--mfu must be above 0 and at most 1, got {plan_arguments.mfu}.")
    if not has_steps(arguments):
        raise ConfigError("A plan needs the number of steps: give --max_steps, or --depth, which sets it.")
    base = model_arguments.model_name_or_path
    if base is not None and is_foreign(base):
        arguments.use_foreign_defaults(adapters=False)
    optim = str(arguments.optim)
    config = _config(model_arguments, architecture, corpus_arguments)
    block_size = corpus_arguments.block_size
    micro_batch = arguments.per_device_train_batch_size
    accumulation = arguments.gradient_accumulation_steps
    parameters = count_parameters(config)
    tokens_per_step = micro_batch * accumulation * (gpus or arguments.world_size) * block_size
    tokens = tokens_per_step * arguments.max_steps
    per_token = flops_per_token(config, block_size)

    figures = {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "block_size": block_size,
        "parameters": parameters.total,
        "non_embedding_parameters": parameters.non_embedding,
        "flops_per_token": per_token,
        "flops": per_token * tokens,
        "tokens": tokens,
        "tokens_per_parameter": tokens / parameters.matrices,
        "steps": arguments.max_steps,
        "tokens_per_step": tokens_per_step,
        "micro_batch": micro_batch,
        "accumulation": accumulation,
        "optim": str(getattr(arguments.optim, "value", arguments.optim)),
        "learning_rate": arguments.learning_rate,
        "weight_decay": arguments.weight_decay,
    }
    if cluster is not None:
        return {**figures, "cluster": _on_cluster(cluster, config, plan_arguments, arguments, gpu, block_size, tokens)}
    assert gpu is not None

    device = training_device()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    memory = memory_bytes(config, micro_batch, block_size, optim, dtype)
    free = free_memory(device)
    of_micro_batch, of_optimizer = measure_step(config, arguments, block_size)
    seconds, cpu_seconds = (accumulation * of_micro_batch + of_optimizer).tolist()
    peak = matmul_peak(device, dtype)
    on_gpu = memory_bytes(config, micro_batch, block_size, optim, torch.bfloat16)
    return {
        **figures,
        "memory": {**asdict(memory), "total": memory.total, "free": free},
        "here": {
            "device": str(device),
            "threads": torch.get_num_threads(),
            "step_seconds": seconds,
            "step_cpu_seconds": cpu_seconds,
            "total_seconds": seconds * arguments.max_steps,
            "tokens_per_second": tokens_per_step / arguments.world_size / seconds,
            "matmul_peak": peak,
            "mfu": per_token * tokens_per_step / arguments.world_size / seconds / peak,
        },
        "gpu": {
            "name": gpu.name,
            "flops": gpu.flops,
            "mfu": plan_arguments.mfu,
            "total_seconds": per_token * tokens / (gpu.flops * plan_arguments.mfu),
            "memory": on_gpu.total,
            "memory_of_gpu": gpu.memory,
        },
    }


def _cluster(plan_arguments: PlanArguments, gpu: GPU | None) -> Cluster | None:
    """The cluster that the arguments describe; None for a plan for this machine."""
    alone = [
        name
        for name in ("shard", "gpus_per_node", "link_bandwidth", "network_bandwidth", "price_per_hour")
        if getattr(plan_arguments, name) != PlanArguments.__dataclass_fields__[name].default
    ]
    if plan_arguments.gpus is None:
        if gpu is None:
            alone.append(f"gpu {HERE}")
        if alone:
            raise ConfigError(f"--{alone[0]} describes a run on several GPUs: give --gpus, or leave it out.")
        return None
    for name in ("link_bandwidth", "network_bandwidth", "price_per_hour"):
        value = getattr(plan_arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} must be above 0, got {value}.")
    link = plan_arguments.link_bandwidth
    if link is None and gpu is None and plan_arguments.gpus > 1:
        raise ConfigError(f"--gpu {HERE} needs --link_bandwidth: what one process sends to another in GB/s.")
    network = plan_arguments.network_bandwidth
    return Cluster(
        gpus=plan_arguments.gpus,
        gpus_per_node=plan_arguments.gpus_per_node,
        shard=plan_arguments.shard,
        link=link * 1e9 if link is not None else LINK_SHARE * gpu.link if gpu is not None else math.inf,
        network=network * 1e9 if network is not None else LINK_SHARE * NETWORK,
    )


def _on_cluster(
    cluster: Cluster,
    config: ChatGPTConfig,
    plan_arguments: PlanArguments,
    arguments: PretrainArguments,
    gpu: GPU | None,
    block_size: int,
    tokens: int,
) -> dict[str, Any]:
    """The figures of a run on several GPUs; on this machine's device the computing is measured."""
    rows, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    kwargs = getattr(arguments.accelerator_config, "gradient_accumulation_kwargs", None) or {}
    run = RunOnCluster(
        cluster,
        config,
        block_size,
        accumulation,
        muon=str(arguments.optim) == "muon",
        dtype=torch.bfloat16 if gpu is not None or arguments.bf16 else torch.float32,
        checkpointing=arguments.gradient_checkpointing,
        reduce_each=bool(kwargs.get("sync_each_batch")),
    )
    if gpu is not None:
        name, memory = gpu.name, gpu.memory
        computing, cpu_seconds = run.computing_seconds(rows, gpu.flops * plan_arguments.mfu), None
    else:
        device = training_device()
        name, memory = f"this machine's {device.type}", float(free_memory(device))
        if device.type == "cpu":
            # All processes share it.
            memory /= cluster.gpus
        of_micro_batch, of_optimizer = measure_step(config, arguments, block_size)
        whole = run.muon_flops(1)
        # Each process updates what it owns.
        own = run.muon_flops(cluster.muon_group) / whole if whole else 1 / cluster.shards
        computing, cpu_seconds = (accumulation * of_micro_batch + own * of_optimizer).tolist()
    figures = run.figures(
        rows, computing=computing, memory_of_gpu=memory, tokens=tokens, price=plan_arguments.price_per_hour
    )
    measured = {} if gpu is not None else {"computing_cpu_seconds": cpu_seconds, "threads": torch.get_num_threads()}
    return {"gpu": name, "mfu": plan_arguments.mfu if gpu is not None else None, **figures, **measured}


def measure_step(config: ChatGPTConfig, arguments: TrainingArguments, block_size: int) -> np.ndarray:
    """Times a training step in short runs of the same `Trainer`, with the run's width, rows and arguments.

    One model has one layer and the full vocabulary. The cost of each further layer is the difference between two
    models with a tiny vocabulary, of one and of three layers. With a large head, that difference would be small
    compared with the noise, and then be multiplied by the number of layers.

    Returns:
        Seconds, (2, 2). Rows: a micro-batch including its loading; the rest of a step, which is the optimizer.
        Columns: wall time; CPU time, which other work on the machine hardly changes.
    """
    first = _time_trainer(resized(config, layers=1), arguments, block_size)
    if config.num_hidden_layers == 1:
        return first
    thin, thick = (
        _time_trainer(resized(config, layers=layers, vocab_size=SMALL_VOCAB), arguments, block_size)
        for layers in (1, LAYERS)
    )
    return first + (config.num_hidden_layers - 1) / (LAYERS - 1) * np.maximum(thick - thin, 0)


class _StepTimer(TrainerCallback):
    """Times the steps of `Trainer`, and stops it when the time is up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Times of each step, in the layout that `measure_step` returns.
        self.steps: list[list[np.ndarray]] = []
        self.mark = np.zeros(2)

    def _lap(self) -> np.ndarray:
        synchronize(self.device)
        last, self.mark = self.mark, np.array([time.perf_counter(), time.process_time()])
        return self.mark - last

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.start = self.mark = np.array([time.perf_counter(), time.process_time()])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps.append([self._lap()])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps[-1].append(self._lap())
        control.should_training_stop = len(self.steps) > 1 and (self.mark - self.start)[0] > SECONDS


def _time_trainer(config: ChatGPTConfig, arguments: TrainingArguments, block_size: int) -> np.ndarray:
    rows = arguments.per_device_train_batch_size * (REPETITIONS + 1)
    ids = torch.randint(config.vocab_size, (rows, block_size), generator=torch.Generator().manual_seed(0)).numpy()
    # Two documents per row: packed rows need the mask, and use other kernels than a row with one document.
    positions = np.broadcast_to(np.arange(block_size) % -(-block_size // 2), ids.shape)
    data = Dataset.from_dict({"input_ids": ids, "labels": ids, "position_ids": positions})
    timer = _StepTimer(training_device())
    with tempfile.TemporaryDirectory() as folder:
        short = copy.copy(arguments)
        changes: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": REPETITIONS + 1,
            "gradient_accumulation_steps": 1,
            "lr_scheduler_type": SchedulerType.CONSTANT,
            "lr_scheduler_kwargs": {},
            "dataloader_pin_memory": training_device().type != "cpu",
            "eval_strategy": IntervalStrategy.NO,
            "save_strategy": IntervalStrategy.NO,
            "logging_strategy": IntervalStrategy.NO,
            "report_to": [],
            "disable_tqdm": True,
            "load_best_model_at_end": False,
            "push_to_hub": False,
        }
        for name, value in changes.items():
            setattr(short, name, value)
        trainer = PretrainTrainer(
            model=ChatGPTForCausalLM(config),
            args=short,
            train_dataset=data,
            data_collator=default_data_collator,
            optimizer_cls_and_kwargs=short.optimizer_cls_and_kwargs,
            callbacks=[timer],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # The first step warms up.
    return np.median(timer.steps[1:], axis=0)


def _config(model_arguments: ModelArguments, architecture: Any, corpus_arguments: CorpusArguments) -> ChatGPTConfig:
    if model_arguments.model_name_or_path is not None:
        return load_model(model_arguments.model_name_or_path, ChatGPTForCausalLM).config
    tokenizer = corpus_arguments.tokenizer
    vocab_size = len(load_tokenizer(tokenizer)) if tokenizer else corpus_arguments.vocab_size
    depth = model_arguments.depth
    shape = {"num_hidden_layers": depth} if depth else {}
    return model_config(
        {**shape, **vars(architecture), "vocab_size": vocab_size, "block_size": corpus_arguments.block_size}
    )
