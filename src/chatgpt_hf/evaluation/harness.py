"""Runs standard benchmarks by EleutherAI's lm-evaluation-harness: its prompts and figures, with each item's result."""

import contextlib
import copy
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..extras import needed_by
from ..files import write_atomically
from .figures import Measure
from .harness_data import BENCHMARKS, check_names, write_tasks
from .mode import evaluating
from .record import Evaluation

__all__ = ["BENCHMARKS", "HARNESS_RESULTS_NAME", "BenchmarkResults", "evaluate_benchmarks", "write_tasks"]

logger = logging.getLogger(__name__)

HARNESS_RESULTS_NAME = "results_harness.json"
# The defaults of `lm_eval --seed`: for Python's, NumPy's and PyTorch's generators, and for the choice of shots.
_SEEDS = (0, 1234, 1234, 1234)


@dataclass
class BenchmarkResults:
    """A model's results on some benchmarks.

    Attributes:
        harness: The harness' own results, in the form of its JSON file.
        evaluations: By benchmark; the subjects of MMLU are pooled under `mmlu`.
    """

    harness: dict[str, Any]
    evaluations: dict[str, Evaluation]

    def save(self, folder: Path) -> None:
        """Writes results_harness.json, and each benchmark's evaluation into a folder with its name."""
        from lm_eval.utils import handle_non_serializable

        for name, evaluation in self.evaluations.items():
            evaluation.save(folder / name)
        text = json.dumps(self.harness, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n"
        write_atomically(folder / HARNESS_RESULTS_NAME, lambda file: file.write_text(text, encoding="utf-8"))


def evaluate_benchmarks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    data_folder: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    seed: int | None = None,
    add_bos_token: bool | None = None,
) -> BenchmarkResults:
    """Runs benchmarks like `lm_eval --model hf`, with the same figures.

    A prompt that is longer than the model's context loses its beginning, including bos, as always in the harness.

    Args:
        tasks: Names in `BENCHMARKS`, or `mmlu_SUBJECT`.
        data_folder: Local files, see `write_tasks`. None for the harness' own tasks, which read the Hub.
        limit: Use only this many items of each task (for MMLU, of each subject); None for all.
        num_fewshot: Answered items before each question; None for none.
        seed: For all four generators of `lm_eval --seed`; None for their defaults.
        add_bos_token: Begin each prompt with bos, as in `lm_eval --model_args`. None for the tokenizer's own behavior, so
            that figures equal those of `lm_eval` without options. Tokenizers of `train_tokenizer` and GPT-2's add no bos,
            although documents begin with bos in training.

    Raises:
        ConfigError: If a name is unknown, a number is out of range, or lm-evaluation-harness is not installed.
        DataError: If data are missing or broken, or an answer is longer than the model's context.
    """
    names = list(dict.fromkeys(tasks))
    check_names(names)
    for argument, value, least in (
        ("limit", limit, 1),
        ("num_fewshot", num_fewshot, 0),
        ("batch_size", batch_size, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{argument} is {value}: give {least} or more.")
    with needed_by("A benchmark"):
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    seeds = _SEEDS if seed is None else (seed,) * 4
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _quiet(), evaluating(model):
        if data_folder is not None:
            write_tasks(data_folder, folder, names)
            manager = TaskManager(include_path=folder, include_defaults=False)
        else:
            manager = TaskManager()
        loaded = _load(manager, names)
        _check_shots(loaded, num_fewshot)
        language_model = _language_model(model, tokenizer, batch_size, add_bos_token)
        results: Any = simple_evaluate(
            model=language_model,
            tasks=[loaded["groups"].get(name) or loaded["tasks"][name] for name in names],
            task_manager=manager,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            limit=limit,
            random_seed=seeds[0],
            numpy_random_seed=seeds[1],
            torch_random_seed=seeds[2],
            fewshot_random_seed=seeds[3],
        )
    if language_model.cut:
        logger.warning(
            "%d of %d prompts were longer than the model's context of %d and lost their beginning.",
            language_model.cut,
            language_model.seen,
            language_model.max_length,
        )
    settings = {
        "limit": limit,
        "num_fewshot": num_fewshot or 0,
        "seed": seed,
        "add_bos_token": add_bos_token,
        "lm_eval_version": results["lm_eval_version"],
    }
    evaluations = {}
    for name in names:
        of_name = loaded["groups"][name].get_all_tasks() if name in loaded["groups"] else [loaded["tasks"][name]]
        data = str(data_folder) if data_folder is not None else of_name[0].DATASET_PATH
        evaluations[name] = _evaluation(name, data, of_name, results, settings)
    del results["samples"]
    return BenchmarkResults(results, evaluations)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the harness' warnings (one for each prompt that is cut), and sends its output to standard error."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(before)


def _load(manager: Any, names: list[str]) -> dict[str, Any]:
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ConfigError(f"lm-evaluation-harness has no benchmark {unknown[0]!r}.")
    try:
        return manager.load(names)
    # Without a network, the error of `datasets` depends on the parts of a data set that are in the cache.
    except (OSError, ValueError) as error:
        raise DataError(
            f"The data of {', '.join(names)} cannot be loaded from the Hub ({error}): name a folder that has them."
        ) from error


def _check_shots(loaded: dict[str, Any], num_fewshot: int | None) -> None:
    for name, task in loaded["tasks"].items():
        if num_fewshot:
            config = task.config
            # If the shots come from the questions themselves, the asked question is one of them.
            there = len(list(task.fewshot_docs())) - (config.fewshot_split == config.test_split)
            if num_fewshot > there:
                raise ConfigError(f"num_fewshot is {num_fewshot}, but {name} has {there} items to take shots from.")


def _language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, add_bos_token: bool | None
) -> Any:
    """Returns the harness' wrapper, extended to reject answers longer than the context and to count cut prompts."""
    from lm_eval.models.huggingface import HFLM

    class LanguageModel(HFLM):
        cut = seen = 0

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            for (_, text), context, answer in requests:
                if len(answer) > self.max_length:
                    raise DataError(
                        f"An answer of {len(answer)} tokens does not fit the model's context of {self.max_length}: {text!r}"
                    )
                self.cut += len(context) + len(answer) > self.max_length + 1
            self.seen += len(requests)
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

    # A copy, because the wrapper adds a padding token to a tokenizer without one.
    tokenizer = copy.deepcopy(tokenizer)
    if add_bos_token is not None:
        tokenizer.add_bos_token = add_bos_token
    return LanguageModel(model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=add_bos_token)


def _evaluation(
    name: str, data: str, tasks: list[Any], results: dict[str, Any], settings: dict[str, Any]
) -> Evaluation:
    """Converts the logged items of a task, or of all tasks in a group, to an `Evaluation`."""
    rows = [(task, sample) for task in tasks for sample in results["samples"][task.task_name]]
    first_task, first = rows[0]
    measures = {}
    for metric in first["metrics"]:
        # The harness logs an item's log-likelihood as its perplexity.
        aggregate, sign = ("perplexity", -1.0) if metric == "perplexity" else ("mean", 1.0)
        measures[metric] = Measure(
            aggregate,
            np.array([[sign * sample[metric], 1.0] for _, sample in rows]),
            results["higher_is_better"][first_task.task_name][metric],
        )
    examples = [_example(task, sample) for task, sample in rows]
    return Evaluation(name, data, measures, examples, {**settings, "version": results["versions"][name]})


def _example(task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    contexts, answers = zip(*sample["arguments"], strict=True)
    log_likelihoods = [log_likelihood for log_likelihood, _ in sample["filtered_resps"]]
    example = {
        "task": task.task_name,
        "id": sample["doc_id"],
        # WinoGrande's choices are its contexts.
        "input": list(contexts) if task.multiple_input else contexts[0],
        "log_likelihoods": log_likelihoods,
    }
    if task.OUTPUT_TYPE != "multiple_choice":
        return {**example, "reference": answers[0]}
    choices = task.doc_to_choice(sample["doc"])
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    right = choices[gold] if isinstance(gold, int) else gold
    return {**example, "choices": choices, "output": choices[int(np.argmax(log_likelihoods))], "reference": right}
