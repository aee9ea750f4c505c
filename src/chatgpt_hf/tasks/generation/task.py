"""The task of completing prompts: summaries, translations, poems, code, relations."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...data.packing import IGNORE_INDEX
from ...errors import ConfigError
from ...evaluation.record import Evaluation
from ...model.pipelines import template_suffix
from ...parsing import parse_json
from ..arguments import TaskArguments
from ..causal import CausalTask
from .evaluation import LIKELIHOOD, count_cut, encode_completion, evaluate_completions, evaluate_likelihood
from .rows import load_pairs

# Completions that the model writes for evaluation; more would take minutes on a laptop. All rows are scored.
WRITTEN = 200


class Generation(CausalTask):
    """Rows of a prompt and its completion; the loss covers only the completion and its end mark."""

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
            encoding=arguments.encoding,
            skip_invalid=arguments.skip_invalid,
        )
        self.summaries = splits.summaries
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
            pair = encode_completion(tokenizer, row["prompt"], row["completion"], **self.lengths)
            return {
                "input_ids": pair.prompt + pair.completion,
                "labels": [IGNORE_INDEX] * len(pair.prompt) + pair.completion,
                "prompt_cut": pair.prompt_cut,
                "completion_cut": pair.completion_cut,
            }

        encoded = rows.map(encode, remove_columns=rows.column_names, desc="Tokenizing")
        count_cut(
            encoded["prompt_cut"],
            encoded["completion_cut"],
            max_length=self.arguments.max_length,
            max_new_tokens=self.arguments.max_new_tokens,
            effect="the model learns only their beginning, and no end mark",
        )
        return self.pack(encoded.select_columns(["input_ids", "labels"]), tokenizer)

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
            metrics = parse_json(given)
        except ValueError as error:
            raise ConfigError(f"--generation_metrics is not JSON: {error}") from error
        if not isinstance(metrics, Mapping) or not all(isinstance(value, Mapping) for value in metrics.values()):
            raise ConfigError(
                '--generation_metrics must map metrics to their options, such as {"bleu": {"tokenize": "zh"}}.'
            )
        return {name: dict(options) for name, options in metrics.items()}
