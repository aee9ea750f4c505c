"""Rows, checks and figures of trainings on preferences, for chat models and reward models."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import IntervalStrategy, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..data.preference_shapes import PreferenceColumns
from ..data.preference_tokens import show_pairs, tokenize_preferences
from ..data.preferences import read_preferences, warn_of_shared_prompts
from ..data.sources import parse_sources
from ..data.summary import RowSummary
from ..errors import ConfigError, DataError, TokenizerError
from ..evaluation.preferences import length_accuracy, pair_accuracy
from ..tokenization_chatgpt import IM_END, load_tokenizer
from .preference_arguments import PreferenceArguments, RewardModelArguments
from .resuming import READ_WITH, ResumableTrainer, rows_fingerprint
from .samples import separate_randomness

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceRows:
    """Tokenized preferences.

    Attributes:
        rows: The result of `tokenize_preferences`, with `length`, the tokens of the (longer) conversation.
        eval_rows: The same of held-out prompts; None if there are none.
        judged: True for judged answers.
        sources: Where they are from.
        summaries: How each file was read.
        notes: What was cut or left out because of its tokens, with the number of rows.
        record: Facts for data.json.
    """

    rows: Dataset
    eval_rows: Dataset | None
    judged: bool
    sources: list[str]
    summaries: Sequence[RowSummary]
    notes: dict[str, int]
    record: dict[str, Any]


class PreferenceTrainer(ResumableTrainer):
    """Adapts TRL's preference trainers to rows that are tokenized already. List it before TRL's class among the bases."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`, but the training's random numbers stay as they are: a loader of data draws one."""
        with separate_randomness(self.args.device, self.args.seed):
            return super().evaluate(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the report writes the card, and TRL would write one with every checkpoint."""


# Fields of TRL's that say how it would load a model or prepare rows, which is done here.
NOT_USED = {
    "model_init_kwargs": "give --dtype or --attn_implementation",
    "trust_remote_code": "code that comes with a model is not run",
    "dataset_num_proc": "rows are tokenized in this process",
    "padding_free": "TRL does not support it for now",
    "truncation_mode": "--long_preferences says what becomes of rows that are too long",
    "pad_token": "the tokenizer names its padding",
    "eos_token": "the chat template ends the answers",
    "chat_template_path": "the model keeps the chat template that it was fine-tuned with",
    "router_aux_loss_coef": "it is for mixtures of experts",
}


def check_preferences(model: RewardModelArguments, chosen: PreferenceArguments, arguments: Any) -> None:
    """Raises `ConfigError` if the arguments name no data, contradict themselves, or set what does nothing here.

    Args:
        arguments: A `DPOArguments` or `RewardArguments`.
    """
    if not chosen.dataset:
        raise ConfigError("--dataset is missing: name a file, folder or Hub id with preferences.")
    if arguments.load_best_model_at_end and arguments.eval_strategy == "no":
        raise ConfigError("--load_best_model_at_end needs --eval_strategy steps or epoch, with preferences held out.")
    for item in dataclasses.fields(arguments):
        if item.name in NOT_USED and getattr(arguments, item.name) != item.default:
            raise ConfigError(f"--{item.name} does nothing here: {NOT_USED[item.name]}. Leave it out.")
    if model.lora_dropout and arguments.disable_dropout:
        raise ConfigError(
            f"--lora_dropout {model.lora_dropout} does nothing while --disable_dropout is true: give --disable_dropout false, or "
            "leave it out."
        )


def load_chat_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a chat model.

    Raises:
        TokenizerError: If it has no chat template.
    """
    tokenizer = load_tokenizer(name_or_path)
    if tokenizer.chat_template is None:
        raise TokenizerError(
            f"{name_or_path} has no chat template, so it is a base model: make it a chat model with `chatgpt-hf sft` first."
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked by position, so nothing is lost.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_rows(
    chosen: PreferenceArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str | None,
    max_length: int | None,
    seed: int,
    eval_strategy: IntervalStrategy | str,
    shows: bool,
) -> PreferenceRows:
    """Reads and tokenizes the preferences that the arguments name.

    Args:
        kind: `pairs` or `judged`; by the data if None.
        max_length: Most tokens of a prompt and an answer; longer rows are left out and counted.
        eval_strategy: Of the arguments; anything but `no` needs held-out rows.
        shows: Print the rows that `show_pairs` asks for.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If something has to be held out and is not.
    """
    sources = parse_sources(chosen.dataset, encoding=chosen.encoding, field="dataset")
    columns = PreferenceColumns(*(getattr(chosen, name) for name in PreferenceColumns._fields))
    reading = partial(read_preferences, seed=seed, skip_invalid=chosen.skip_invalid, named=columns)
    read = reading(sources, kind=kind, test_fraction=0.0 if chosen.eval_dataset else chosen.test_fraction)
    splits, summaries = dict(read.splits), list(read.summaries)
    if chosen.eval_dataset is not None:
        named = parse_sources(chosen.eval_dataset, encoding=chosen.encoding, field="eval_dataset")
        held_out = reading(named, kind=read.kind)
        splits["test"] = held_out.splits.get("test", held_out.splits["train"])
        warn_of_shared_prompts(splits["train"], splits["test"])
        summaries += held_out.summaries
    if "test" not in splits and eval_strategy != "no":
        raise ConfigError(
            f"--eval_strategy {IntervalStrategy(eval_strategy).value} needs preferences to measure on, and none are held out: "
            "give --test_fraction 0.1 or an --eval_dataset."
        )
    tokenized: dict[str, Dataset] = {}
    notes: Counter[str] = Counter()
    for name, rows in splits.items():
        tokenized[name], counted = tokenize_preferences(
            rows,
            tokenizer,
            max_length=max_length,
            long_preferences=chosen.long_preferences,
            skip_invalid=chosen.skip_invalid,
        )
        tokenized[name] = with_length(tokenized[name])
        notes.update(counted)
    if chosen.show_pairs and shows:
        show_pairs(tokenized["train"].select(range(min(chosen.show_pairs, len(tokenized["train"])))), tokenizer)
    held = tokenized.get("test")
    return PreferenceRows(
        rows=tokenized["train"],
        eval_rows=held,
        judged=read.kind == "judged",
        sources=[source.source for source in sources],
        summaries=summaries,
        notes=dict(notes),
        record={
            "rows": rows_fingerprint(tokenized["train"]),
            "held_out": None if held is None else rows_fingerprint(held),
            "test_fraction": chosen.test_fraction,
            "long_preferences": chosen.long_preferences,
            READ_WITH: {
                # Where a row comes from does not matter.
                "dataset": rows_fingerprint(splits["train"].remove_columns(["source", "place"])),
                "skip_invalid": chosen.skip_invalid,
            },
        },
    )


def with_length(rows: Dataset) -> Dataset:
    """Adds `length`, by which `--train_sampling_strategy group_by_length` sorts: the tokens of the longer conversation."""
    sides = [rows[name][:] for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in rows.column_names]
    lengths = [
        len(prompt) + max(map(len, answers)) for prompt, *answers in zip(rows["prompt_ids"], *sides, strict=True)
    ]
    return rows.add_column("length", lengths)


# Fewer held-out pairs say little: an accuracy of 0.5 has an interval of more than 0.35.
_FEW = 30


def check_enough(rows: PreferenceRows, arguments: TrainingArguments) -> None:
    """Raises `DataError` if there are fewer rows than a step takes; warns if few are held out."""
    taken = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if len(rows.rows) < taken:
        raise DataError(
            f"{', '.join(rows.sources)}: the rows to train on are {len(rows.rows)}, and a step takes {taken}: give more rows, or a "
            "smaller --per_device_train_batch_size or --gradient_accumulation_steps."
        )
    if rows.eval_rows is not None and len(rows.eval_rows) < _FEW:
        logger.warning("Only %d preferences are held out: figures for them say little.", len(rows.eval_rows))


def check_end_mark(rows: PreferenceRows, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `TokenizerError` if answers end with nothing that ends an answer when the model generates.

    It would be rewarded for what it says and never for stopping.
    """
    named = getattr(model, "generation_config", model.config).eos_token_id
    ends = {
        tokenizer.eos_token_id,
        tokenizer.get_vocab().get(IM_END),
        *(named if isinstance(named, list) else [named]),
    }
    last = {ids[-1] for ids in rows.rows["completion_ids" if rows.judged else "chosen_ids"]}
    if not last & ends:
        shown = ", ".join(repr(tokenizer.decode([token])) for token in sorted(last)[:3])
        raise TokenizerError(
            f"The model has no end mark: its chat template ends answers with {shown}, and generation does not stop there. Name the "
            "end mark as eos_token_id in generation_config.json, or fine-tune with a template that has one (`chatgpt-hf sft`)."
        )


def accuracy_figures(margins: Sequence[float], train: Dataset, held_out: Dataset) -> dict[str, float]:
    """The share of held-out pairs that a model ranks right, beside that of a rule that sees only lengths.

    Args:
        margins: Of each held-out pair, the score of the chosen answer minus that of the rejected one, (pairs,).
        train: Pairs that decide whether longer or shorter answers win.
        held_out: The pairs of `margins`.
    """
    figures: dict[str, float] = {}
    lengths = [
        [
            len(chosen) - len(rejected)
            for chosen, rejected in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)
        ]
        for rows in (train, held_out)
    ]
    for name, figure in (("pair", pair_accuracy(margins)), ("length", length_accuracy(*lengths))):
        figures |= {
            f"held_out_{name}_accuracy": figure.value,
            f"held_out_{name}_accuracy_low": figure.low,
            f"held_out_{name}_accuracy_high": figure.high,
        }
    return figures


def silence_attention_dropout(model: PreTrainedModel | None) -> None:
    """Sets to 0 the dropout of attention that a model applies by a number: TRL finds only modules."""
    for module in () if model is None else model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
