"""The task of text classification: one label, several, or a number."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME

from ...checkpoints import load_config
from ...errors import ConfigError
from ...evaluation.record import Evaluation
from ...model.modeling_chatgpt import ChatGPTForSequenceClassification
from ..arguments import TaskArguments
from ..base import Task, was_cut, without_cut
from ..baselines import classify_by_words
from ..losses import ClassificationLoss, LossFunction, balanced_weights
from .evaluation import evaluate_text_classification
from .rows import load_labelled

logger = logging.getLogger(__name__)

# Targets beyond this are far from where an untrained head begins.
_FAR = 10


class TextClassification(Task):
    """Rows of a text and its label; the model scores the last token."""

    auto_class = AutoModelForSequenceClassification
    own_class = ChatGPTForSequenceClassification
    new_modules = ("score",)
    peft_task_type = "SEQ_CLS"

    def __init__(self, arguments: TaskArguments, seed: int, *, model: PreTrainedModel | None = None) -> None:
        super().__init__(arguments, seed, model=model)
        arguments = self.arguments
        splits = load_labelled(
            self.source(),
            eval_source=self.eval_source(),
            text_column=arguments.text_column,
            label_column=arguments.label_column,
            label_names=self.class_names(),
            problem_type=arguments.problem_type if model is None else _problem_type(model, arguments),
            test_fraction=arguments.test_fraction,
            encoding=arguments.encoding,
            skip_invalid=arguments.skip_invalid,
            first_label=self.model_settings.get("first_label"),
            is_training=self.model_labels is None,
        )
        self.first_label = splits.first_label
        # Mean and standard deviation of the targets of regression, if the model's family can hold them.
        self.target: tuple[float, float] | None = None
        self.summaries = splits.summaries
        self.train = splits.train
        self.test = self.held_out(splits.test)
        self.label_names = splits.label_names
        self.problem_type = splits.problem_type
        self.best_metric = "loss" if self.problem_type == "regression" else "accuracy"

    def texts(self) -> list[str]:
        return list(self.train["text"])

    def load_model(self, name_or_path: str, **kwargs: Any) -> PreTrainedModel:
        config = load_config(name_or_path)
        is_own = config.model_type == "gpt2" or hasattr(config, "classifier_pooling")
        if self.arguments.classifier_pooling is not None and not is_own:
            raise ConfigError(
                f"--classifier_pooling: models of the family {config.model_type} read a text's class only from its "
                "last token. Leave it out."
            )
        if self.problem_type == "regression":
            self._choose_target(config, is_own)
        model = super().load_model(name_or_path, **kwargs)
        if self.target is not None:
            model.config.target_mean, model.config.target_scale = self.target
        return model

    def _choose_target(self, config: PreTrainedConfig, is_own: bool) -> None:
        """Standardizes the targets, unless the model has learned regression before and so has a scale already."""
        if config.problem_type == "regression":
            mean = getattr(config, "target_mean", None)
            self.target = None if mean is None else (mean, float(config.target_scale))
            return
        targets = np.array(self.train["label"], dtype=float)
        if is_own:
            self.target = (float(targets.mean()), float(targets.std()))
        elif abs(targets).max() > _FAR:
            logger.warning(
                "The targets reach %.4g; models of the family %s begin at 0 and may need very long to get there. Divide "
                "the targets, or use a model of chatgpt-hf, whose targets are standardized.",
                abs(targets).max(),
                config.model_type,
            )

    def resume_target(self, model: PreTrainedModel, checkpoint: Path) -> None:
        # Runs of earlier versions learned raw targets, and continue to.
        if self.problem_type == "regression" and (checkpoint / CONFIG_NAME).is_file():
            kept = json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))
            mean, scale = kept.get("target_mean"), kept.get("target_scale")
            self.target = None if mean is None else (mean, scale)
            model.config.target_mean, model.config.target_scale = mean, scale

    def config(self) -> dict[str, Any]:
        pooling = self.arguments.classifier_pooling
        return self._labels() | ({} if pooling is None else {"classifier_pooling": pooling})

    def first_loss(self) -> float | None:
        if self.problem_type != "regression":
            return None
        # A batch may have only one row, so this is the worst row and not the mean.
        start = 0.0 if self.target is None else self.target[0]
        return float(((np.array(self.train["label"], dtype=float) - start) ** 2).max())

    def settings(self) -> dict[str, Any]:
        # So that an evaluation reads numbers as the training did, whichever of them its rows have.
        return {} if self.first_label is None else {"first_label": self.first_label}

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


def _problem_type(model: PreTrainedModel, arguments: TaskArguments) -> str:
    """Returns what a model learned, so that rows with only whole numbers are quantities for a model of these."""
    if model.config.num_labels == 1:
        return "regression"
    return model.config.problem_type or arguments.problem_type
