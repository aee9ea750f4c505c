"""Dataclasses of arguments for learning from preferences. The command line reads this file like `arguments.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..extras import needed_by
from .arguments import FOREIGN_OPTIM, ChatModelArguments, TRLOptions

with needed_by("Training"):
    from trl import DPOConfig, RewardConfig


@dataclass
class RewardModelArguments(ChatModelArguments):
    """Which model to start from, and whether to train low-rank adapters."""

    # TRL turns dropout off.
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the input of the adapters; needs disable_dropout false."}
    )


@dataclass
class PreferenceModelArguments(RewardModelArguments):
    """Which model to start from, what it is compared with, and whether to train low-rank adapters."""

    ref_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of the reference model; the model itself, as it is before the training, if not given."
        },
    )


@dataclass
class PreferenceArguments:
    """Which preferences to learn from."""

    dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One or more sources: a file, folder or glob (jsonl, json, csv, tsv, parquet), a Hub id, or a mapping with "
            "source and weight (JSON on the command line). Rows are pairs (prompt, chosen, rejected) or judged answers "
            "(prompt, completion, label)."
        },
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the prompt; found by its name if not given, like the next four."}
    )
    chosen_column: str | None = field(default=None, metadata={"help": "Column with the better answer."})
    rejected_column: str | None = field(default=None, metadata={"help": "Column with the worse answer."})
    completion_column: str | None = field(default=None, metadata={"help": "Column with an answer that is judged."})
    label_column: str | None = field(default=None, metadata={"help": "Column that says whether that answer is good."})
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the files, such as gb18030 or cp1252; UTF-8 if not given."}
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Preferences to measure on; the data's test split, or a part of the data, if not given."},
    )
    test_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of the prompts to hold out, if the data has no test split; the hash of a prompt decides, so all "
            "answers to a prompt stay together."
        },
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Skip rows that cannot be used, with a warning, instead of stopping."}
    )
    long_preferences: Literal["drop", "cut"] = field(
        default="drop",
        metadata={
            "help": "Rows with more than max_length tokens: drop them, or cut the end of their answers. They are counted."
        },
    )
    show_pairs: int = field(
        default=0, metadata={"help": "Print this many rows before training; colour marks the tokens that are scored."}
    )

    def __post_init__(self) -> None:
        # A recipe may give a single source without a list.
        if isinstance(self.dataset, str | Mapping):
            self.dataset = [self.dataset]  # type: ignore[list-item]


RATE_HELP = (
    "Peak learning rate. If not given: {others}, or {muon} with Muon; for a base model that was not made with this package {weights}, "
    "or {adapters} for adapters."
)


@dataclass
class PreferenceOptions(TRLOptions):
    """What DPO and reward models share: AdamW, at rates far below those of fine-tuning, and the length of a row."""

    default_optim: ClassVar[str] = FOREIGN_OPTIM

    optim: str | None = field(
        default=None,
        metadata={
            "help": f"Any optimizer of transformers, such as adamw_torch or adafactor, or muon; {FOREIGN_OPTIM} if not given."
        },
    )
    max_length: int | None = field(
        default=512,
        metadata={
            "help": "Longest prompt and answer together, in tokens; long_preferences says what becomes of longer rows."
        },
    )


@dataclass
class DPOArguments(PreferenceOptions, DPOConfig):
    """TRL's `DPOConfig` with the defaults of our runs, and the weights of `KTOConfig`."""

    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 5e-4, "others": 1e-4}
    foreign_learning_rates: ClassVar[dict[str, float]] = {"weights": 1e-6, "adapters": 1e-5}

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": RATE_HELP.format(**default_learning_rates, **foreign_learning_rates)}
    )
    sample_answers: int = field(
        default=4,
        metadata={
            "help": "Number of held-out prompts that the model answers before and after the training, for report/samples.md; each "
            "answer has up to 128 tokens."
        },
    )
    loss_type: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One or more losses. For pairs: sigmoid (if not given), hinge, ipo, exo_pair, nca_pair, robust, bco_pair, "
            "sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop, sft, sigmoid_norm. For judged answers one of kto (if "
            "not given) and apo_zero_unpaired."
        },
    )
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of the losses of good judged answers."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of the losses of bad judged answers."})
    output_dir: str = field(default="runs/dpo", metadata={"help": "Folder of the run; becomes a model folder."})


@dataclass
class RewardArguments(PreferenceOptions, RewardConfig):
    """TRL's `RewardConfig` with the defaults of our runs."""

    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 2e-3, "others": 1e-4}
    foreign_learning_rates: ClassVar[dict[str, float]] = {"weights": 1e-5, "adapters": 1e-4}

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": RATE_HELP.format(**default_learning_rates, **foreign_learning_rates)}
    )
    # TRL's text has a name that is too long for a line.
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Not used: give dtype or attn_implementation."}
    )
    output_dir: str = field(default="runs/reward", metadata={"help": "Folder of the run; becomes a model folder."})
