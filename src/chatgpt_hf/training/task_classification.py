"""Text classification: one label, several, or a number."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.labelled import load_labelled
from ..errors import ConfigError
from ..evaluation.baselines import classify_by_words
from ..evaluation.classification import evaluate_text_classification
from ..evaluation.record import Evaluation
from ..modeling_chatgpt import ChatGPTForSequenceClassification
from .task_arguments import TaskArguments
from .task_base import LossFunction, TaskRecipe, balanced_weights, was_cut, without_cut


class TextClassification(TaskRecipe):
    """Rows of a text and its label; the model scores the last token."""

    auto_class = AutoModelForSequenceClassification
    own_class = ChatGPTForSequenceClassification
    new_modules = ("score",)
    peft_task_type = "SEQ_CLS"

    def __init__(self, arguments: TaskArguments, seed: int, **kwargs: Any) -> None:
        super().__init__(arguments, seed, **kwargs)
        arguments = self.arguments
        splits = load_labelled(
            self.source(),
            eval_source=self.eval_source(),
            text_column=arguments.text_column,
            label_column=arguments.label_column,
            label_names=self.class_names(),
            problem_type=arguments.problem_type,
            test_fraction=arguments.test_fraction,
            skip_invalid=arguments.skip_invalid,
        )
        self.train = splits.train
        self.test = self.held_out(splits.test)
        self.label_names = splits.label_names
        self.problem_type = splits.problem_type
        self.best_metric = "loss" if self.problem_type == "regression" else "accuracy"

    def texts(self) -> list[str]:
        return list(self.train["text"])

    def load_model(self, name_or_path: str, **kwargs: Any) -> PreTrainedModel:
        if self.arguments.classifier_pooling is not None:
            config = AutoConfig.from_pretrained(name_or_path)
            if config.model_type != "gpt2" and not hasattr(config, "classifier_pooling"):
                raise ConfigError(
                    f"--classifier_pooling: models of the family {config.model_type} read a text's class from its last token "
                    "alone. Leave it out."
                )
        return super().load_model(name_or_path, **kwargs)

    def config(self) -> dict[str, Any]:
        pooling = self.arguments.classifier_pooling
        return self._labels() | ({} if pooling is None else {"classifier_pooling": pooling})

    def _labels(self) -> dict[str, Any]:
        if self.problem_type == "regression":
            return {"num_labels": 1, "problem_type": self.problem_type}
        return {
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: index for index, name in enumerate(self.label_names)},
            "problem_type": self.problem_type,
        }

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded = tokenizer(batch["text"], truncation=True)
            return {**encoded, "labels": batch["label"], "cut": was_cut(encoded)}

        encoded = rows.map(encode, batched=True, remove_columns=rows.column_names, desc="Tokenizing")
        return without_cut(encoded, self.arguments.max_length)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        return DataCollatorWithPadding(tokenizer)

    def loss(self) -> LossFunction:
        weights = None
        if self.arguments.class_weights and self.problem_type == "single_label_classification":
            weights = balanced_weights(np.array(self.train["label"]), len(self.label_names))
        return ClassificationLoss(self.problem_type, weights)

    def metrics(self, predictions: Any) -> dict[str, float]:
        logits, labels = predictions.predictions, predictions.label_ids
        if self.problem_type == "regression":
            return {}
        if self.problem_type == "multi_label_classification":
            return {"accuracy": float(((logits > 0) == (labels > 0.5)).mean())}
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, *, data: str, batch_size: int
    ) -> dict[str, Evaluation]:
        found = evaluate_text_classification(model, tokenizer, rows, data=data, batch_size=batch_size)
        return {self.arguments.task: found}

    def baselines(self) -> dict[str, Evaluation]:
        if self.problem_type != "single_label_classification":
            return {}
        return {"TF-IDF + logistic regression": classify_by_words(self.train, self.test, self.label_names)}


class ClassificationLoss:
    """The loss of `problem_type`, summed over a batch and divided by the items of all batches that are accumulated.

    `Trainer` counts these: rows, or rows times labels. So one batch of 8 and eight of 1 give the same gradient.

    Args:
        weights: (classes,) for a single label. The items count as one each, whatever they weigh.
    """

    def __init__(self, problem_type: str, weights: torch.Tensor | None = None) -> None:
        self.problem_type = problem_type
        self.weights = weights

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"]
        functional = torch.nn.functional
        if self.problem_type == "single_label_classification":
            weights = self.weights if self.weights is None else self.weights.to(logits)
            loss = functional.cross_entropy(
                logits.flatten(0, -2).float(), labels.flatten(), weight=weights, reduction="sum", ignore_index=-100
            )
            items = (labels != -100).sum()
        elif self.problem_type == "multi_label_classification":
            loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum")
            items = torch.tensor(labels.numel())
        else:
            loss = functional.mse_loss(logits.squeeze(-1), labels.to(logits), reduction="sum")
            items = torch.tensor(labels.numel())
        return loss / (items if num_items_in_batch is None else num_items_in_batch)
