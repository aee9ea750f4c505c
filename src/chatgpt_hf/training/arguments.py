"""What a recipe may say: dataclasses whose fields are the names in the YAML file and on the command line."""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, NoReturn, Union, get_args, get_origin

import torch
import yaml
from transformers import PreTrainedConfig, SchedulerType, TrainingArguments
from trl import SFTConfig, TrlParser

from ..errors import ConfigError
from ..model.configuration_chatgpt import ChatGPTConfig
from ..tokenization_chatgpt import load_tokenizer
from .optim import MuonFactory


def _architecture_fields() -> list[tuple[str, Any, Any]]:
    """Every field of `ChatGPTConfig` of its own, unset by default, so that a recipe names only what it changes."""
    # `use_cache` is a TrainingArguments field too, and nothing of the architecture.
    inherited = {item.name for item in fields(PreTrainedConfig)} | {"use_cache"}
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
        help_text = f"`ChatGPTConfig.{item.name}` of a new model (default {item.default})."
        result.append((item.name, kind | None, field(default=None, metadata={"help": help_text})))
    return result


ArchitectureArguments = make_dataclass("ArchitectureArguments", _architecture_fields())
ArchitectureArguments.__doc__ = "The shape of a model that starts from nothing: the fields of `ChatGPTConfig`."


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a model to go on from; a new model when not given."}
    )
    depth: int | None = field(
        default=None, metadata={"help": "One dial for a new model's size: `ChatGPTConfig.from_depth`."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flex_attention or flash_attention_2; transformers chooses."}
    )


@dataclass
class ChatModelArguments(ModelArguments):
    """Which model to start from, and whether low-rank adapters are trained in its place; names as in TRL's `ModelConfig`."""

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters and leave the base model as it is."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(
        default=32, metadata={"help": "Their scale; what they add is multiplied by it and divided by the rank."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before them."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the layers that get them; all linear ones but the head when not given."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by the square root of the rank."})
    use_dora: bool = field(default=False, metadata={"help": "Learn direction and magnitude apart."})
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Base model in 4 bits (QLoRA); needs bitsandbytes and a GPU."}
    )


@dataclass
class CorpusArguments:
    """Where text comes from and how it becomes rows."""

    corpus: list[str] = field(
        default_factory=lambda: ["builtin:python-docs"],
        metadata={
            "help": "One source or several, each builtin:python-docs, a file, folder or glob (txt, md, jsonl, csv, parquet), a Hub "
            "id, or a mapping with source, weight, text_column or template (JSON on the command line)."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    streaming: bool = field(
        default=False, metadata={"help": "Read while training, and pack a window at a time, in place of all before."}
    )
    eval_corpus: str | None = field(
        default=None, metadata={"help": "A source of held-out text, in place of a part of the corpus."}
    )
    test_fraction: float = field(default=0.05, metadata={"help": "Share of the documents held out, by their hash."})
    eval_documents: int = field(default=256, metadata={"help": "Documents held out of a stream."})
    skip_broken_files: bool = field(
        default=False, metadata={"help": "Leave out files that cannot be read, with a warning, in place of refusing."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize and pack; as many as pay when not given."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a tokenizer; trained on the corpus when not given."}
    )
    vocab_size: int = field(default=4096, metadata={"help": "Size of a tokenizer that is trained here."})
    block_size: int = field(default=512, metadata={"help": "Tokens in a training row."})

    def __post_init__(self) -> None:
        # A recipe may name one source as it is.
        if isinstance(self.corpus, str | Mapping):
            self.corpus = [self.corpus]  # type: ignore[list-item]


@dataclass
class ConversationArguments:
    """Which conversations to learn from."""

    dataset: list[str] = field(
        default_factory=lambda: ["builtin:python-qa"],
        metadata={
            "help": "One source or several, each builtin:python-qa, a file, folder or glob (jsonl, json, csv, tsv, parquet), a Hub id, "
            "or a mapping with source and weight (JSON on the command line). messages, prompt/completion, Alpaca, ShareGPT "
            "and plain columns of questions and answers are recognised."
        },
    )
    test_fraction: float = field(
        default=0.0, metadata={"help": "Share of the conversations held out, by their hash, where none are already."}
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Leave out rows that cannot be used, with a warning, in place of refusing."}
    )
    block_size: int = field(default=512, metadata={"help": "Tokens in a training row."})
    long_conversations: Literal["cut", "drop", "keep"] = field(
        default="cut",
        metadata={
            "help": "What becomes of those longer than a row; keep spreads them over several. They are counted."
        },
    )
    evaluate_base: bool = field(
        default=False, metadata={"help": "Let the base model answer too, before it learns, for comparison."}
    )
    repetition_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Goes into generation_config.json: how much less likely a token becomes by being there already; a little "
            "above 1 keeps small models out of loops (Keskar et al. 2019)."
        },
    )
    show_masks: int = field(
        default=0, metadata={"help": "Training rows to print first, with what is learned in colour."}
    )

    def __post_init__(self) -> None:
        # A recipe may name one source as it is.
        if isinstance(self.dataset, str | Mapping):
            self.dataset = [self.dataset]  # type: ignore[list-item]


@dataclass
class OptimizerOptions:
    """What `TrainingArguments`, which knows its own optimizers alone, needs for `--optim muon`."""

    # Of the two optimizers, where a recipe gives no `learning_rate`.
    default_learning_rates: ClassVar[dict[str, float]]

    embedding_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of what Muon leaves to AdamW: embeddings, head, norms (default learning_rate)."
        },
    )
    muon_momentum: float = field(default=0.95, metadata={"help": "Momentum of Muon, in Nesterov's form."})

    def __post_init__(self) -> None:
        wanted = self.optim  # type: ignore[has-type]
        if wanted != "muon" and self.embedding_learning_rate is not None:
            raise ValueError(f"--embedding_learning_rate is for --optim muon and --optim is {wanted}: leave it out.")
        if self.learning_rate is None:  # type: ignore[has-type]
            self.learning_rate = self.default_learning_rates["muon" if wanted == "muon" else "others"]
        if wanted == "muon":
            self.optim = "adamw_torch_fused"
        super().__post_init__()  # type: ignore[misc]
        self.optim = wanted

    @property
    def optimizer_cls_and_kwargs(self) -> tuple[type, dict[str, Any]] | None:
        """What `Trainer` takes under this name: None leaves the choice to it."""
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


OPTIM_HELP = {"help": "muon, or any optimizer that transformers' TrainingArguments knows."}
LEARNING_RATE_HELP = "Peak learning rate; by default {muon} with Muon and {others} with others."


@dataclass
class PretrainArguments(OptimizerOptions, TrainingArguments):
    """`TrainingArguments`, with what a run of ours has in place of its defaults."""

    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 0.005, "others": 1e-3}

    optim: str = field(default="muon", metadata=OPTIM_HELP)
    learning_rate: float | None = field(
        default=None, metadata={"help": LEARNING_RATE_HELP.format(**default_learning_rates)}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="warmup_stable_decay",
        metadata={"help": "Any schedule of transformers; this one decays linearly over the last 40 % of the steps."},
    )
    warmup_steps: float = field(
        default=0.04, metadata={"help": "Steps of warm-up, or their share of all when below 1."}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "Decoupled, of the matrices inside the layers alone."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    logging_steps: float = field(default=10, metadata={"help": "Steps from one log to the next."})
    # A loss that is no number must be seen.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})
    # Every parameter takes part in every step; looking for those that do not takes a walk over the graph each time.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Let DDP look for parameters without a gradient in every step."}
    )

    output_dir: str = field(default="runs/pretrain", metadata={"help": "Folder of the run: a plain model folder."})
    # The order of `TrainingArguments`, which is the only one that the parser takes apart rightly.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "tensorboard, wandb, trackio ..."}
    )


@dataclass
class ChatSFTArguments(OptimizerOptions, SFTConfig):
    """TRL's `SFTConfig`, with what a run of ours has in place of its defaults."""

    # The second is TRL's own.
    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 0.01, "others": 2e-5}

    optim: str = field(default="muon", metadata=OPTIM_HELP)
    learning_rate: float | None = field(
        default=None, metadata={"help": LEARNING_RATE_HELP.format(**default_learning_rates)}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})

    output_dir: str = field(default="runs/sft", metadata={"help": "Folder of the run: a plain model folder."})
    # TRL's own defaults suit billions of parameters on a GPU: bfloat16 does not start on a CPU, and checkpointing a small
    # model costs a third of the speed.
    bf16: bool | None = field(default=False, metadata={"help": "Mixed bfloat16 precision, on hardware that has it."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Deprecated by transformers; see activation_checkpointing."}
    )
    # The order of `TrainingArguments`, which is the only one that the parser takes apart rightly.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "tensorboard, wandb, trackio ..."}
    )


@dataclass
class TaskModelArguments(ChatModelArguments):
    """Which model to start from, and how much of it is trained."""

    from_scratch: bool = field(
        default=False,
        metadata={
            "help": "Take its architecture and tokenizer with new weights: what pretraining is worth. --adapt_epochs still "
            "reads the task's texts."
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout of embeddings and residuals while training; the model's own if not given."},
    )
    freeze_base: bool = field(default=False, metadata={"help": "Train the new head alone."})


@dataclass
class FinetuneArguments(OptimizerOptions, TrainingArguments):
    """`TrainingArguments`, with what a run of ours has in place of its defaults."""

    default_learning_rates: ClassVar[dict[str, float]] = {"muon": 0.002, "others": 5e-5}

    optim: str = field(default="muon", metadata=OPTIM_HELP)
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": LEARNING_RATE_HELP.format(**default_learning_rates)}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="linear", metadata={"help": "Any schedule of transformers."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of warm-up, or their share of all when below 1."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    logging_steps: float = field(default=10, metadata={"help": "Steps from one log to the next."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})
    eval_strategy: str = field(default="epoch", metadata={"help": "no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "no, steps, epoch or best."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "random, sequential or group_by_length, which pads least."}
    )
    output_dir: str = field(default="runs/finetune", metadata={"help": "Folder of the run: a plain model folder."})
    # The order of `TrainingArguments`, which is the only one that the parser takes apart rightly.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "tensorboard, wandb, trackio ..."}
    )


class RecipeParser(TrlParser):
    """`TrlParser` whose complaints are ours: one sentence with the nearest field, in place of 200 lines of usage.

    Attributes:
        actions: Of all arguments, in their order; argparse has no public list of them.
    """

    def __init__(self, dataclass_types: Sequence[type]) -> None:
        self.actions: list[argparse.Action] = []
        super().__init__(dataclass_types)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        self.actions.append(action)
        return action

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}.{self.nearest(message)}")

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The fields that a command line sets, without those that it leaves at their defaults."""
        defaults = {action: action.default for action in self.actions}
        for action in self.actions:
            action.default = argparse.SUPPRESS
        try:
            return vars(self.parse_known_args(list(arguments))[0])
        finally:
            for action, default in defaults.items():
                action.default = default

    def nearest(self, message: str) -> str:
        known = [option for action in self.actions for option in action.option_strings if "-" not in option[2:]]
        for word in message.replace(":", " ").split():
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.75) if word.startswith("--") else []
            if close and close[0] != word:
                return f" Did you mean {close[0]}?"
        return ""


def parse_recipe(
    dataclass_types: Sequence[type], recipe: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Any, ...]:
    """A recipe file with command-line overrides, as instances of `dataclass_types`.

    Where pretraining is given a `depth`, what neither sets is set by `scaling.dial`.

    Args:
        recipe: A YAML file, the name of a recipe that the package ships (with or without `.yaml`), or None.
        overrides: `["--learning_rate", "1e-3", ...]`; wins over the recipe.

    Raises:
        ConfigError: Naming the file, or the field that is unknown or has an impossible value.
    """
    parser = RecipeParser(tuple(dataclass_types))
    arguments = list(overrides)
    if "--config" in arguments:
        raise ConfigError("Unknown argument --config: name the recipe itself, before the other arguments.")
    set_by_hand: dict[str, Any] = {}
    if recipe is not None:
        path = find_recipe(recipe)
        content = _read_recipe(path)
        unknown = [name for name in content if name not in {action.dest for action in parser.actions} | {"env"}]
        if unknown:
            raise ConfigError(f"{path} sets the unknown field {unknown[0]!r}.{parser.nearest('--' + str(unknown[0]))}")
        set_by_hand = {
            action.dest: _read_value(action, content[action.dest], path)
            for action in parser.actions
            if content.get(action.dest) is not None
        }
        arguments = ["--config", str(path), *arguments]
    if CorpusArguments in dataclass_types:
        set_by_hand |= parser.given(overrides)
        parser.set_defaults_with_config(**_turn_dial(set_by_hand))
    try:
        *parsed, rest = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{recipe or 'The command line'}: {error}") from error
    if rest:
        raise ConfigError(f"Unknown argument {rest[0]}.{parser.nearest(rest[0])}")
    return tuple(parsed)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `field: value` lines.")
    return content


def _read_value(action: argparse.Action, value: Any, path: Path) -> Any:
    """The value as its field's type. Raises `ConfigError` where the command line would refuse it: the parser reads no
    other than strings."""
    if action.nargs is not None or not callable(action.type):
        return value
    try:
        read = action.type(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{path} sets {action.dest} to {value!r}, which it cannot be: {error}.") from error
    if action.choices is not None and read not in action.choices:
        known = ", ".join(map(str, action.choices))
        raise ConfigError(f"{path} sets {action.dest} to {value!r}; it must be one of {known}.")
    return read


def _turn_dial(set_by_hand: dict[str, Any]) -> dict[str, Any]:
    """What `--depth` sets of the fields that are not set by hand; nothing without it."""
    if set_by_hand.get("depth") is None or set_by_hand.get("model_name_or_path") is not None:
        return {}
    from .scaling import dial

    others = {name: value for name, value in set_by_hand.items() if name not in ("depth", "vocab_size")}
    if others.get("tokenizer") is not None:
        others["vocab_size"] = len(load_tokenizer(others["tokenizer"]))
    elif "vocab_size" in set_by_hand:
        others["vocab_size"] = set_by_hand["vocab_size"]
    return dial(set_by_hand["depth"], world_size=int(os.environ.get("WORLD_SIZE", "1")), **others)


def find_recipe(recipe: str | Path) -> Path:
    """The file that `recipe` names: a path, or a recipe that the package ships."""
    path = Path(recipe)
    if path.is_file():
        return path
    folder = recipes_folder()
    shipped = folder / path.name if path.suffix else folder / f"{path.name}.yaml"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise ConfigError(f"There is no recipe {recipe}: it is no file, and the package ships {known}.")


def recipes_folder() -> Path:
    """Where the shipped recipes lie: in the wheel, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parents[1] / "recipes"


# Fields that a recipe never holds.
SECRETS = ("hub_token", "push_to_hub_token")


def resolve_recipe(*arguments: Any) -> dict[str, Any]:
    """Every field that differs from its dataclass' default, as a recipe that gives the same arguments again."""
    resolved: dict[str, Any] = {}
    for group in arguments:
        default = default_arguments(type(group))
        for item in fields(group):
            value = getattr(group, item.name)
            # What it is by default depends on the optimizer.
            differs = value != getattr(default, item.name) or item.name == "learning_rate"
            # A recipe is for others to read.
            if item.name in SECRETS:
                continue
            if item.init and differs and isinstance(value, str | int | float | list | dict | None):
                resolved[item.name] = getattr(value, "value", value)
    return resolved


def default_arguments(kind: type) -> Any:
    """An instance of a dataclass of arguments with its defaults.

    A plain `TrainingArguments()` would set up the devices anew, and with that undo what the arguments of this process have
    said of CPU, backend and processes.
    """
    return type(kind.__name__, (kind,), {"_setup_devices": torch.device("cpu"), "distributed_state": None})()
