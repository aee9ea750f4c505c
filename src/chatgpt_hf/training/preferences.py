"""The order, rows, checks and figures of trainings on preferences, for chat models and reward models."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..checkpoints import check_tokenizer_fits, sample_of
from ..data.conversations import warn_of_shared_prompts
from ..data.preference_shapes import PreferenceColumns
from ..data.preference_tokens import show_pairs, tokenize_preferences
from ..data.preferences import read_preferences
from ..data.sources import parse_sources
from ..data.summary import RowSummary
from ..errors import ConfigError, TokenizerError
from ..evaluation.preferences import length_accuracy, pair_accuracy
from ..tokenization_chatgpt import IM_END
from .chat_run import ChatRun, check_fills_a_step, check_not_used, load_chat_tokenizer
from .preference_arguments import PreferenceArguments, RewardModelArguments
from .resuming import READ_WITH, ResumableTrainer, rows_fingerprint
from .run import check_block_size
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
    check_not_used(arguments, NOT_USED)
    if model.lora_dropout and arguments.disable_dropout:
        raise ConfigError(
            f"--lora_dropout {model.lora_dropout} does nothing while --disable_dropout is true: give --disable_dropout false, or "
            "leave it out."
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
    check_fills_a_step(len(rows.rows), rows.sources, arguments)
    if rows.eval_rows is not None and len(rows.eval_rows) < _FEW:
        logger.warning("Only %d preferences are held out: figures for them say little.", len(rows.eval_rows))


def check_end_mark(rows: PreferenceRows, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `TokenizerError` if answers end with nothing that ends an answer when the model generates.

    It would be rewarded for what it says and never for stopping.
    """
    ends = end_marks(model, tokenizer)
    last = {ids[-1] for ids in rows.rows["completion_ids" if rows.judged else "chosen_ids"]}
    if not last & ends:
        raise no_end_mark(last, tokenizer)


def end_marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Token ids that end an answer: the tokenizer's and our template's mark, and those of the model's generation."""
    named = getattr(model, "generation_config", model.config).eos_token_id
    ends = {
        tokenizer.eos_token_id,
        tokenizer.get_vocab().get(IM_END),
        *(named if isinstance(named, list) else [named]),
    }
    return ends - {None}


def no_end_mark(last: Collection[int], tokenizer: PreTrainedTokenizerBase) -> TokenizerError:
    """The error for a chat template that ends answers with tokens at which generation does not stop."""
    shown = ", ".join(repr(tokenizer.decode([token])) for token in sorted(last)[:3])
    return TokenizerError(
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


class PreferenceRun(ChatRun):
    """A training on preferences: `prepare` reads them and loads the model; a subclass says which model and which rows.

    Attributes:
        read: The tokenized preferences; set by `prepare`.
    """

    examples = "preferences"
    usual_fraction = 0.1

    model_arguments: RewardModelArguments
    data_arguments: PreferenceArguments
    read: PreferenceRows

    def check_arguments(self) -> None:
        check_preferences(self.model_arguments, self.data_arguments, self.arguments)

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """Loads the model that learns."""

    def kind(self) -> str | None:
        """Returns the kind of preferences to read, `pairs` or `judged`; None leaves it to the data."""
        return None

    def check_rows(self) -> None:
        """Raises `ConfigError` if the arguments do not fit the preferences in `read`. The model is not loaded yet."""

    def prepare(self) -> None:
        arguments = self.arguments
        self.tokenizer = load_chat_tokenizer(self.base)
        self.read = self._read_rows()
        check_enough(self.read, arguments)
        self.check_rows()
        self.model = self.load()
        check_tokenizer_fits(self.model, self.tokenizer)
        if arguments.max_length is not None:
            check_block_size(arguments.max_length, self.model, field="max_length")
        check_end_mark(self.read, self.model, self.tokenizer)
        self.base_sample = sample_of(self.model)
        self.rows, self.eval_rows = self.read.rows, self.read.eval_rows
        self.data = {**self.read.record, **self.record()}

    def _read_rows(self) -> PreferenceRows:
        """Reads and tokenizes the preferences that the arguments name.

        Raises:
            DataError: If the data cannot be used.
            ConfigError: If something has to be held out and is not.
        """
        chosen, tokenizer = self.data_arguments, self.tokenizer
        sources = parse_sources(chosen.dataset, encoding=chosen.encoding, field="dataset")
        columns = PreferenceColumns(*(getattr(chosen, name) for name in PreferenceColumns._fields))
        reading = partial(read_preferences, seed=self.arguments.seed, skip_invalid=chosen.skip_invalid, named=columns)
        read = reading(sources, kind=self.kind(), test_fraction=0.0 if chosen.eval_dataset else chosen.test_fraction)
        splits, summaries = dict(read.splits), list(read.summaries)
        if chosen.eval_dataset is not None:
            named = parse_sources(chosen.eval_dataset, encoding=chosen.encoding, field="eval_dataset")
            held_out = reading(named, kind=read.kind)
            splits["test"] = held_out.splits.get("test", held_out.splits["train"])
            warn_of_shared_prompts(splits["train"], splits["test"])
            summaries += held_out.summaries
        self.check_held_out(is_held_out="test" in splits)
        tokenized: dict[str, Dataset] = {}
        notes: Counter[str] = Counter()
        for name, rows in splits.items():
            tokenized[name], counted = tokenize_preferences(
                rows,
                tokenizer,
                max_length=self.arguments.max_length,
                long_preferences=chosen.long_preferences,
                skip_invalid=chosen.skip_invalid,
            )
            tokenized[name] = with_length(tokenized[name])
            notes.update(counted)
        if chosen.show_pairs and self.arguments.process_index == 0:
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

    def training_figures(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            **super().training_figures(metrics),
            "train_rows": len(self.rows),
            **({"preferences": self.read.notes} if self.read.notes else {}),
        }

    def write_preference_report(self, trainer: Trainer, results: dict[str, Any], **own: Any) -> None:
        """Writes the report; `own` are the fields of `Report` that differ between such trainings."""
        self.write_report(
            trainer,
            results,
            data=", ".join(self.read.sources),
            columns=[summary.line() for summary in self.read.summaries],
            datasets=self.read.sources,
            base_model=self.base,
            **own,
        )
