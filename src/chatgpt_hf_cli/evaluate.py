"""`chatgpt-hf evaluate`."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ._choices import LARGEST_SEED
from ._moderation import split_commas
from ._paths import check_model
from ._tensor_parallel import TpPlanOption, run_among
from ._terminal import visible
from .errors import UsageMistake, did_you_mean
from .fields import check_recipe
from .help import Command

TASK = ("tasks.arguments:TaskArguments",)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(
        cls=Command, rich_help_panel=panel, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
    )
    def evaluate(
        ctx: typer.Context,
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
        corpus: Annotated[
            str | None,
            typer.Option(
                "--corpus",
                help="Measure perplexity and bits per byte on text: a file, folder, glob, Hub id or builtin:python-docs.",
            ),
        ] = None,
        dataset: Annotated[
            str | None,
            typer.Option(
                "--dataset",
                help="Measure the task that the model was fine-tuned for on these rows: a file, folder, glob or Hub id.",
            ),
        ] = None,
        code: Annotated[
            str | None,
            typer.Option(
                "--code",
                help="Measure pass@k on programming problems in HumanEval's format (jsonl); programs run in a sandbox.",
            ),
        ] = None,
        benchmarks: Annotated[
            str | None,
            typer.Option(
                "--benchmarks", help="Benchmarks of lm-evaluation-harness, separated by commas: hellaswag,arc_easy."
            ),
        ] = None,
        bias: Annotated[
            bool | None,
            typer.Option(
                "--bias",
                help="Compare the probabilities of sentences with he and with she; the result appears in the model card.",
            ),
        ] = None,
        preferences: Annotated[
            str | None,
            typer.Option(
                "--preferences",
                help="Measure how often the better answer of a pair is likelier, or gets a higher score from a reward model: a file, folder, glob or Hub id, as for dpo.",
            ),
        ] = None,
        as_judge: Annotated[
            bool,
            typer.Option(
                "--as_judge",
                help="Ask the model which answer of --preferences is better, in both orders, and measure how often it agrees with the labels.",
            ),
        ] = False,
        prompts: Annotated[
            str | None,
            typer.Option(
                "--prompts",
                help="Let the model answer these prompts, and measure its answers by --rewards or --judge: a file, folder, glob or Hub id, as for grpo.",
            ),
        ] = None,
        answers: Annotated[
            str | None,
            typer.Option(
                "--answers",
                help="The same for answers that it gave before: a file of chatgpt-hf generate --prompts, with or without --samples.",
            ),
        ] = None,
        rewards: Annotated[
            list[str] | None,
            typer.Option(
                "--rewards",
                help="What answers are worth: exact, number, regex, json_schema, python, length or honest; a reward model; or module:function. May be repeated.",
            ),
        ] = None,
        reward_weights: Annotated[
            list[float] | None,
            typer.Option("--reward_weights", help="Factor of each of --rewards, in the same order. May be repeated."),
        ] = None,
        judge: Annotated[
            str | None,
            typer.Option(
                "--judge",
                help="A chat model that says which of two answers is better, asked in both orders, or a reward model: folder or Hub id.",
            ),
        ] = None,
        against: Annotated[
            str | None,
            typer.Option(
                "--against",
                help="What --judge compares the answers with: another model, or a file with its answers; the right answers in the file if not given.",
            ),
        ] = None,
        answer_column: Annotated[
            str | None,
            typer.Option("--answer_column", help="Column with the right answers; answer if not given."),
        ] = None,
        benchmark_data: Annotated[
            str | None,
            typer.Option("--benchmark_data", help="Folder with the benchmarks' files, to run without the Hub."),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option(
                "--limit", min=1, help="Number of items of each benchmark, of pairs, or of prompts; all if not given."
            ),
        ] = None,
        num_fewshot: Annotated[
            int | None,
            typer.Option(
                "--num_fewshot", help="Number of examples before each item; the benchmark's own if not given."
            ),
        ] = None,
        reference: Annotated[
            str | None,
            typer.Option(
                "--reference",
                help="The model before its training on --preferences: also measures how often the better answer gained more.",
            ),
        ] = None,
        window: Annotated[
            int | None,
            typer.Option(
                "--window",
                help="Tokens that the model sees at a time on --corpus; its context, but at most 2048, if not given.",
            ),
        ] = None,
        stride: Annotated[
            int | None,
            typer.Option(
                "--stride",
                help="New tokens per window of a long text; 1 is exact but slow, half the window if not given.",
            ),
        ] = None,
        text_column: Annotated[str, typer.Option("--text_column", help="Column with the text.")] = "text",
        encoding: Annotated[
            str | None, typer.Option("--encoding", help="Encoding of the files, such as gb18030; UTF-8 if not given.")
        ] = None,
        samples: Annotated[
            int | None,
            typer.Option(
                "--samples", min=1, help="Number of programs for each problem, 1 if not given, or of answers, 8."
            ),
        ] = None,
        k: Annotated[
            str | None,
            typer.Option(
                "--k",
                help="Values of k in pass@k, separated by commas; 1 for programs, the number of answers for --rewards.",
            ),
        ] = None,
        temperature: Annotated[
            float | None,
            typer.Option(
                "--temperature",
                help="0 always takes the most likely token. 0 for programs if not given; 1 for answers, which --rewards measures greedily too.",
            ),
        ] = None,
        max_new_tokens: Annotated[
            int | None,
            typer.Option(
                "--max_new_tokens", min=1, help="Longest program, 512 tokens if not given, or answer, 128 tokens."
            ),
        ] = None,
        chat: Annotated[
            bool,
            typer.Option(
                "--chat", help="Give the problems of --code to a chat model through its template, as a message."
            ),
        ] = False,
        batch_size: Annotated[
            int | None,
            typer.Option(
                "--batch_size",
                help="Rows at a time; does not change the results. 8 if not given, fewer with --corpus if windows are long; 64 answers with --prompts.",
            ),
        ] = None,
        seed: Annotated[
            int | None,
            typer.Option(
                "--seed",
                min=0,
                max=LARGEST_SEED,
                help="Random seed of programs, of answers, and of examples before an item.",
            ),
        ] = None,
        tp_plan: TpPlanOption = None,
        out: Annotated[
            Path | None, typer.Option("--out", help="Folder for the evaluation; evaluation/ in MODEL if not given.")
        ] = None,
    ) -> None:
        """Measure a model, with 95 % confidence intervals.

        Give one of --corpus, --dataset, --code, --benchmarks, --preferences, --prompts, --answers or --bias. The evaluation is kept for chatgpt-hf compare. With --dataset, the fields of chatgpt-hf finetune about task and data may be given too, such as --task or --label_column. With --preferences and --prompts, --skip_invalid leaves out rows that cannot be used.

        Example: chatgpt-hf evaluate runs/quickstart/base --corpus builtin:python-docs

        Example: chatgpt-hf evaluate runs/sst2 --dataset test.csv --batch_size 32

        Example: chatgpt-hf evaluate smollm2 --code humaneval.jsonl --chat

        Example: chatgpt-hf evaluate runs/dpo --preferences held-out.jsonl --reference runs/quickstart

        Example: chatgpt-hf evaluate runs/grpo --prompts sums.jsonl --rewards number --samples 8

        Example: chatgpt-hf evaluate runs/dpo --prompts questions.jsonl --judge smollm2 --against runs/quickstart
        """
        skips = preferences is not None or prompts is not None
        if ctx.args and dataset is None and not (skips and ctx.args[0].partition("=")[0] == "--skip_invalid"):
            known = [name for item in ctx.command.params for name in item.opts]
            raise UsageMistake(
                f"Unknown argument {ctx.args[0]}: fields of a task need --dataset.{did_you_mean(ctx.args[0], known)}"
            )
        wanted = {
            **{"--corpus": corpus, "--dataset": dataset, "--code": code, "--benchmarks": benchmarks},
            **{"--preferences": preferences, "--prompts": prompts, "--answers": answers, "--bias": bias},
        }
        given = [name for name, value in wanted.items() if value is not None]
        if len(given) != 1:
            raise UsageMistake(
                f"Give one of {', '.join(wanted)} to measure on" + (f", not {' and '.join(given)}." if given else ".")
            )
        if judge is not None and preferences is not None:
            raise UsageMistake(
                "--judge is for --prompts and --answers. To measure a judge on --preferences, name it as the MODEL, with --as_judge."
            )
        for name, value, needed in (
            ("--window", window, ("--corpus",)),
            ("--stride", stride, ("--corpus",)),
            ("--chat", chat or None, ("--code",)),
            ("--as_judge", as_judge or None, ("--preferences",)),
            ("--reference", reference, ("--preferences",)),
            ("--limit", limit, ("--benchmarks", "--preferences", "--prompts", "--answers")),
            ("--samples", samples, ("--code", "--prompts")),
            ("--temperature", temperature, ("--code", "--prompts")),
            ("--k", k, ("--code", "--prompts", "--answers")),
            ("--rewards", rewards or None, ("--prompts", "--answers")),
            ("--judge", judge, ("--prompts", "--answers")),
            ("--answer_column", answer_column, ("--prompts", "--answers")),
            ("--max_new_tokens", max_new_tokens, ("--dataset", "--code", "--prompts", "--answers")),
        ):
            if value is not None and given[0] not in needed:
                raise UsageMistake(
                    f"{name} is for {' and '.join(needed)}, and this measures with {given[0]}: leave it out."
                )
        for name, is_given, partner, has_partner in (
            ("--against", against is not None, "--judge", judge is not None),
            ("--reward_weights", bool(reward_weights), "--rewards", bool(rewards)),
        ):
            if is_given and not has_partner:
                raise UsageMistake(f"{name} is for {partner}: give both, or leave it out.")
        if {"--prompts", "--answers"} & set(given) and not rewards and judge is None:
            raise UsageMistake(f"{given[0]} needs --rewards or --judge, to say what the answers are worth.")
        if as_judge and reference is not None:
            raise UsageMistake("--reference is for probabilities, and --as_judge asks the model: leave one out.")
        if ctx.args:
            check_recipe(TASK, None, ctx.args)
        check_model(model)
        for other in (reference, judge, against):
            # The answers of another model may be in a file.
            if other is not None and not (other is against and Path(other).is_file()):
                check_model(other)
        from chatgpt_hf import evaluate as measure

        command = shlex.join(["chatgpt-hf", *sys.argv[1:]])
        overrides = _fields(ctx.args) if ctx.args else {}
        if others := [name for name in overrides if dataset is None and name != "skip_invalid"]:
            raise UsageMistake(f"--{others[0]} needs --dataset, and this measures with {given[0]}: leave it out.")
        if tp_plan is not None and preferences is not None and measure.is_reward_model(model):
            raise UsageMistake("--tp_plan shares language models, and this is a reward model: leave it out.")

        def work() -> None:
            if corpus is not None:
                figures = measure.measure_corpus(
                    model,
                    corpus,
                    text_column=text_column,
                    encoding=encoding,
                    window=window,
                    stride=stride,
                    batch_size=batch_size,
                    out=out,
                    command=command,
                    report=typer.echo,
                )
            elif dataset is not None:
                if text_column != "text":
                    overrides["text_column"] = text_column
                if encoding is not None:
                    overrides["encoding"] = encoding
                if max_new_tokens is not None:
                    overrides["max_new_tokens"] = max_new_tokens
                figures = measure.measure_task(
                    model, dataset, batch_size=batch_size or 8, seed=seed or 0, out=out, command=command, **overrides
                )
            elif code is not None:
                figures = measure.measure_code(
                    model,
                    code,
                    samples=samples or 1,
                    ks=_numbers(k) or [1],
                    temperature=temperature or 0.0,
                    max_new_tokens=max_new_tokens or 512,
                    chat=chat,
                    batch_size=batch_size or 8,
                    seed=seed or 0,
                    out=out,
                    command=command,
                )
            elif preferences is not None:
                how = measure.measure_judge if as_judge else partial(measure.measure_preferences, reference=reference)
                figures = how(
                    model,
                    preferences,
                    encoding=encoding,
                    skip_invalid=bool(overrides.get("skip_invalid")),
                    limit=limit,
                    batch_size=batch_size,
                    out=out,
                    command=command,
                )
            elif prompts is not None or answers is not None:
                figures = measure.measure_answers(
                    model,
                    prompts,
                    answers=answers,
                    rewards=rewards or (),
                    reward_weights=reward_weights or None,
                    judge=judge,
                    against=against,
                    answer_column=answer_column,
                    samples=samples or 8,
                    ks=_numbers(k),
                    temperature=1.0 if temperature is None else temperature,
                    max_new_tokens=max_new_tokens or 128,
                    encoding=encoding,
                    skip_invalid=bool(overrides.get("skip_invalid")),
                    limit=limit,
                    batch_size=batch_size or 64,
                    seed=seed or 0,
                    out=out,
                    command=command,
                )
            elif bias is not None:
                figures = measure.measure_bias(model, batch_size=batch_size or 8, out=out, command=command)
            else:
                figures = measure.measure_benchmarks(
                    model,
                    split_commas([benchmarks or ""]),
                    data_folder=benchmark_data,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    batch_size=batch_size or 8,
                    seed=seed,
                    out=out,
                    command=command,
                )
            print_figures(figures)

        run_among(tp_plan, work, dataset=dataset)


def _numbers(given: str | None) -> list[int] | None:
    """The numbers of an option that takes several."""
    if given is None:
        return None
    try:
        return [int(number) for number in split_commas([given])]
    except ValueError:
        raise UsageMistake(f"--k {given} is not a list of whole numbers, such as 1,8.") from None


def _fields(arguments: list[str]) -> dict[str, Any]:
    """The fields of a task that the command line gives, read like those of a recipe."""
    from chatgpt_hf.tasks.arguments import TaskArguments
    from chatgpt_hf.training.recipe import given_fields

    return given_fields(TaskArguments, arguments)


def print_figures(figures: dict[str, Any]) -> None:
    """Prints every figure with its confidence interval."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from chatgpt_hf.evaluation.figures import measured_with

    table = Table("evaluation", "figure", "value", "95 % interval", box=None, header_style="bold")
    for name, found in figures.items():
        for figure, value in found.items():
            table.add_row(Text(visible(name)), Text(visible(figure)), value.shown(), value.interval())
    console = Console()
    console.print(table)
    for found in figures.values():
        for line in measured_with({figure: value.signature for figure, value in found.items()}):
            console.print(visible(f"measured with  {line}"), markup=False, highlight=False, soft_wrap=True)
