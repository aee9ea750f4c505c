"""Dataclasses of arguments for learning from rewards. The command line reads this file like `arguments.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..extras import needed_by
from ..inference.tools import MOST_CALLS
from .arguments import FOREIGN_OPTIM, TRLOptions
from .preference_arguments import RATE_HELP

with needed_by("Training"):
    from trl import GRPOConfig


@dataclass
class PromptArguments:
    """Which prompts to answer, and what the answers are worth."""

    dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One or more sources: a file, folder or glob (jsonl, json, csv, tsv, parquet), a Hub id, or a mapping with "
            "source and weight (JSON on the command line). Rows have a prompt (prompt, question, messages ...) and what the rewards "
            "read, such as answer."
        },
    )
    rewards: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One or more of exact, number, regex, json_schema, python, length, honest; the folder or Hub id of a reward model; "
            "module:function or file.py:function with TRL's signature; or a mapping with name and options (JSON on the command line)."
        },
    )
    tools: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Tools that the model may call while it answers: calculator. Results count towards max_completion_length, and "
            "nothing is learned from their tokens."
        },
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the prompt; found by its name if not given."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column that the rewards read as answer; the one of that name if not given."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message before every prompt that has none."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the files, such as gb18030 or cp1252; UTF-8 if not given."}
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Prompts to measure on; the data's test split, or a part of the data, if not given."},
    )
    test_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of the prompts to hold out, if the data has no test split; the hash of a prompt decides."
        },
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Skip rows that cannot be used, with a warning, instead of stopping."}
    )
    evaluate_prompts: int = field(
        default=64,
        metadata={
            "help": "Number of held-out prompts (training prompts if none are held out) that the model answers before and after "
            "the training: greedily, and num_generations times by sampling. 0 skips it."
        },
    )

    def __post_init__(self) -> None:
        # A recipe may give a single source, reward or tool without a list.
        for name in ("dataset", "rewards", "tools"):
            if isinstance(value := getattr(self, name), str | Mapping):
                setattr(self, name, [value])


@dataclass
class GRPOArguments(TRLOptions, GRPOConfig):
    """TRL's `GRPOConfig` with the defaults of our runs, and the fields that only `RLOOConfig` has."""

    default_optim: ClassVar[str] = FOREIGN_OPTIM
    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 5e-4, "others": 1e-4}
    foreign_learning_rates: ClassVar[dict[str, float]] = {"weights": 1e-6, "adapters": 1e-5}

    optim: str | None = field(
        default=None,
        metadata={
            "help": f"Any optimizer of transformers, such as adamw_torch or adafactor, or muon; {FOREIGN_OPTIM} if not given."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": RATE_HELP.format(**default_learning_rates, **foreign_learning_rates)}
    )
    loss_type: str = field(
        default="dapo",
        metadata={
            "help": "dapo, grpo, dr_grpo, bnpo, cispo, sapo, luspo or vespo, as TRL's GRPOTrainer has them, or rloo, which takes its "
            "RLOOTrainer: REINFORCE with the mean of the other answers as baseline, and beta times the KL divergence in the reward."
        },
    )
    max_completion_length: int | None = field(
        default=256, metadata={"help": "Longest answer, in tokens; one that has not ended by then gets no reward."}
    )
    max_tool_calling_iterations: int | None = field(
        default=None,
        metadata={
            "help": f"With tools: most turns of an answer that call tools, {MOST_CALLS} if not given; an answer that calls once more is "
            "cut there and gets no reward."
        },
    )
    # TRL does so for RLOO and leaves it on for GRPO, where the first step would then compare two different models.
    disable_dropout: bool = field(default=True, metadata={"help": "Turn dropout off."})
    normalize_advantages: bool = field(
        default=False, metadata={"help": "With rloo: divide advantages by their standard deviation in the batch."}
    )
    reward_clip_range: tuple[float, float] | None = field(
        default=None, metadata={"help": "With rloo: lowest and highest reward; others are cut to them."}
    )
    # TRL's texts of these two have names that are too long for a line.
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of transformers' ContinuousBatchingConfig."}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Not used: give dtype or attn_implementation."}
    )
    output_dir: str = field(default="runs/grpo", metadata={"help": "Folder of the run; becomes a model folder."})
