"""The task of multiple choice: the model chooses the continuation that it finds most likely."""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.packing import IGNORE_INDEX
from ...evaluation.record import Evaluation
from ...evaluation.scoring import continuation
from ..arguments import TaskArguments
from ..causal import CausalTask
from .evaluation import evaluate_choices
from .rows import load_choices


class MultipleChoice(CausalTask):
    """Rows of contexts, continuations and the index of the right one; the loss covers only the right continuation."""

    def __init__(self, arguments: TaskArguments, seed: int, **kwargs: Any) -> None:
        super().__init__(arguments, seed, **kwargs)
        arguments = self.arguments
        splits = load_choices(
            self.source(),
            eval_source=self.eval_source(),
            test_fraction=arguments.test_fraction,
            encoding=arguments.encoding,
            skip_invalid=arguments.skip_invalid,
            first=self.model_settings.get("first_choice"),
        )
        self.first_choice = splits.first
        self.summaries = splits.summaries
        self.train = splits.train
        self.test = self.held_out(splits.test)

    def settings(self) -> dict[str, Any]:
        # So that an evaluation counts choices as the training did, whichever numbers its rows have.
        return {} if self.first_choice is None else {"first_choice": self.first_choice}

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        def encode(row: dict[str, Any]) -> dict[str, Any]:
            right = row["label"]
            ids, first = continuation(
                tokenizer,
                row["contexts"][right],
                row["continuations"][right],
                max_length=self.arguments.max_length,
            )
            return {"input_ids": ids, "labels": [IGNORE_INDEX] * first + ids[first:]}

        return self.pack(rows.map(encode, remove_columns=rows.column_names, desc="Tokenizing"), tokenizer)

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, *, data: str, batch_size: int
    ) -> dict[str, Evaluation]:
        return {
            self.arguments.task: evaluate_choices(
                model, tokenizer, rows, data=data, max_length=self.arguments.max_length, batch_size=batch_size
            )
        }
