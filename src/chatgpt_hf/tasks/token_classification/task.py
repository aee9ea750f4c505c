"""The task of token classification: entities in tagged words."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...data.packing import IGNORE_INDEX
from ...errors import ConfigError
from ...evaluation.metrics import measures
from ...evaluation.record import Evaluation
from ...model.modeling_chatgpt import ChatGPTForTokenClassification
from ...parsing import parse_json
from ..arguments import TaskArguments
from ..base import Task, was_cut, without_cut
from ..baselines import most_frequent_tags, tag_by_words
from ..losses import ClassificationLoss, LossFunction, balanced_weights
from .evaluation import evaluate_token_classification, first_tokens
from .rows import load_tagged
from .words import join_words


class TokenClassification(Task):
    """Rows of words and their tags; the model scores the first token of each word."""

    auto_class = AutoModelForTokenClassification
    own_class = ChatGPTForTokenClassification
    new_modules = ("score", "classifier")
    peft_task_type = "TOKEN_CLS"
    best_metric = "overall_f1"

    def __init__(self, arguments: TaskArguments, seed: int, **kwargs: Any) -> None:
        super().__init__(arguments, seed, **kwargs)
        arguments = self.arguments
        splits = load_tagged(
            self.sources(),
            eval_source=self.eval_source(),
            text_column=arguments.text_column,
            label_column=arguments.label_column,
            label_names=self.class_names(),
            label_map=self._label_map(),
            test_fraction=arguments.test_fraction,
            encoding=arguments.encoding,
            skip_invalid=arguments.skip_invalid,
        )
        self.summaries = splits.summaries
        self.train = splits.train
        self.test = self.held_out(splits.test)
        self.label_names = splits.label_names

    def _label_map(self) -> dict[str, str] | None:
        given = self.arguments.label_map
        if given is None:
            return None
        try:
            label_map = parse_json(given)
        except ValueError as error:
            raise ConfigError(f"--label_map is not JSON: {error}") from error
        if not isinstance(label_map, dict) or not all(isinstance(name, str) for name in label_map.values()):
            raise ConfigError('--label_map must be a mapping of names to names, such as {"PER": "person"}.')
        return label_map

    def texts(self) -> list[str]:
        return [join_words(words)[0] for words in self.train["tokens"]]

    def config(self) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: index for index, name in enumerate(self.label_names)},
        }

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            sentences = [join_words(words) for words in batch["tokens"]]
            encoded = tokenizer([text for text, _ in sentences], truncation=True, return_offsets_mapping=True)
            labels, cut = [], was_cut(encoded)
            pairs = zip(encoded.pop("offset_mapping"), sentences, batch["tags"], strict=True)
            for offsets, (text, starts), tags in pairs:
                # A token of only white space is part of no word, but the pipeline treats it as one: it learns O.
                row = [0 if begin < end and text[begin:end].isspace() else IGNORE_INDEX for begin, end in offsets]
                for token, tag in zip(first_tokens(offsets, starts), tags, strict=True):
                    if token is not None:
                        row[token] = tag
                labels.append(row)
            return {**encoded, "labels": labels, "cut": cut}

        encoded = rows.map(encode, batched=True, remove_columns=rows.column_names, desc="Tokenizing")
        return without_cut(encoded, self.arguments.max_length)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        return DataCollatorForTokenClassification(tokenizer)

    def loss(self) -> LossFunction:
        weights: torch.Tensor | None = None
        if self.arguments.class_weights:
            weights = balanced_weights(np.concatenate(self.train["tags"]), len(self.label_names))
        return ClassificationLoss("single_label_classification", weights)

    def metrics(self, predictions: Any) -> dict[str, float]:
        chosen, labels = predictions.predictions.argmax(-1), predictions.label_ids
        kept = labels != IGNORE_INDEX

        def named(tags: Any) -> list[list[str]]:
            return [[self.label_names[tag] for tag in row[here]] for row, here in zip(tags, kept, strict=True)]

        figures = measures("seqeval", named(chosen), named(labels))
        return {name: figure.value for name, figure in figures.items() if name.startswith("overall_")}

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, *, data: str, batch_size: int
    ) -> dict[str, Evaluation]:
        found = evaluate_token_classification(
            model, tokenizer, rows, self.label_names, data=data, batch_size=batch_size
        )
        return {self.arguments.task: found}

    def baselines(self) -> dict[str, Evaluation]:
        return {
            "most frequent tag of each word": most_frequent_tags(self.train, self.test, self.label_names),
            "characters and neighbours + logistic regression": tag_by_words(self.train, self.test, self.label_names),
        }
