"""What a training run does between the steps of any `Trainer`: it ends well when told to, and stops when it diverges."""

import logging
import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingDiverged
from .run_folder import last_whole_checkpoint

logger = logging.getLogger(__name__)


class StopOnSigterm(TrainerCallback):
    """Ends the run after the step in which SIGTERM arrived, with a checkpoint; a second SIGTERM ends the process.

    The checkpoint is a step's end like any other, so a run that goes on from it is, to the bit, the run without the
    interruption. With several processes all stop at the same step, even when not all of them were told.

    Attributes:
        stopped_at: The step of the checkpoint, or None while nothing was asked.
    """

    def __init__(self) -> None:
        self.stopped_at: int | None = None
        self._asked = False
        self._handler_before: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Python gives signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            asked = torch.tensor(float(self._asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self._asked = bool(asked.item())
        if self._asked:
            control.should_save = True
            control.should_training_stop = True
            self.stopped_at = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Gives SIGTERM back to whom it belonged before."""
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)
            self._handler_before = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
        self.restore()
        logger.warning("SIGTERM: the run saves a checkpoint after this step and ends.")


class DivergenceGuard(TrainerCallback):
    """Skips steps whose gradients are not finite, and ends a run that does not come back.

    A skipped step changes no weight and no state of the optimizer; the schedule goes on. While anything is wrong nothing
    is saved, so the last checkpoint is one of a sound model. The check waits for the device once in a step. With float16 the
    loss scaler skips steps of its own and is left to it.

    Args:
        max_skipped: Steps in a row that may be skipped.
        max_high_losses: Times in a row that the logged loss may be `high` after the warm-up.
        high: Against the loss of guessing uniformly, ln(vocabulary).
    """

    def __init__(self, max_skipped: int = 5, max_high_losses: int = 3, high: float = 1.5) -> None:
        self.max_skipped = max_skipped
        self.max_high_losses = max_high_losses
        self.high = high
        self._skipped = 0
        self._high_losses = 0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.fp16:
            return
        parameters = [parameter for parameter in kwargs["model"].parameters() if parameter.grad is not None]
        if _all_finite([parameter.grad for parameter in parameters]):
            self._skipped = 0
            return
        self._skipped += 1
        step = state.global_step + 1
        if self._skipped >= self.max_skipped:
            raise self._diverged(args, step, f"{self._skipped} steps in a row had gradients that are not finite")
        for parameter in parameters:
            parameter.grad = None
        logger.warning(
            "Step %d is skipped: its gradients are not finite (%d in a row; %d end the run).",
            step,
            self._skipped,
            self.max_skipped,
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        vocab_size = getattr(getattr(kwargs["model"], "config", None), "vocab_size", None)
        # A loss that is not a number is that of a skipped step, which is counted above.
        if loss is None or math.isnan(loss) or vocab_size is None:
            return
        if state.global_step <= args.get_warmup_steps(state.max_steps):
            return
        limit = self.high * math.log(vocab_size)
        self._high_losses = self._high_losses + 1 if loss > limit else 0
        if self._high_losses >= self.max_high_losses:
            raise self._diverged(
                args,
                state.global_step,
                f"the loss is {loss:.4g} and was above {limit:.4g} the last {self._high_losses} times it was logged, where "
                f"guessing has {math.log(vocab_size):.4g}",
            )
        if self._high_losses:
            control.should_save = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save_only_what_is_sound(control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save_only_what_is_sound(control, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The last steps may have been too few to end the run.
        if not _all_finite([parameter.detach() for parameter in kwargs["model"].parameters()]):
            raise self._diverged(args, state.global_step, "the run ended with weights that are not finite")

    def _save_only_what_is_sound(self, control: TrainerControl, model: nn.Module) -> None:
        if not control.should_save:
            return
        suspicious = self._skipped or self._high_losses
        if suspicious or not _all_finite([parameter.detach() for parameter in model.parameters()]):
            control.should_save = False
            logger.warning("No checkpoint is written of a model that may have diverged.")

    def _diverged(self, args: TrainingArguments, step: int, what: str) -> TrainingDiverged:
        checkpoint = last_whole_checkpoint(Path(args.output_dir))
        left = (
            f"The last whole checkpoint is {checkpoint}; go on from it with --resume and less"
            if checkpoint
            else "No checkpoint was written before; begin anew with less"
        )
        return TrainingDiverged(
            f"Training diverged at step {step}: {what}. --learning_rate is {args.learning_rate:g}: {left}, a third of it say."
        )


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    # The greatest magnitude takes ten times as long on a CPU, and is asked only where the sum of squares overflowed.
    return any(math.isfinite(_norm(tensors, norm_type)) for norm_type in (2.0, math.inf))


def _norm(tensors: list[torch.Tensor], norm_type: float) -> float:
    norm = nn.utils.get_total_norm(tensors, norm_type=norm_type)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


class ProgressFromResume(ProgressCallback):
    """transformers' progress bar, whose rate and remaining time count the steps of this process alone."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = state.global_step
        if self.training_bar is not None:
            self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.refresh()


class EpochOfStream(TrainerCallback):
    """Counts `epoch` over a stream as the share of its steps; `Trainer` begins at 0 when it does not skip batches itself."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.epoch = state.global_step / state.max_steps
