"""Evaluates a finished model on any data: text, its own task, code, benchmarks, preferences, or a probe of bias."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import UNLIMITED_CONTEXT, check_tokenizer_fits, context_length
from .data.corpus import load_corpus
from .data.preferences import read_preferences
from .data.sources import parse_sources
from .errors import CheckpointError, ConfigError
from .evaluation.bias import evaluate_bias
from .evaluation.code import evaluate_code, read_problems
from .evaluation.figures import Figure
from .evaluation.harness import evaluate_benchmarks
from .evaluation.judge import evaluate_judge, log_odds
from .evaluation.language_modeling import evaluate_language_modeling, window_and_stride
from .evaluation.preferences import evaluate_preferences, likelihood_scores, reward_scores
from .evaluation.record import EVALUATION_FOLDER, RESULTS_NAME, Evaluation
from .files import check_is_folder, read_json, read_yaml
from .inference.loading import load_language_model
from .rewards.base import answer_text
from .rewards.models import load_reward_model
from .stored import config_of
from .tasks.arguments import TaskArguments
from .tasks.registry import load_task_model, make_task
from .tokenization_chatgpt import load_tokenizer
from .training.run_folder import RECIPE_NAME
from .untrusted import check_link

Figures = dict[str, dict[str, Figure]]


def measure_corpus(
    name_or_path: str,
    corpus: str,
    *,
    text_column: str = "text",
    encoding: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    out: Path | None = None,
    command: str = "",
    report: Callable[[str], None] = lambda sentence: None,
) -> Figures:
    """Measures perplexity, bits per byte, and nats per token and byte over all documents of a corpus.

    Args:
        corpus: A corpus as in pretraining: a file, folder, glob, Hub id or `builtin:python-docs`; all its splits.
        encoding: Encoding of the files, UTF-8 if not given.
        window: Tokens that the model sees at a time; None for its context, but at most 2,048.
        stride: New tokens per window for documents longer than the window; None for half the window.
        batch_size: Windows at a time; None for up to 8, fewer if they are long.
        out: Folder for the evaluation; None for `evaluation/` in the model's folder.
        command: The command that repeats the evaluation; saved with it and shown on the model's card.
        report: Called with a sentence about the windows before the computation begins.

    Raises:
        ConfigError: If `window` or `stride` does not fit the model.
        DataError: If the corpus cannot be used, or has no text.
    """
    _check_out(name_or_path, out)
    splits = load_corpus(corpus, text_column=text_column, encoding=encoding)
    texts = [text for split in splits.values() for text in split["text"]]
    model, tokenizer = _load(name_or_path)
    size, step = window_and_stride(model, window, stride)
    context = context_length(model)
    report(f"The model sees {size:,} tokens at a time; {step:,} of them are new in each window.")
    if window is None and size < context:
        known = "has no limit" if context == UNLIMITED_CONTEXT else f"is {context:,}"
        report(f"Its context {known}: --window chooses another length.")
    result = evaluate_language_modeling(model, tokenizer, texts, window=size, stride=step, batch_size=batch_size)
    examples = [{"text": text[:1000]} for text in texts if text]
    settings = {"window": size, "stride": step, "context": context}
    evaluation = Evaluation("language-modeling", corpus, result.measures(), examples, settings)
    read_with = {"text_column": text_column, "stride": stride}
    if window is not None:
        read_with["window"] = window
    destination = _Destination(name_or_path, corpus, read_with, out, command)
    return destination.save({f"language-modeling-{_slug(corpus)}": evaluation})


def measure_task(
    name_or_path: str,
    dataset: str,
    *,
    batch_size: int = 32,
    seed: int = 0,
    out: Path | None = None,
    command: str = "",
    **overrides: Any,
) -> Figures:
    """Evaluates a model fine-tuned by `chatgpt-hf finetune`, or any model with the task's head, on other rows of its task.

    Args:
        dataset: The rows; all are evaluated.
        **overrides: Fields of `TaskArguments` that replace those in the folder's recipe, such as `task` without a recipe.
    """
    _check_out(name_or_path, out)
    arguments = _task_arguments(name_or_path, {**overrides, "dataset": [dataset]})
    model, tokenizer = load_task_model(name_or_path, arguments.task), load_tokenizer(name_or_path)
    check_tokenizer_fits(model, tokenizer)
    task = make_task(arguments, seed, model=model)
    found = task.evaluate(model.eval(), tokenizer, task.test, data=dataset, batch_size=batch_size)
    chosen = _given(overrides)
    destination = _Destination(name_or_path, dataset, chosen, out, command)
    return destination.save({f"{name}-{_slug(dataset)}": value for name, value in found.items()})


def measure_code(
    name_or_path: str,
    problems: str,
    *,
    samples: int = 1,
    ks: Sequence[int] = (1,),
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    chat: bool = False,
    batch_size: int = 8,
    seed: int = 0,
    out: Path | None = None,
    command: str = "",
) -> Figures:
    """Measures pass@k on a file in HumanEval's format; the model's programs run in a sandbox.

    Args:
        chat: Ask for each function in a message, through the model's chat template.
    """
    _check_out(name_or_path, out)
    rows = read_problems(Path(problems))
    model, tokenizer = _load(name_or_path)
    evaluation = evaluate_code(
        model,
        tokenizer,
        rows,
        samples=samples,
        ks=tuple(ks),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        chat=chat,
        batch_size=batch_size,
        seed=seed,
        data=problems,
    )
    sampled = {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "ks": list(ks),
        "seed": seed,
    }
    if chat:
        sampled["chat"] = True
    destination = _Destination(name_or_path, problems, sampled, out, command)
    return destination.save({f"code-{_slug(problems)}": evaluation})


def measure_benchmarks(
    name_or_path: str,
    benchmarks: Sequence[str],
    *,
    data_folder: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    seed: int | None = None,
    out: Path | None = None,
    command: str = "",
) -> Figures:
    """Runs standard benchmarks by lm-evaluation-harness; saves the harness' own results next to ours."""
    _check_out(name_or_path, out)
    model, tokenizer = _load(name_or_path)
    results = evaluate_benchmarks(
        model,
        tokenizer,
        list(benchmarks),
        data_folder=data_folder,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        seed=seed,
    )
    chosen = {"limit": limit, "num_fewshot": num_fewshot, "seed": seed}
    destination = _Destination(name_or_path, data_folder, chosen, out, command)
    named = destination.named(results.evaluations)
    replace(results, evaluations=named).save(destination.folder)
    return {name: evaluation.figures() for name, evaluation in named.items()}


def measure_bias(name_or_path: str, *, batch_size: int = 8, out: Path | None = None, command: str = "") -> Figures:
    """Probes whether the model expects "he" or "she" for people of twenty professions; its card shows the result."""
    _check_out(name_or_path, out)
    model, tokenizer = _load(name_or_path)
    evaluation = evaluate_bias(model, tokenizer, batch_size=batch_size)
    return _Destination(name_or_path, None, {}, out, command).save({evaluation.task: evaluation})


def measure_preferences(
    name_or_path: str,
    preferences: str,
    *,
    reference: str | None = None,
    encoding: str | None = None,
    skip_invalid: bool = False,
    limit: int | None = None,
    batch_size: int | None = None,
    out: Path | None = None,
    command: str = "",
) -> Figures:
    """Measures how often a chat model finds the better answer of a pair likelier, or a reward model gives it more.

    Args:
        preferences: Pairs in any form that `dpo` reads: a file, folder, glob or Hub id; all splits.
        reference: The chat model before a training on preferences; then the gains since are measured too.
        encoding: Encoding of the files, UTF-8 if not given.
        skip_invalid: Leave out rows that cannot be used, with a warning that counts them.
        limit: The number of pairs; all if not given.

    Raises:
        DataError: If there are no pairs, or one cannot be used.
        ConfigError: If there is a reference for a reward model.
    """
    _check_out(name_or_path, out)
    pairs = _pairs(preferences, encoding, skip_invalid, limit)
    options: dict[str, Any] = {"batch_size": batch_size}
    before = None
    if _is_reward_model(name_or_path):
        if reference is not None:
            raise ConfigError(f"{name_or_path} is a reward model, which has no use for --reference: leave it out.")
        found = reward_scores(*load_reward_model(name_or_path), pairs, **options)
    else:
        found = likelihood_scores(*_load(name_or_path), pairs, **options)
        if reference is not None:
            before = likelihood_scores(*_load(reference), pairs, **options)
    evaluation = evaluate_preferences(found, pairs, data=preferences, reference=before)
    chosen = {"limit": limit, "reference": reference and _place(reference), "skip_invalid": skip_invalid or None}
    evaluation.settings |= _given(chosen)
    destination = _Destination(name_or_path, preferences, chosen, out, command)
    return destination.save({f"{evaluation.task}-{_slug(preferences)}": evaluation})


def measure_judge(
    name_or_path: str,
    preferences: str,
    *,
    encoding: str | None = None,
    skip_invalid: bool = False,
    limit: int | None = None,
    batch_size: int | None = None,
    out: Path | None = None,
    command: str = "",
) -> Figures:
    """Measures how often a chat model, asked which answer of a pair is better, agrees with the labels.

    Args:
        preferences, encoding, skip_invalid, limit: See `measure_preferences`.

    Raises:
        DataError: If there are no pairs, or one cannot be used.
        ConversionError: If the model generates no text.
    """
    _check_out(name_or_path, out)
    pairs = _pairs(preferences, encoding, skip_invalid, limit)
    sides = [[answer_text(side) for side in pairs[name]] for name in ("chosen", "rejected")]
    found = log_odds(*_load(name_or_path), pairs["prompt"][:], *sides, batch_size=batch_size)
    evaluation = evaluate_judge(found, pairs, data=preferences)
    chosen = {"limit": limit, "skip_invalid": skip_invalid or None}
    evaluation.settings |= _given(chosen)
    destination = _Destination(name_or_path, preferences, chosen, out, command)
    return destination.save({f"{evaluation.task}-{_slug(preferences)}": evaluation})


def _given(chosen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if value is not None}


def _load(name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model and its tokenizer, which fit each other."""
    model, tokenizer = load_language_model(name_or_path), load_tokenizer(name_or_path)
    check_tokenizer_fits(model, tokenizer)
    return model, tokenizer


def _is_reward_model(name_or_path: str) -> bool:
    return any(
        str(name).endswith("ForSequenceClassification") for name in config_of(name_or_path).get("architectures") or ()
    )


def _pairs(preferences: str, encoding: str | None, skip_invalid: bool, limit: int | None) -> Dataset:
    """All pairs of a source, or the first ones."""
    sources = parse_sources(preferences, encoding=encoding, field="preferences")
    read = read_preferences(sources, kind="pairs", skip_invalid=skip_invalid)
    pairs = concatenate_datasets(list(read.splits.values()))
    return pairs if limit is None else pairs.select(range(min(limit, len(pairs))))


def _check_out(name_or_path: str, out: Path | None) -> None:
    """Raises before the work if the evaluation cannot be saved, or a link in the model's folder would lead it elsewhere."""
    folder = _Destination(name_or_path, None, {}, out, "").folder
    check_is_folder(folder)
    if out is None and Path(name_or_path).is_dir():
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            check_link(path, Path(name_or_path))


def _task_arguments(name_or_path: str, overrides: dict[str, Any]) -> TaskArguments:
    known = {item.name for item in fields(TaskArguments)}
    if unknown := [name for name in overrides if name not in known]:
        raise ConfigError(f"{unknown[0]} is not a field of a task; known are {', '.join(sorted(known))}.")
    recipe = Path(name_or_path) / RECIPE_NAME
    kept = read_yaml(recipe)
    given = {name: value for name, value in {**kept, **overrides}.items() if name in known and value is not None}
    # Relative paths on the command line refer to the working directory, not to the run's `data_dir`.
    given["data_dir"] = overrides.get("data_dir")
    return TaskArguments(**given)


@dataclass(frozen=True)
class _Destination:
    """The folder that keeps evaluations, and what tells them from others in it.

    Attributes:
        source: What was evaluated, if the user chose it.
        settings: What else the user chose that changes the figures.
        out: Folder that the user named; None for `evaluation/` in the model's folder.
        command: The command that repeats the evaluation.
    """

    name_or_path: str
    source: str | None
    settings: dict[str, Any]
    out: Path | None
    command: str

    @property
    def folder(self) -> Path:
        if self.out is not None:
            return self.out
        if Path(self.name_or_path).is_dir():
            return Path(self.name_or_path) / EVALUATION_FOLDER
        return Path("runs") / EVALUATION_FOLDER / re.sub(r"[^\w.-]+", "-", self.name_or_path.replace("/", "--"))

    def save(self, evaluations: dict[str, Evaluation]) -> Figures:
        """Returns the figures by the names that the evaluations have in the folder. See `named`."""
        return {name: evaluation.save(self.folder / name) for name, evaluation in self.named(evaluations).items()}

    def named(self, evaluations: dict[str, Evaluation]) -> dict[str, Evaluation]:
        """Evaluations by names that no other evaluation in the folder has; the same one again keeps its name.

        Args:
            evaluations: By the names that people would expect.
        """
        # A folder that the user names may hold the evaluations of several models.
        model = None if self.out is None else _place(self.name_or_path)
        identity = [self.source and _place(self.source), self.settings, model]
        named = {}
        for name, evaluation in evaluations.items():
            evaluation.command = self.command
            evaluation.identity = _hash([name, *identity])
            named[_free_name(self.folder, name, evaluation)] = evaluation
        return named


def _free_name(folder: Path, name: str, evaluation: Evaluation) -> str:
    """The name itself, or with a hash behind it if another evaluation has it.

    The file system is asked and not the list of names: on some, names that differ only in case are the same.
    """
    try:
        kept = read_json(folder / name / RESULTS_NAME)
    except CheckpointError:
        # Nothing that could be lost.
        return name
    # Release 0.1 recorded only the source.
    same = kept["identity"] == evaluation.identity if kept.get("identity") else kept.get("data") == evaluation.data
    return f"{name}-{evaluation.identity[:8]}" if kept and not same else name


def _place(source: str) -> str:
    """A path that is the same from every working directory; other sources as they are."""
    path = Path(source).expanduser()
    try:
        # A glob names no file.
        local = path.exists() or path.is_absolute() or any(character in source for character in "*?[")
    except OSError:
        # Too long for a path, such as a source that is given as JSON.
        return source
    return str(path.resolve()) if local else source


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _slug(source: str) -> str:
    """Turns a source into a part of a folder's name; not unique."""
    name = re.sub(r"(\.(gz|bz2|xz|zst|zip))?$", "", Path(source).name, flags=re.IGNORECASE)
    name = re.sub(r"(?<=.)\.[A-Za-z]\w{0,9}$", "", name)
    slug = re.sub(r"[^\w]+", "-", name).strip("-") or re.sub(r"[^\w]+", "-", source).strip("-") or "data"
    # File systems allow 255 bytes, and a character may take four.
    return slug.encode()[:120].decode("utf-8", "ignore").rstrip("-")
