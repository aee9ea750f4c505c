"""Evaluates a finished model on any data: text, its own task, code, benchmarks, preferences, or a probe of bias."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .answering import answer_prompts, greedy_answers, judged, matching, read_answers, read_questions, references
from .checkpoints import UNLIMITED_CONTEXT, check_tokenizer_fits, context_length
from .data.corpus import load_corpus
from .data.preferences import read_preferences
from .data.sources import parse_sources
from .errors import ConfigError
from .evaluation.bias import evaluate_bias
from .evaluation.code import evaluate_code, read_problems
from .evaluation.destination import Destination, check_destination, digest, place, slug
from .evaluation.figures import Figure
from .evaluation.harness import evaluate_benchmarks
from .evaluation.judge import evaluate_judge, log_odds
from .evaluation.language_modeling import evaluate_language_modeling, window_and_stride
from .evaluation.preferences import evaluate_preferences, likelihood_scores, reward_scores
from .evaluation.record import Evaluation
from .files import read_yaml
from .inference.loading import load_language_model
from .rewards import load_rewards
from .rewards.base import answer_text
from .rewards.models import is_reward_model, load_reward_model
from .tasks.arguments import TaskArguments
from .tasks.registry import load_task_model, make_task
from .tokenization_chatgpt import load_tokenizer
from .training.run_folder import RECIPE_NAME

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
    check_destination(name_or_path, out)
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
    destination = Destination(name_or_path, corpus, read_with, out, command)
    return destination.save({f"language-modeling-{slug(corpus)}": evaluation})


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
    check_destination(name_or_path, out)
    arguments = _task_arguments(name_or_path, {**overrides, "dataset": [dataset]})
    model, tokenizer = load_task_model(name_or_path, arguments.task), load_tokenizer(name_or_path)
    check_tokenizer_fits(model, tokenizer)
    task = make_task(arguments, seed, model=model)
    found = task.evaluate(model.eval(), tokenizer, task.test, data=dataset, batch_size=batch_size)
    chosen = _given(overrides)
    destination = Destination(name_or_path, dataset, chosen, out, command)
    return destination.save({f"{name}-{slug(dataset)}": value for name, value in found.items()})


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
    check_destination(name_or_path, out)
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
    destination = Destination(name_or_path, problems, sampled, out, command)
    return destination.save({f"code-{slug(problems)}": evaluation})


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
    check_destination(name_or_path, out)
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
    destination = Destination(name_or_path, data_folder, chosen, out, command)
    named = destination.named(results.evaluations)
    replace(results, evaluations=named).save(destination.folder)
    return {name: evaluation.figures() for name, evaluation in named.items()}


def measure_bias(name_or_path: str, *, batch_size: int = 8, out: Path | None = None, command: str = "") -> Figures:
    """Probes whether the model expects "he" or "she" for people of twenty professions; its card shows the result."""
    check_destination(name_or_path, out)
    model, tokenizer = _load(name_or_path)
    evaluation = evaluate_bias(model, tokenizer, batch_size=batch_size)
    return Destination(name_or_path, None, {}, out, command).save({evaluation.task: evaluation})


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
    check_destination(name_or_path, out)
    pairs = _pairs(preferences, encoding, skip_invalid, limit)
    options: dict[str, Any] = {"batch_size": batch_size}
    before = None
    if is_reward_model(name_or_path):
        if reference is not None:
            raise ConfigError(f"{name_or_path} is a reward model, which has no use for --reference: leave it out.")
        found = reward_scores(*load_reward_model(name_or_path), pairs, **options)
    else:
        found = likelihood_scores(*_load(name_or_path), pairs, **options)
        if reference is not None:
            before = likelihood_scores(*_load(reference), pairs, **options)
    evaluation = evaluate_preferences(found, pairs, data=preferences, reference=before)
    chosen = {"limit": limit, "reference": reference and place(reference), "skip_invalid": skip_invalid or None}
    evaluation.settings |= _given(chosen)
    destination = Destination(name_or_path, preferences, chosen, out, command)
    return destination.save({f"{evaluation.task}-{slug(preferences)}": evaluation})


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
        preferences: See `measure_preferences`; `encoding`, `skip_invalid` and `limit` too.

    Raises:
        DataError: If there are no pairs, or one cannot be used.
        ConversionError: If the model generates no text.
    """
    check_destination(name_or_path, out)
    pairs = _pairs(preferences, encoding, skip_invalid, limit)
    sides = [[answer_text(side) for side in pairs[name]] for name in ("chosen", "rejected")]
    found = log_odds(*_load(name_or_path), pairs["prompt"][:], *sides, batch_size=batch_size)
    evaluation = evaluate_judge(found, pairs, data=preferences)
    chosen = {"limit": limit, "skip_invalid": skip_invalid or None}
    evaluation.settings |= _given(chosen)
    destination = Destination(name_or_path, preferences, chosen, out, command)
    return destination.save({f"{evaluation.task}-{slug(preferences)}": evaluation})


def measure_answers(
    name_or_path: str,
    prompts: str | None = None,
    *,
    answers: str | None = None,
    rewards: Sequence[str] = (),
    reward_weights: Sequence[float] | None = None,
    judge: str | None = None,
    against: str | None = None,
    answer_column: str | None = None,
    samples: int = 8,
    ks: Sequence[int] | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    encoding: str | None = None,
    skip_invalid: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    out: Path | None = None,
    command: str = "",
) -> Figures:
    """Measures what a chat model's answers are worth to rewards, to a judge, or to both.

    Args:
        prompts: Prompts to answer, with what the rewards read: a file, folder, glob or Hub id.
        answers: Answers that the model gave before; instead of `prompts`. See `read_answers`.
        rewards: See `load_rewards`.
        reward_weights: See `load_rewards`.
        judge: A chat model or reward model that compares the answers with others. See `judged`.
        against: What they are compared with: a model, or a file with its answers; the right answers in the file if not given.
        answer_column: The column with the right answers; `answer` if not given.
        samples: See `answer_prompts`; `ks`, `temperature` and `max_new_tokens` too.
        encoding: Encoding of the files, UTF-8 if not given.
        skip_invalid: Leave out prompts that cannot be used, with a warning that counts them.
        limit: The number of prompts; all if not given.

    Raises:
        ConfigError: If there are neither rewards nor a judge, or some option cannot be used.
        DataError: If the data cannot be used; the message names the row.
    """
    check_destination(name_or_path, out)
    if not rewards and judge is None:
        raise ConfigError("Give rewards or a judge: something has to say what the answers are worth.")
    loaded = load_rewards(list(rewards), reward_weights) if rewards else []
    named = {} if answer_column is None else {"answer": answer_column}
    chosen: dict[str, Any] = {"limit": limit, "skip_invalid": skip_invalid or None, "answer_column": answer_column}
    by_model = against is not None and not Path(against).is_file()
    given = None if against is None or by_model else read_answers(against, named=named, encoding=encoding)

    def opponents(rows: Iterable[Mapping[str, Any]]) -> list[str]:
        return references(rows) if given is None else matching(rows, given)

    if prompts is not None:
        source = prompts
        rows = read_questions(prompts, loaded, named=named, encoding=encoding, skip_invalid=skip_invalid, limit=limit)
        if judge is not None and not by_model:
            # What is missing is said before the work.
            opponents(rows)
        found = answer_prompts(
            name_or_path,
            rows,
            loaded,
            samples=samples,
            ks=ks,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            skip_invalid=skip_invalid,
            batch_size=batch_size,
            seed=seed,
        )
        chosen["max_new_tokens"] = max_new_tokens
    else:
        found = read_answers(str(answers), loaded, ks=ks, named=named, encoding=encoding, limit=limit)
        # Answers of two models are in two files, and what they have in common are the prompts.
        source = f"prompts-{digest([row['prompt'] for row in found.rows])[:8]}"

    def keep(evaluation: Evaluation, **more: Any) -> Figures:
        settings = _given({**chosen, **more})
        evaluation.data, evaluation.settings = source, {**settings, **evaluation.settings}
        destination = Destination(name_or_path, source, settings, out, command)
        return destination.save({f"{evaluation.task}-{slug(source)}": evaluation})

    figures: Figures = {}
    if found.rewarded is not None:
        sampled = {} if prompts is None else {"samples": samples, "temperature": temperature, "seed": seed}
        weights = None if reward_weights is None else list(reward_weights)
        figures |= keep(
            found.rewarded,
            rewards=list(rewards),
            reward_weights=weights,
            ks=None if ks is None else list(ks),
            **sampled,
        )
    if judge is not None:
        more: dict[str, Any] = {"judge": place(judge), "against": against and place(against)}
        if against is not None and by_model:
            more["max_new_tokens"] = max_new_tokens
            others = greedy_answers(against, found, max_new_tokens=max_new_tokens, batch_size=batch_size)
        else:
            others = opponents(found.rows)
        figures |= keep(judged(found, others, judge), **more)
    return figures


def _given(chosen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if value is not None}


def _load(name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model and its tokenizer, which fit each other."""
    model, tokenizer = load_language_model(name_or_path), load_tokenizer(name_or_path)
    check_tokenizer_fits(model, tokenizer)
    return model, tokenizer


def _pairs(preferences: str, encoding: str | None, skip_invalid: bool, limit: int | None) -> Dataset:
    """All pairs of a source, or the first ones."""
    sources = parse_sources(preferences, encoding=encoding, field="preferences")
    read = read_preferences(sources, kind="pairs", skip_invalid=skip_invalid)
    pairs = concatenate_datasets(list(read.splits.values()))
    return pairs if limit is None else pairs.select(range(min(limit, len(pairs))))


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
