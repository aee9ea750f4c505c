"""Dataclasses of arguments: their fields are the names in a recipe and on the command line.

The command line reads this file without importing it, to show its help at once: see `chatgpt_hf_cli/static.py`. Help texts and
defaults are therefore literals, or made of names that are defined in this package.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from inspect import cleandoc
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from transformers import PreTrainedConfig, SchedulerType, TrainingArguments

from .._moved import names_of
from ..errors import ConfigError
from ..extras import needed_by
from ..model.configuration_chatgpt import ChatGPTConfig
from .optim import MuonFactory
from .ranges import ADAPTERS, check_device, check_engines, check_ranges, check_training
from .recipe import parse_recipe as parse_recipe

with needed_by("Training"):
    from trl import SFTConfig

# The reader of recipes was here in release 0.1.
__getattr__ = names_of(__name__, "training.recipe", "training.recipe_fields")


def _described_arguments(docstring: str) -> dict[str, str]:
    """The text about each argument in a docstring of Google's style, on one line."""
    section = cleandoc(docstring).partition("Args:\n")[2].partition("\n\n")[0]
    parts = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in parts}


def _architecture_fields() -> list[tuple[str, Any, Any]]:
    """The fields that `ChatGPTConfig` adds to its base class, unset by default: a recipe names only those it changes."""
    # `use_cache` is a field of TrainingArguments too, and not part of the architecture.
    inherited = {item.name for item in fields(PreTrainedConfig)} | {"use_cache"}
    described = _described_arguments(ChatGPTConfig.__doc__ or "")
    result: list[tuple[str, Any, Any]] = []
    for item in fields(ChatGPTConfig):
        # The tokenizer decides the vocabulary and its special ids.
        if item.name in inherited or item.name == "vocab_size" or item.name.endswith("_token_id"):
            continue
        # The parser takes one type or None: an `int | float` is read as a float, a Literal keeps its choices.
        options = [option for option in get_args(item.type) if option is not type(None)]
        kind: Any = item.type
        if get_origin(kind) in (Union, UnionType):
            kind = float if float in options else options[0]
        if get_origin(kind) is dict:
            kind = str  # JSON on the command line, a mapping in a recipe
        help_text = f"{described[item.name]} [default: {item.default}]".replace("%", "%%")
        result.append((item.name, kind | None, field(default=None, metadata={"help": help_text})))
    return result


ArchitectureArguments = make_dataclass("ArchitectureArguments", _architecture_fields())
ArchitectureArguments.__doc__ = "The shape of a new model: the fields of `ChatGPTConfig`."


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a model to start from; without it, training starts from a new model."},
    )
    depth: int | None = field(
        default=None,
        metadata={
            "help": "Size of a new model in layers. Also sets width, batch size, steps and learning rate, unless they are given."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "eager, sdpa, flex_attention or flash_attention_2; transformers chooses if not given."},
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={
            "help": "Precision of the weights during training: float32 if not given, whatever the folder stores. Smaller steps than a "
            "weight's precision are lost: at a learning rate of 2e-5, bfloat16 weights hardly learn. Mixed precision is --bf16."
        },
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={"help": "Precision of the saved model's weights; the one that the base model came in if not given."},
    )


@dataclass
class ChatModelArguments(ModelArguments):
    """Which model to start from, and whether to train low-rank adapters instead of it; names as in TRL's `ModelConfig`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the model to start from."}
    )
    # Recipes of earlier runs have the field.
    depth: int | None = field(default=None, metadata={"help": "Not used: the model to start from has its size."})
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters and leave the base model unchanged."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(
        default=32, metadata={"help": "Scale of the adapters: their output is multiplied by lora_alpha / lora_r."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the input of the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the layers that get adapters; all linear layers except the head if not given."},
    )
    use_rslora: bool = field(
        default=False, metadata={"help": "Divide the scale by the square root of the rank instead of the rank."}
    )
    use_dora: bool = field(
        default=False, metadata={"help": "Train DoRA adapters, which learn direction and magnitude separately."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Load the base model in 4 bits (QLoRA); needs bitsandbytes and a GPU."}
    )

    def __post_init__(self) -> None:
        if self.depth is not None:
            raise ConfigError(
                "--depth sizes a new model, as pretrain makes one; this training starts from --model_name_or_path."
            )
        check_ranges(self, ADAPTERS)


@dataclass
class CorpusArguments:
    """Where the text comes from, and how it becomes training rows."""

    corpus: list[str] = field(
        default_factory=lambda: ["builtin:python-docs"],
        metadata={
            "help": "One or more sources: builtin:python-docs, a file, folder or glob (txt, md, jsonl, csv, parquet), or a Hub id. To "
            "give a source a weight, text_column or template, write a mapping (JSON on the command line)."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the files, such as gb18030 or cp1252; UTF-8 if not given."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read and pack text during training instead of up front; needs max_steps."}
    )
    stream_shards: int | None = field(
        default=None,
        metadata={
            "help": "With streaming: number of parts that the stream is cut into, each read by one process. A run resumes on any number of "
            "processes that divides it. If not given: for several processes, chosen by the number of files; for one, the stream is not cut."
        },
    )
    eval_corpus: str | None = field(
        default=None, metadata={"help": "Source of held-out text; a part of the corpus if not given."}
    )
    test_fraction: float = field(
        default=0.05, metadata={"help": "Share of the documents to hold out; the hash of a document decides."}
    )
    eval_documents: int = field(default=256, metadata={"help": "Number of documents to hold out of a stream."})
    skip_broken_files: bool = field(
        default=False, metadata={"help": "Skip files that cannot be read, with a warning, instead of stopping."}
    )
    preprocessing_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Number of processes that tokenize and pack; chosen by the size of the corpus if not given."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a tokenizer; a new one is trained on the corpus if not given."},
    )
    vocab_size: int = field(default=4096, metadata={"help": "Size of a new tokenizer."})
    block_size: int = field(default=512, metadata={"help": "Length of a training row in tokens."})

    def __post_init__(self) -> None:
        # A recipe may give a single source without a list.
        if isinstance(self.corpus, str | Mapping):
            self.corpus = [self.corpus]  # type: ignore[list-item]


@dataclass
class ConversationDataArguments:
    """Which conversations to learn from, and which of them the model answers afterwards."""

    dataset: list[str] = field(
        default_factory=lambda: ["builtin:python-qa"],
        metadata={
            "help": "One or more sources: builtin:python-qa, a file, folder or glob (jsonl, json, csv, tsv, parquet), a Hub id, or a "
            "mapping with source and weight (JSON on the command line). Recognises messages, prompt/completion, Alpaca, "
            "ShareGPT, and columns of questions and answers."
        },
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the question; found by its name if not given."}
    )
    completion_column: str | None = field(
        default=None, metadata={"help": "Column with the answer; found by its name if not given."}
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": 'Question made of several columns in braces, such as "{title}\\n{text}", instead of one column.'
        },
    )
    completion_template: str | None = field(
        default=None, metadata={"help": "Answer made of several columns in braces, instead of one column."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the files, such as gb18030 or cp1252; UTF-8 if not given."}
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Conversations to measure on; the data's test split, or a part of the data, if not given."},
    )
    test_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the conversations to hold out, if the data has no test split; the hash of a conversation decides. If not "
            "given: 0.05 for a base model that was not made with this package, otherwise 0."
        },
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Skip rows that cannot be used, with a warning, instead of stopping."}
    )
    block_size: int = field(default=512, metadata={"help": "Length of a training row in tokens."})
    long_conversations: Literal["cut", "drop", "keep"] = field(
        default="cut",
        metadata={
            "help": "Conversations longer than a row: cut, drop or keep (split over several rows). The report counts them."
        },
    )
    evaluate_answers: int = field(
        default=200,
        metadata={
            "help": "Number of conversations of each part, trained and held out, that the model answers after training, to be compared "
            "with their last messages; 0 skips this. Each answer has up to 128 tokens."
        },
    )
    evaluate_base: bool = field(
        default=False, metadata={"help": "Also measure the base model's answers before training, for comparison."}
    )
    show_masks: int = field(
        default=0, metadata={"help": "Print this many training rows before training; colour marks the learned tokens."}
    )

    def __post_init__(self) -> None:
        # A recipe may give a single source without a list.
        if isinstance(self.dataset, str | Mapping):
            self.dataset = [self.dataset]  # type: ignore[list-item]


@dataclass
class ConversationArguments(ConversationDataArguments):
    """Which conversations to learn from, and how."""

    repetition_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Written to generation_config.json: makes tokens less likely that the text already holds. A little above 1 keeps "
            "small models from repeating themselves (Keskar et al. 2019)."
        },
    )


# Defaults for a base model that was not made with this package.
FOREIGN_OPTIM = "adamw_torch_fused"
FOREIGN_LEARNING_RATES = {"weights": 2e-5, "adapters": 2e-4}


@dataclass
class OptimizerOptions:
    """Makes `--optim muon` possible: `TrainingArguments` accepts only its own optimizers."""

    # If a recipe gives no `optim`.
    default_optim: ClassVar[str] = "muon"
    # For Muon and for all others, if a recipe gives no `learning_rate`.
    default_learning_rates: ClassVar[dict[str, float]]
    # For a base model that was not made with this package.
    foreign_learning_rates: ClassVar[dict[str, float]] = FOREIGN_LEARNING_RATES
    # What the recipe left open: `use_foreign_defaults` may fill it in.
    optim_was_given: ClassVar[bool] = True
    learning_rate_was_given: ClassVar[bool] = True

    embedding_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the parameters that Muon leaves to AdamW: embeddings, head and norms; learning_rate if not given."
        },
    )
    muon_momentum: float = field(default=0.95, metadata={"help": "Nesterov momentum of Muon."})
    fsdp_replicas: int = field(
        default=1,
        metadata={
            "help": "Copies of a sharded model (HSDP): above 1, the processes of each copy share one among them. Implies --fsdp true."
        },
    )

    def __post_init__(self) -> None:
        # transformers takes the words of a command line for names of strategies.
        word = str(self.fsdp).lower()  # type: ignore[has-type]
        if word in ("true", "false"):
            self.fsdp = word == "true" or None
        if self.fsdp_replicas > 1:
            self.fsdp = True
        wanted = self.optim  # type: ignore[has-type]
        if wanted is None and self.embedding_learning_rate is not None:
            wanted = "muon"
        # On the instance; fields would be part of recipes.
        vars(self).update(
            optim_was_given=wanted is not None,
            learning_rate_was_given=self.learning_rate is not None,  # type: ignore[has-type]
        )
        wanted = wanted or self.default_optim
        if wanted != "muon" and self.embedding_learning_rate is not None:
            raise ValueError(f"--embedding_learning_rate is for --optim muon and --optim is {wanted}: leave it out.")
        if self.learning_rate is None:  # type: ignore[has-type]
            self.learning_rate = self.default_learning_rates["muon" if wanted == "muon" else "others"]
        check_training(self)
        check_engines(self, wanted)
        self.optim = FOREIGN_OPTIM if wanted == "muon" else wanted
        super().__post_init__()  # type: ignore[misc]
        self.optim = wanted
        check_device(self)  # type: ignore[arg-type]

    def use_foreign_defaults(self, *, adapters: bool) -> None:
        """Sets the optimizer and the rate, where not given, to those that are usual for models made elsewhere.

        Muon's defaults suit small models that learned with Muon; steps of that size undo what a large model has learned.

        Args:
            adapters: Low-rank adapters are trained, which take ten times the rate.
        """
        if not self.optim_was_given:
            self.optim = FOREIGN_OPTIM
        if not self.learning_rate_was_given and self.optim != "muon":
            self.learning_rate = self.foreign_learning_rates["adapters" if adapters else "weights"]

    @property
    def optimizer_cls_and_kwargs(self) -> tuple[type, dict[str, Any]] | None:
        """The optimizer for `Trainer`; None leaves the choice to it."""
        if self.optim != "muon":
            return None
        betas = (self.adam_beta1, self.adam_beta2)  # type: ignore[attr-defined]
        return MuonFactory, {
            "lr": self.learning_rate,
            "embedding_lr": self.embedding_learning_rate,
            "momentum": self.muon_momentum,
            "betas": betas,
            "eps": self.adam_epsilon,  # type: ignore[attr-defined]
            "weight_decay": self.weight_decay,  # type: ignore[attr-defined]
        }


OPTIM_HELP = {
    "help": "muon, or any optimizer of transformers: adamw_torch, adafactor, lion_32bit and others. If not given: muon, or "
    f"{FOREIGN_OPTIM} for a base model that was not made with this package."
}
LEARNING_RATE_HELP = (
    "Peak learning rate. If not given: {muon} with Muon and {others} with other optimizers; with other optimizers, for a base model "
    "that was not made with this package, 2e-05, or 0.0002 for adapters."
)


@dataclass
class PretrainArguments(OptimizerOptions, TrainingArguments):
    """`TrainingArguments` with the defaults of our runs."""

    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 0.005, "others": 1e-3}

    optim: str | None = field(default=None, metadata=OPTIM_HELP)
    learning_rate: float | None = field(
        default=None, metadata={"help": LEARNING_RATE_HELP.format(**default_learning_rates)}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="warmup_stable_decay",
        metadata={
            "help": "Any schedule of transformers; warmup_stable_decay decays linearly over the last 40 % of the steps."
        },
    )
    warmup_steps: float = field(
        default=0.04, metadata={"help": "Number of warm-up steps, or their share of all steps if below 1."}
    )
    weight_decay: float = field(
        default=0.1,
        metadata={"help": "Decoupled weight decay of the matrices inside the layers; nothing else decays."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Log every this many steps."})
    # A loss that is not a number must be visible.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are not finite out of the logged average."}
    )
    # Every parameter takes part in every step; searching for unused ones would walk the graph each time.
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Let DistributedDataParallel look for parameters without a gradient in every step."},
    )

    output_dir: str = field(default="runs/pretrain", metadata={"help": "Folder of the run; becomes a model folder."})
    # In the order of `TrainingArguments`: the parser reads no other order correctly.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Where to log: tensorboard, wandb, trackio and others, or none."}
    )


@dataclass
class TRLOptions(OptimizerOptions):
    """Defaults of our runs with TRL's trainers. List it before TRL's config among the bases."""

    # A loss that is not a number must be visible.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are not finite out of the logged average."}
    )
    # TRL's own defaults suit billions of parameters on a GPU: bfloat16 does not start on a CPU, and checkpointing a small
    # model costs a third of the speed.
    bf16: bool | None = field(
        default=False, metadata={"help": "Train in mixed bfloat16 precision; needs hardware that has it."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Deprecated by transformers: use activation_checkpointing."}
    )
    # In the order of `TrainingArguments`: the parser reads no other order correctly.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Where to log: tensorboard, wandb, trackio and others, or none."}
    )


@dataclass
class ChatSFTArguments(TRLOptions, SFTConfig):
    """TRL's `SFTConfig` with the defaults of our runs."""

    # The second is TRL's own.
    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 0.01, "others": 2e-5}

    optim: str | None = field(default=None, metadata=OPTIM_HELP)
    learning_rate: float | None = field(
        default=None, metadata={"help": LEARNING_RATE_HELP.format(**default_learning_rates)}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of AdamW."})

    output_dir: str = field(default="runs/sft", metadata={"help": "Folder of the run; becomes a model folder."})


@dataclass
class TaskModelArguments(ChatModelArguments):
    """Which model to start from, and how much of it to train."""

    from_scratch: bool = field(
        default=False,
        metadata={
            "help": "Keep the model's architecture and tokenizer but start from new weights, to measure what pretraining is worth. "
            "adapt_epochs still trains on the task's texts."
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout on embeddings and residuals during training; the model's own if not given."},
    )
    freeze_base: bool = field(default=False, metadata={"help": "Train only the new head."})


@dataclass
class FinetuneArguments(OptimizerOptions, TrainingArguments):
    """`TrainingArguments` with the defaults of our runs."""

    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 0.002, "others": 5e-5}

    optim: str | None = field(default=None, metadata=OPTIM_HELP)
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": LEARNING_RATE_HELP.format(**default_learning_rates)}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="linear", metadata={"help": "Any schedule of transformers, such as linear or cosine."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Number of warm-up steps, or their share of all steps if below 1."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Log every this many steps."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are not finite out of the logged average."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch or best."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Order of the rows: random, sequential, or group_by_length, which needs the least padding."},
    )
    output_dir: str = field(default="runs/finetune", metadata={"help": "Folder of the run; becomes a model folder."})
    # In the order of `TrainingArguments`: the parser reads no other order correctly.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Where to log: tensorboard, wandb, trackio and others, or none."}
    )
