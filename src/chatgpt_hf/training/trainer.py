"""Stock `Trainer` with two additions for pretraining: exact resuming of a stream, and speed in the logs."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import SchedulerType

from ..errors import CheckpointError
from ..extras import needed_by
from .callbacks import EpochOfStream
from .hardware import matmul_peak
from .optim import hidden_matrices
from .resuming import ResumableTrainer
from .run_folder import checkpoint_to_resume, read_data_state, read_data_states, write_data_state
from .samples import separate_randomness

with needed_by("Training"):
    from torchdata.stateful_dataloader import StatefulDataLoader

# Share of the steps, unless a recipe sets it. 20 % is enough for long runs (Hägele et al. 2024, "Scaling laws and
# compute-optimal training beyond fixed training durations"); the runs of this package are short.
DECAY_SHARE = 0.4


class PretrainTrainer(ResumableTrainer):
    """`Trainer` that saves a stream's position in checkpoints and logs the speed.

    A `train_dataset` that is a `torch.utils.data.IterableDataset` must shard by process and worker itself, and have a
    `state_dict` and `load_state_dict` of JSON values, as `StreamingRows` does; with `load_states` it resumes on any number of
    processes, as `SharedStream` does. Other datasets resume as in `Trainer`,
    which skips batches exactly.

    Args:
        eval_bytes_per_token: Bytes of held-out text per predicted token; needed to log `eval_bits_per_byte`.
        flops_per_token: Floating-point operations of training per token; needed to log `mfu`, the share of this
            machine's measured matrix-multiply peak.
    """

    def __init__(
        self,
        *args: Any,
        eval_bytes_per_token: float | None = None,
        flops_per_token: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eval_bytes_per_token = eval_bytes_per_token
        self.flops_per_token = flops_per_token
        self._stream: StatefulDataLoader | None = None
        self._resumed_from: Path | None = None
        self._tokens = self._tokens_logged = 0
        self._clock = Stopwatch()
        self._seconds_logged = 0.0
        if isinstance(self.train_dataset, IterableDataset):
            # Otherwise `Trainer` reads and drops all batches before the checkpoint.
            self.args.ignore_data_skip = True
            self.add_callback(EpochOfStream())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, but True means the newest complete checkpoint, and a stream resumes at its saved position.

        Raises:
            CheckpointError: If there is none, or the stream's position is missing.
        """
        if resume_from_checkpoint is True:
            newest = checkpoint_to_resume(Path(self.args.output_dir))
            if newest is None:
                raise CheckpointError(f"{self.args.output_dir} contains no complete checkpoint to resume from.")
            resume_from_checkpoint = str(newest)
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`, but a stream gets a loader that knows its position."""
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        # Not prepared by accelerate: the stream shards itself, and `Trainer` moves batches to the device. Starting the
        # loader draws a random number: a separate generator keeps dropout unaffected.
        self._stream = StatefulDataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            num_workers=self.args.dataloader_num_workers,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        if self._resumed_from is not None:
            states = read_data_states(self._resumed_from)
            load_states = getattr(self.train_dataset, "load_states", None)
            if load_states is None or (self.args.dataloader_num_workers and len(states) == self.args.world_size):
                rank, processes = self.args.process_index, self.args.world_size
                self._stream.load_state_dict(read_data_state(self._resumed_from, rank, processes))
            else:
                # Any number of processes may have written them; those of the loader itself hold nothing else without workers.
                load_states([state["dataset_state"] for state in states])
        return self._stream

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the matrices inside the layers. `Trainer` would also decay embeddings and the head."""
        return hidden_matrices(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As in `Trainer`, but warmup-stable-decay ends by default with a linear decay over `DECAY_SHARE` of steps."""
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            default = {"num_decay_steps": round(DECAY_SHARE * num_training_steps), "decay_type": "linear"}
            self.args.lr_scheduler_kwargs = default | (self.args.lr_scheduler_kwargs or {})
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in `Trainer`, and counts positions."""
        self._clock.start()
        self._tokens += inputs["input_ids"].numel() * self.args.world_size
        return super().training_step(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`, while the stopwatch is stopped."""
        with self._clock.stopped():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._clock.stopped():
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._stream is not None:
            write_data_state(
                Path(output_dir), self._stream.state_dict(), self.args.process_index, self.args.world_size
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`, with speed added for training, and perplexity and bits per byte for held-out text.

        `tokens_per_second` and `mfu` cover the time since the last log, without evaluation and saving;
        `train_tokens_per_second` and `train_mfu`, at the end, cover the whole run since it was started or resumed. All
        count the tokens of all processes.
        """
        if "loss" in logs:
            seconds = self._clock.seconds
            logs |= self._speed(self._tokens - self._tokens_logged, seconds - self._seconds_logged)
            self._tokens_logged, self._seconds_logged = self._tokens, seconds
        if "train_runtime" in logs:
            logs |= {f"train_{name}": value for name, value in self._speed(self._tokens, self._clock.seconds).items()}
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
            if self.eval_bytes_per_token is not None:
                logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.eval_bytes_per_token
        super().log(logs, start_time)

    def _speed(self, tokens: int, seconds: float) -> dict[str, float]:
        if not tokens or not self.is_world_process_zero():
            return {}
        speed = {"tokens_per_second": tokens / seconds}
        if self.flops_per_token is not None:
            dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32
            # The measurement uses random matrices and takes a second.
            with self._clock.stopped(), separate_randomness(self.args.device, 0):
                peak = matmul_peak(self.args.device, dtype) * self.args.world_size
            speed["mfu"] = speed["tokens_per_second"] * self.flops_per_token / peak
        return speed


class Stopwatch:
    """Measures the seconds since `start`, without the time while it was stopped."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._left_out = 0.0

    @property
    def seconds(self) -> float:
        """The measured seconds; 0 before `start`."""
        return 0.0 if self._began is None else time.perf_counter() - self._began - self._left_out

    def start(self) -> None:
        """Starts the stopwatch if it is not running yet."""
        if self._began is None:
            self._began = time.perf_counter()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Does not count the time of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._began is not None:
                self._left_out += time.perf_counter() - began
