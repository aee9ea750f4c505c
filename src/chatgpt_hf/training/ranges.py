"""Which values the fields of every training may have, checked before anything is read or loaded.

`Trainer` divides by some of them, and takes others that are out of range as not given.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_available

from .launch import check_devices, check_divisible, check_found

# NumPy's generator takes 32 bits.
LARGEST_SEED = 2**32 - 1


class Range(NamedTuple):
    """Values that some fields may have.

    Attributes:
        names: The fields; None among their values means that they are not given.
        holds: True for a value in the range. It is False for a value that is not a number.
        words: What would be right, for the message.
    """

    names: tuple[str, ...]
    holds: Callable[[Any], bool]
    words: str


def _is_interval(value: float) -> bool:
    return 0 < value < 1 or (1 <= value < math.inf and value == int(value))


RANGES = (
    Range(
        (
            *("learning_rate", "embedding_learning_rate", "weight_decay", "adam_epsilon"),
            *("max_grad_norm", "eval_delay", "neftune_noise_alpha"),
        ),
        # YAML has whole numbers that are too large for a float.
        lambda value: 0 <= value <= sys.float_info.max,
        "give a finite number that is not negative",
    ),
    Range(
        ("adam_beta1", "adam_beta2", "muon_momentum"),
        lambda value: 0 <= value < 1,
        "give a number from 0 to below 1",
    ),
    Range(("label_smoothing_factor",), lambda value: 0 <= value <= 1, "give a number from 0 to 1"),
    Range(("seed", "data_seed"), lambda value: 0 <= value <= LARGEST_SEED, f"give a number from 0 to {LARGEST_SEED}"),
    Range(
        (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("eval_accumulation_steps", "dataloader_prefetch_factor", "save_total_limit", "fsdp_replicas"),
        ),
        lambda value: value >= 1,
        "give a whole number from 1",
    ),
    Range(("dataloader_num_workers",), lambda value: value >= 0, "give 0 for none, or more"),
    Range(
        ("max_steps",),
        lambda value: value >= 1 or value == -1,
        "give a number from 1, or -1 to let --num_train_epochs decide",
    ),
    Range(
        ("warmup_steps",),
        lambda value: value == 0 or _is_interval(value),
        "give a whole number of steps, or their share of all steps from 0 to below 1",
    ),
    Range(
        ("logging_steps", "save_steps", "eval_steps"),
        _is_interval,
        "give a whole number from 1, or a share of all steps above 0 and below 1",
    ),
)
# Only if `max_steps` does not decide.
EPOCHS = Range(
    ("num_train_epochs",), lambda value: 0 < value < math.inf, "give a finite number above 0, or --max_steps"
)
ADAPTERS = (
    Range(("lora_r",), lambda value: value >= 1, "give a whole number from 1"),
    Range(
        ("lora_alpha",),
        lambda value: 0 < value < math.inf,
        "give a number above 0; the adapters' output is multiplied by it",
    ),
    Range(("lora_dropout",), lambda value: 0 <= value < 1, "give a number from 0 to below 1"),
)


def check_ranges(arguments: Any, ranges: Sequence[Range]) -> None:
    """Raises `ValueError` naming the first field of a dataclass that is out of its range."""
    for item in ranges:
        for name in item.names:
            value = getattr(arguments, name, None)
            if value is not None and not item.holds(value):
                raise ValueError(f"--{name} is {value}: {item.words}.")


def check_training(arguments: Any) -> None:
    """Checks the fields of a `TrainingArguments` before its own `__post_init__`.

    Raises:
        ValueError: Naming the field.
    """
    check_ranges(arguments, RANGES)
    if not has_steps(arguments):
        check_ranges(arguments, (EPOCHS,))
    if arguments.deepspeed and not is_deepspeed_available():
        raise ValueError(
            "--deepspeed needs the package deepspeed, which is not installed: pip install deepspeed, or leave it out."
        )
    check_devices(arguments)


def check_engines(arguments: Any, optim: str) -> None:
    """Refuses what DeepSpeed and accelerate's parallelism would compute wrongly, or not at all.

    Args:
        optim: The optimizer of the run.

    Raises:
        ValueError: Naming the field, or the option of `accelerate launch`.
    """
    if optim == "muon" and (arguments.deepspeed or _is_true("ACCELERATE_USE_DEEPSPEED")):
        raise ValueError(
            "DeepSpeed flattens matrices, and --optim muon needs them whole: give --optim adamw_torch, or --fsdp instead of DeepSpeed."
        )
    config = getattr(arguments, "parallelism_config", None)
    for size, name in (("cp", "Context"), ("sp", "Sequence")):
        if _parallel(config, f"{size}_size") > 1:
            raise ValueError(
                f"{name} parallelism ({size}_size) drops the attention mask, so packed documents would see one another and sliding windows "
                "would not hold: leave it out, and give shorter rows or --gradient_checkpointing."
            )
    if _parallel(config, "tp_size") > 1:
        raise ValueError(
            "Trainings load whole models, which tensor parallelism (tp_size) does not share: leave it out, and give --fsdp."
        )


def _parallel(config: Any, name: str) -> int:
    """A size of accelerate's parallelism, from the arguments or from the options of `accelerate launch`."""
    if config is not None:
        return int(getattr(config, name, 1) or 1)
    used = _is_true("ACCELERATE_USE_PARALLELISM_CONFIG")
    return int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}", "1")) if used else 1


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def check_device(arguments: TrainingArguments) -> None:
    """Checks the fields that depend on the devices of this process. They are known after the `__post_init__`.

    Raises:
        ValueError: Naming the field.
    """
    check_found(arguments)
    check_divisible(arguments)
    if arguments.fp16 and arguments.device.type == "cpu":
        # Accelerate would train in float32 and say nothing.
        raise ValueError("--fp16 needs an accelerator, and this is a CPU: give --bf16 true, or leave it out.")
    of_xla = isinstance(arguments.fsdp_config, dict) and arguments.fsdp_config.get("xla")
    if arguments.fsdp and not of_xla and arguments.parallel_mode.value != "distributed":
        raise ValueError(
            "--fsdp shares a model among several processes, and this is a single one: start several with "
            "`accelerate launch --num_processes N`, or leave it out."
        )


def has_steps(arguments: TrainingArguments) -> bool:
    """True if `max_steps` says how long the training is; otherwise, epochs do."""
    return arguments.max_steps > 0
