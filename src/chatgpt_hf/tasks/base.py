"""What a task has to say of itself, so that one run can fine-tune for any of them."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import load_model
from ..errors import ConfigError, DataError, TokenizerError
from ..evaluation.record import Evaluation
from ..model.pipelines import custom_pipelines
from .arguments import TaskArguments
from .losses import LossFunction

_OWN_DROPOUTS = ("embedding_dropout", "residual_dropout")
# What they are called in other families.
_DROPOUTS = (*_OWN_DROPOUTS, "embd_pdrop", "resid_pdrop", "hidden_dropout", "dropout")

logger = logging.getLogger(__name__)


class Task(ABC):
    """One task with its rows, read when it is made.

    Attributes:
        train, test: The rows as people read them; `test` is measured on.
        best_metric: The evaluation figure by which `load_best_model_at_end` chooses.
        surroundings: Special tokens that the tokenizer puts around a text, as `TemplateProcessing` takes them.
    """

    auto_class: ClassVar[Any]
    # In place of the Auto class, for GPT-2's checkpoints: its own heads do not know padding by its mask.
    own_class: ClassVar[Any]
    new_modules: ClassVar[tuple[str, ...]]
    peft_task_type: ClassVar[str]
    surroundings: ClassVar[str] = "{bos} $A {eos}"
    best_metric: str = "loss"
    # Figures of `Trainer`'s evaluations from its predictions, where the loss is not all; it keeps all logits for them.
    metrics: Callable[[Any], dict[str, float]] | None = None

    train: Dataset
    test: Dataset

    def __init__(self, arguments: TaskArguments, seed: int, *, model: PreTrainedModel | None = None) -> None:
        """Reads the rows.

        Args:
            model: One that is to be measured on all of the rows, with the labels that it knows; None where it is to be
                trained on a part of them.

        Raises:
            DataError: When they cannot be used.
        """
        self.arguments = arguments if model is None else replace(arguments, test_fraction=0.0, eval_dataset=None)
        self.seed = seed
        self.model_labels = (
            None if model is None else [model.config.id2label[n] for n in sorted(model.config.id2label)]
        )

    def sources(self) -> list[str]:
        """Where the rows come from, relative paths below `data_dir`.

        Raises:
            ConfigError: When no dataset is named.
        """
        if not self.arguments.dataset:
            raise ConfigError("--dataset is missing: name the file, folder or Hub id with the rows to learn from.")
        return [self._below(source) for source in self.arguments.dataset]

    def source(self) -> str:
        """The one source of a task that cannot join several."""
        sources = self.sources()
        if len(sources) > 1:
            raise ConfigError(
                f"--dataset names {len(sources)} sources and {self.arguments.task} takes one: give a folder or a glob."
            )
        return sources[0]

    def eval_source(self) -> str | None:
        """Where the rows to measure on come from, if not from the same place."""
        named = self.arguments.eval_dataset
        return named if named is None else self._below(named)

    def class_names(self) -> str | list[str] | None:
        """The names of the classes, or the file with them."""
        if self.model_labels is not None:
            return self.model_labels
        named = self.arguments.class_names
        return named if named is None else self._below(named)

    def _below(self, source: str) -> str:
        if self.arguments.data_dir is None or source.startswith("builtin:"):
            return source
        return str(Path(self.arguments.data_dir) / source)

    def held_out(self, rows: Dataset | None) -> Dataset:
        """The rows to measure on: those held out, or all where nothing is trained.

        Raises:
            DataError: When there are none.
        """
        if self.model_labels is not None and rows is None:
            return self.train
        if rows is None or not len(rows):
            raise DataError(
                "No rows are held out to measure on: give --eval_dataset, or a --test_fraction that leaves some."
            )
        return rows

    @abstractmethod
    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Rows as the model takes them; every one has `labels` or what stands for them."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """What makes a batch of tokenized rows."""

    @abstractmethod
    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, *, data: str, batch_size: int
    ) -> dict[str, Evaluation]:
        """What the model does with the rows, through the pipeline that people will use; the first tells most."""

    def texts(self) -> list[str]:
        """The texts to learn from, for language modelling before the task.

        Raises:
            ConfigError: When the task itself is language modelling.
        """
        raise ConfigError(f"--adapt_epochs: {self.arguments.task} learns its texts anyway; leave it out.")

    def config(self) -> dict[str, Any]:
        """Fields of the model's config that the task sets."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What the task's pipeline has to know, kept in `config.task_specific_params`."""
        return {}

    def loss(self) -> LossFunction | None:
        """A loss in place of the model's own."""
        return None

    def baselines(self) -> dict[str, Evaluation]:
        """What simpler means reach on the same rows, by name."""
        return {}

    def load_model(
        self, name_or_path: str, *, from_scratch: bool = False, dropout: float | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        """The model to start from, with a new head where it has none that fits.

        Args:
            from_scratch: Give all of it new weights.
            dropout: Of embeddings and residuals.

        Raises:
            ConfigError: When the model's family has no such dropouts.
        """
        config = AutoConfig.from_pretrained(name_or_path)
        model_class = self.own_class if config.model_type == "gpt2" else self.auto_class
        if dropout is not None:
            names = [name for name in _DROPOUTS if hasattr(config, name)]
            if config.model_type == "gpt2":
                names = list(_OWN_DROPOUTS)
            if not names:
                raise ConfigError(f"--dropout: models of the family {config.model_type} have no dropouts to set.")
            kwargs |= dict.fromkeys(names, dropout)
        model = load_model(name_or_path, model_class, new_modules=self.new_modules, **self.config(), **kwargs)
        if from_scratch:
            model = type(model)(model.config)
        if settings := self.settings():
            model.config.task_specific_params = {self.arguments.task: settings}
        if found := custom_pipelines(self.arguments.task):
            model.config.custom_pipelines = found
        return model

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Makes the tokenizer do by itself what the task needs, so that any pipeline gives the model the same ids.

        It puts special tokens around a text, reads no special token out of it, and cuts it at the length that was learned.

        Raises:
            TokenizerError: When it has no eos token.
        """
        if tokenizer.eos_token is None:
            raise TokenizerError("The model's tokenizer has no eos token, and every input ends with one: set it.")
        if tokenizer.bos_token is None:
            tokenizer.bos_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            # What is padding is told by the mask, so eos can be both.
            tokenizer.pad_token = tokenizer.eos_token
        named = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=self.surroundings.format(**named),
            special_tokens=[
                (token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(named.values())
            ],
        )
        tokenizer.split_special_tokens = True
        tokenizer.init_kwargs["split_special_tokens"] = True
        tokenizer.model_max_length = self.arguments.max_length


def without_cut(rows: Dataset, max_length: int) -> Dataset:
    """Rows without their column `cut`, which says whether a text did not fit; these are counted on the log."""
    if count := sum(rows["cut"]):
        logger.warning(
            "%d of %d texts are longer than %d tokens (--max_length) and are cut.", count, len(rows), max_length
        )
    return rows.remove_columns("cut")


def was_cut(encoded: BatchEncoding) -> list[bool]:
    """Of each text of a batch, whether the tokenizer left some of it out."""
    return [bool(encoding.overflowing) for encoding in encoded.encodings or ()]
