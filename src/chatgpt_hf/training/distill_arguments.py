"""Dataclasses of arguments for distillation. The command line reads this file like `arguments.py`."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..extras import needed_by
from .arguments import LEARNING_RATE_HELP, OPTIM_HELP, TRLOptions

with needed_by("Training"):
    from trl import DistillationConfig


@dataclass
class DistillArguments(TRLOptions, DistillationConfig):
    """TRL's `DistillationConfig` with the defaults of our runs, and `lmbda` of its `GKDConfig`."""

    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 0.01, "others": 2e-5}

    optim: str | None = field(default=None, metadata=OPTIM_HELP)
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": LEARNING_RATE_HELP.format(**default_learning_rates)}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of AdamW."})
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of the chat model to learn from; it has the same tokenizer."},
    )
    lmbda: float = field(
        default=0.0,
        metadata={
            "help": "Share of the rows whose answer the student samples itself, anew in each step (on-policy), "
            "instead of the one in the data."
        },
    )
    beta: float = field(
        default=0.0,
        metadata={
            "help": "Which divergence from the teacher is the loss: 0 is the forward KL, which covers all that the teacher may say; 1 "
            "is the reverse KL, which learns its likeliest answers; 0.5 is the Jensen-Shannon divergence."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Divides the logits of both models in the loss, and the student's when it samples answers."},
    )
    max_completion_length: int | None = field(
        default=128,
        metadata={
            "help": "Longest answer that the student samples, in tokens. Rows whose prompt leaves no room for it keep the data's answer."
        },
    )
    # TRL's text has names that are too long for a line.
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Not used: give dtype or attn_implementation."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Not used: give dtype or attn_implementation, which hold for both models."}
    )
    output_dir: str = field(default="runs/distill", metadata={"help": "Folder of the run; becomes a model folder."})
