"""The interface that every task implements, so that one run can fine-tune for any of them."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import load_config, load_model
from ..data.summary import RowSummary
from ..errors import ConfigError, DataError, TokenizerError
from ..evaluation.record import Evaluation
from ..model.pipelines import custom_pipelines
from .arguments import TaskArguments
from .losses import LossFunction

_OWN_DROPOUTS = ("embedding_dropout", "residual_dropout")
# Plus their names in other families.
_DROPOUTS = (*_OWN_DROPOUTS, "embd_pdrop", "resid_pdrop", "hidden_dropout", "dropout")

logger = logging.getLogger(__name__)


class Task(ABC):
    """One task with its rows, which it reads when it is created.

    Attributes:
        train, test: The rows as people read them; `test` is for evaluation.
        summaries: How the rows and columns of each file were read.
        best_metric: The evaluation metric by which `load_best_model_at_end` chooses.
        surroundings: Special tokens that the tokenizer puts around a text, in the syntax of `TemplateProcessing`.
    """

    auto_class: ClassVar[Any]
    # Used instead of the Auto class for GPT-2's checkpoints: GPT-2's own heads do not recognize padding by its mask.
    own_class: ClassVar[Any]
    new_modules: ClassVar[tuple[str, ...]]
    peft_task_type: ClassVar[str]
    surroundings: ClassVar[str] = "{bos} $A {eos}"
    best_metric: str = "loss"
    # Computes metrics for `Trainer`'s evaluations if the loss is not enough; `Trainer` then keeps all logits.
    metrics: Callable[[Any], dict[str, float]] | None = None

    train: Dataset
    test: Dataset
    summaries: Sequence[RowSummary]

    def __init__(self, arguments: TaskArguments, seed: int, *, model: PreTrainedModel | None = None) -> None:
        """Reads the rows.

        Args:
            model: A model to evaluate on all rows, with the labels that it knows; None to train a model on part of
                them.

        Raises:
            DataError: If the rows cannot be used.
        """
        self.arguments = arguments if model is None else replace(arguments, test_fraction=0.0, eval_dataset=None)
        self.seed = seed
        self.model_labels = (
            None if model is None else [model.config.id2label[n] for n in sorted(model.config.id2label)]
        )
        # What the training recorded about its rows; an evaluation does not guess it from other rows.
        recorded = getattr(model.config, "task_specific_params", None) if model is not None else None
        self.model_settings: dict[str, Any] = (recorded or {}).get(arguments.task, {})

    def sources(self) -> list[str]:
        """Returns the sources of the rows, with relative paths below `data_dir`.

        Raises:
            ConfigError: If no dataset is named.
        """
        if not self.arguments.dataset:
            raise ConfigError("--dataset is missing: name the file, folder or Hub id with the rows to learn from.")
        return [self._below(source) for source in self.arguments.dataset]

    def source(self) -> str:
        """Returns the source of a task that cannot join several."""
        sources = self.sources()
        if len(sources) > 1:
            raise ConfigError(
                f"--dataset names {len(sources)} sources, but {self.arguments.task} takes one: use a folder or glob."
            )
        return sources[0]

    def eval_source(self) -> str | None:
        """Returns the source of the evaluation rows, if it is a different one."""
        named = self.arguments.eval_dataset
        return named if named is None else self._below(named)

    def class_names(self) -> str | list[str] | None:
        """Returns the names of the classes, or the file with them."""
        if self.model_labels is not None:
            return self.model_labels
        named = self.arguments.class_names
        return named if named is None else self._below(named)

    def _below(self, source: str) -> str:
        if self.arguments.data_dir is None or source.startswith("builtin:"):
            return source
        return str(Path(self.arguments.data_dir) / source)

    def held_out(self, rows: Dataset | None) -> Dataset:
        """Returns the rows to evaluate on: those held out, or all if no model is trained.

        Raises:
            DataError: If there are none.
        """
        if self.model_labels is not None and rows is None:
            return self.train
        if rows is None or not len(rows):
            raise DataError(
                "No rows are held out for evaluation: give --eval_dataset, or a --test_fraction that holds some out."
            )
        return rows

    @abstractmethod
    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Tokenizes rows for the model; every result has `labels` or their equivalent."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Returns the collator that makes batches of tokenized rows."""

    @abstractmethod
    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, *, data: str, batch_size: int
    ) -> dict[str, Evaluation]:
        """Evaluates the model through the pipeline that people will use; the first result is the main one."""

    def texts(self) -> list[str]:
        """Returns the training texts, for language modeling before the task.

        Raises:
            ConfigError: If the task itself is language modeling.
        """
        raise ConfigError(f"--adapt_epochs: {self.arguments.task} learns its texts anyway; leave it out.")

    def config(self) -> dict[str, Any]:
        """Returns the fields of the model's config that the task sets."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Returns the settings of the task's pipeline, kept in `config.task_specific_params`."""
        return {}

    def loss(self) -> LossFunction | None:
        """Returns a loss to use instead of the model's own."""
        return None

    def resume_target(self, model: PreTrainedModel, checkpoint: Path) -> None:
        """Keeps what a run's checkpoint says about its targets; only regression has any."""
        return

    def first_loss(self) -> float | None:
        """Returns a loss that no training begins above, to recognize divergence; None for that of guessing tokens."""
        return None

    def baselines(self) -> dict[str, Evaluation]:
        """Evaluates simple baselines on the same rows; returns the results by name."""
        return {}

    def load_model(
        self, name_or_path: str, *, from_scratch: bool = False, dropout: float | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        """Loads the model to start from, with a new head if it has none that fits.

        Args:
            from_scratch: Give the whole model new weights.
            dropout: Dropout of embeddings and residuals.

        Raises:
            ConfigError: If the model's family has no such dropouts.
        """
        config = load_config(name_or_path)
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
        """Configures the tokenizer for the task, so that every pipeline gives the model the same ids.

        The tokenizer then puts special tokens around a text, treats special tokens in the text as plain text, and cuts
        the text at the training length.

        Raises:
            TokenizerError: If the tokenizer has no eos token.
        """
        if tokenizer.eos_token is None:
            raise TokenizerError("The model's tokenizer has no eos token, but every input ends with one: set it.")
        if tokenizer.bos_token is None:
            tokenizer.bos_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            # The mask tells what is padding, so eos can serve as both.
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
    """Drops the column `cut`, which marks texts that did not fit, and logs their number."""
    if count := sum(rows["cut"]):
        logger.warning(
            "%d of %d texts are longer than %d tokens (--max_length) and are cut.", count, len(rows), max_length
        )
    return rows.remove_columns("cut")


def was_cut(encoded: BatchEncoding) -> list[bool]:
    """Returns for each text of a batch whether the tokenizer cut it."""
    return [bool(encoding.overflowing) for encoding in encoded.encodings or ()]
