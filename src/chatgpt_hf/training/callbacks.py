"""Callbacks for any `Trainer`: stop cleanly on SIGTERM or Ctrl-C, stop when training diverges, show progress after resuming."""

import logging
import math
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..errors import TrainingDiverged
from .run_folder import last_whole_checkpoint

logger = logging.getLogger(__name__)


class StopOnSigterm(TrainerCallback):
    """Ends the run after the step in which SIGTERM arrived, with a checkpoint; a second SIGTERM ends the process.

    The checkpoint is saved at the end of a step like any other, so a run that resumes from it is bit-identical to a
    run without the interruption. If there are several processes, all stop at the same step, even if only some received
    SIGTERM.

    Args:
        interrupt: Do the same on SIGINT, which Ctrl-C and a notebook's stop button send.

    Attributes:
        stopped_at: The step of the checkpoint; None if there was no signal.
        signal: The signal that ended the run; SIGTERM if another process received it.
    """

    def __init__(self, *, interrupt: bool = False) -> None:
        self.stopped_at: int | None = None
        self.signal = signal.SIGTERM
        self._signals = (signal.SIGTERM, signal.SIGINT) if interrupt else (signal.SIGTERM,)
        self._asked = False
        self._process = 0
        self._handlers_before: dict[signal.Signals, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Only the main thread can handle signals in Python.
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            # A shell that starts a run in the background lets it ignore Ctrl-C, which is meant for the foreground.
            wanted = [
                number
                for number in self._signals
                if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
            ]
            self._handlers_before = {number: signal.signal(number, self._ask) for number in wanted}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_asked(args):
            control.should_save = True
            control.should_training_stop = True
            self.stopped_at = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        # A signal during the last evaluation or save came after the last `on_step_end`; `Trainer` saved that step.
        if args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH) and self._is_asked(args):
            self.stopped_at = state.global_step

    def restore(self) -> None:
        """Restores the previous handlers of the signals."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}

    def _is_asked(self, args: TrainingArguments) -> bool:
        """Returns whether any process received a signal."""
        if args.world_size > 1:
            asked = torch.tensor(float(self._asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self._asked = bool(asked.item())
        return self._asked

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and os.getpid() != self._process:
            # A data loader's worker: the terminal sends Ctrl-C to it too, but the main process still needs its rows.
            return
        self._asked = True
        self.signal = signal.Signals(signum)
        self.restore()
        again = "; press Ctrl-C again to stop at once, without it" if signum == signal.SIGINT else ""
        logger.warning("%s: the run will save a checkpoint after this step and stop%s.", self.signal.name, again)


class DivergenceGuard(TrainerCallback):
    """Skips steps whose gradients are not finite, and ends a run that does not recover.

    A skipped step changes neither weights nor optimizer state; the schedule advances. Nothing is saved while anything
    is wrong, so the last checkpoint contains a sound model. The check waits for the device once per step. With
    float16, the loss scaler skips such steps itself, so this check does nothing.

    Args:
        max_skipped: The run ends after this many skipped steps in a row.
        max_high_losses: The run ends after this many high losses in a row, among those logged after the warm-up.
        high: A loss is high if it is above `high` times the loss of guessing uniformly, ln(vocabulary), or `first_loss`.
        first_loss: A loss that no training begins above, for losses that are no cross-entropy, such as squared errors.
    """

    def __init__(
        self,
        max_skipped: int = 5,
        max_high_losses: int = 3,
        high: float = 1.5,
        first_loss: float | None = None,
    ) -> None:
        self.max_skipped = max_skipped
        self.max_high_losses = max_high_losses
        self.high = high
        self.first_loss = first_loss
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
        # The loss is NaN if a step was skipped, and `on_pre_optimizer_step` counts those.
        if loss is None or math.isnan(loss) or (vocab_size is None and self.first_loss is None):
            return
        if state.global_step <= args.get_warmup_steps(state.max_steps):
            return
        reference = self.first_loss if self.first_loss is not None else math.log(float(vocab_size or math.inf))
        limit = self.high * reference
        self._high_losses = self._high_losses + 1 if loss > limit else 0
        if self._high_losses >= self.max_high_losses:
            raise self._diverged(
                args,
                state.global_step,
                f"the loss is {loss:.4g} and was above {limit:.4g} the last {self._high_losses} times it was logged; "
                + (
                    f"uniform guessing gives {reference:.4g}"
                    if self.first_loss is None
                    else f"it begins below {reference:.4g}"
                ),
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
            logger.warning("No checkpoint is saved: the model may have diverged.")

    def _diverged(self, args: TrainingArguments, step: int, what: str) -> TrainingDiverged:
        checkpoint = last_whole_checkpoint(Path(args.output_dir))
        left = (
            f"resume from the last complete checkpoint, {checkpoint}, with --resume and a smaller value"
            if checkpoint
            else "no checkpoint was saved; start again with a smaller value"
        )
        return TrainingDiverged(
            f"Training diverged at step {step}: {what}. --learning_rate is {args.learning_rate:g}: {left}, such as a third of it."
        )


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    # After an evaluation, FSDP2 keeps some parameters whole and the others sharded, and a norm takes only one kind.
    parts = [[tensor for tensor in tensors if isinstance(tensor, DTensor) == sharded] for sharded in (False, True)]
    # The maximum norm takes ten times as long on a CPU, so it is computed only if the sum of squares overflowed.
    return all(any(math.isfinite(_norm(part, norm_type)) for norm_type in (2.0, math.inf)) for part in parts if part)


def _norm(tensors: list[torch.Tensor], norm_type: float) -> float:
    norm = nn.utils.get_total_norm(tensors, norm_type=norm_type)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


class ProgressFromResume(ProgressCallback):
    """transformers' progress bar; its rate and remaining time count only the steps since resuming."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = state.global_step
        if self.training_bar is not None:
            self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.refresh()


class EpochOfStream(TrainerCallback):
    """Sets `epoch` of a run on a stream to the share of its steps; after resuming, `Trainer` would restart at 0."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.epoch = state.global_step / state.max_steps
