"""Prompt to completion: summaries, translations, poems, code, relations; and choices by the likelihood of each."""

import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from ..data.choices import load_choices
from ..data.packing import IGNORE_INDEX, pack_documents
from ..data.pairs import load_pairs
from ..errors import ConfigError
from ..evaluation.choices import evaluate_choices
from ..evaluation.completions import (
    LIKELIHOOD,
    encode_completion,
    evaluate_completions,
    evaluate_likelihood,
)
from ..evaluation.record import Evaluation
from ..evaluation.scoring import continuation
from ..modeling_chatgpt import ChatGPTForCausalLM
from ..pipelines import template_suffix
from .task_arguments import TaskArguments
from .task_base import TaskRecipe

# Completions that are written for the figures: more of them would take minutes on a laptop. All are scored.
WRITTEN = 200


class _Causal(TaskRecipe):
    """What a model learns that goes on with a text: rows packed without leaks, the loss on what is to be learned."""

    auto_class = AutoModelForCausalLM
    own_class = ChatGPTForCausalLM
    new_modules = ()
    peft_task_type = "CAUSAL_LM"
    surroundings = "{bos} $A"

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().prepare_tokenizer(tokenizer)
        # Where prompts are continued in batches, they have to end together.
        tokenizer.padding_side = "left"

    def pack(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Rows of `input_ids` and `labels` as full training rows."""
        packed = pack_documents(
            rows,
            self.arguments.max_length,
            pad_token_id=tokenizer.pad_token_id,
            split_long=False,
            seed=self.seed,
        )
        return packed.with_format("numpy")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        return default_data_collator


class Generation(_Causal):
    """Rows of a prompt and its completion; the loss is on the completion and its end mark alone."""

    def __init__(self, arguments: TaskArguments, seed: int, **kwargs: Any) -> None:
        super().__init__(arguments, seed, **kwargs)
        arguments = self.arguments
        if arguments.max_new_tokens >= arguments.max_length:
            raise ConfigError(
                f"--max_new_tokens {arguments.max_new_tokens} leaves no room for a prompt in --max_length {arguments.max_length}."
            )
        splits = load_pairs(
            self.source(),
            eval_source=self.eval_source(),
            prompt_template=arguments.prompt_template,
            completion_template=arguments.completion_template,
            column_names=arguments.column_names,
            test_fraction=arguments.test_fraction,
            split_by=arguments.split_by,
            skip_invalid=arguments.skip_invalid,
        )
        self.train = splits.train
        self.test = self.held_out(splits.test)
        self.lengths: dict[str, Any] = {
            "suffix": template_suffix(arguments.prompt_template),
            "max_length": arguments.max_length,
            "max_new_tokens": arguments.max_new_tokens,
        }

    def texts(self) -> list[str]:
        return [row["prompt"] + row["completion"] for row in self.train]

    def settings(self) -> dict[str, Any]:
        return {
            "prompt_template": self.arguments.prompt_template,
            "max_prompt_length": self.arguments.max_length - self.arguments.max_new_tokens,
        }

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        def encode(row: dict[str, str]) -> dict[str, Any]:
            before, after = encode_completion(tokenizer, row["prompt"], row["completion"], **self.lengths)
            return {"input_ids": before + after, "labels": [IGNORE_INDEX] * len(before) + after}

        return self.pack(rows.map(encode, remove_columns=rows.column_names, desc="Tokenizing"), tokenizer)

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, *, data: str, batch_size: int
    ) -> dict[str, Evaluation]:
        common: dict[str, Any] = {"data": data, "batch_size": batch_size, **self.lengths}
        few = rows.select(range(min(WRITTEN, len(rows))))
        task = self.arguments.task
        written = evaluate_completions(model, tokenizer, few, task=task, metrics=self._metrics(), **common)
        return {task: written, LIKELIHOOD: evaluate_likelihood(model, tokenizer, rows, **common)}

    def _metrics(self) -> dict[str, dict[str, Any]] | None:
        given = self.arguments.generation_metrics
        if given is None:
            return None
        try:
            metrics = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"--generation_metrics is no JSON: {error}") from error
        if not isinstance(metrics, Mapping) or not all(isinstance(value, Mapping) for value in metrics.values()):
            raise ConfigError(
                '--generation_metrics must map metrics to their options, as {"bleu": {"tokenize": "zh"}}.'
            )
        return {name: dict(options) for name, options in metrics.items()}


class MultipleChoice(_Causal):
    """Rows of contexts, continuations and the number of the right one; the loss is on the right continuation alone."""

    def __init__(self, arguments: TaskArguments, seed: int, **kwargs: Any) -> None:
        super().__init__(arguments, seed, **kwargs)
        arguments = self.arguments
        splits = load_choices(
            self.source(),
            eval_source=self.eval_source(),
            test_fraction=arguments.test_fraction,
            skip_invalid=arguments.skip_invalid,
        )
        self.train = splits.train
        self.test = self.held_out(splits.test)

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
