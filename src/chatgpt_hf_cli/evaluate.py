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
        benchmark_data: Annotated[
            str | None,
            typer.Option("--benchmark_data", help="Folder with the benchmarks' files, to run without the Hub."),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option("--limit", min=1, help="Number of items of each benchmark, or of pairs; all if not given."),
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
                help="The model before its training on --preferences; measures also how often the better answer gained more.",
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
        skip_invalid: Annotated[
            bool,
            typer.Option(
                "--skip_invalid", help="Leave out rows of --preferences that cannot be used, and count them."
            ),
        ] = False,
        samples: Annotated[int, typer.Option("--samples", help="Number of programs for each problem.")] = 1,
        k: Annotated[str, typer.Option("--k", help="Values of k in pass@k, separated by commas.")] = "1",
        temperature: Annotated[
            float, typer.Option("--temperature", help="Temperature of programs; 0 always takes the most likely token.")
        ] = 0.0,
        max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Longest program in tokens.")] = 512,
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
                help="Rows at a time; does not change the results. 8 if not given, fewer with --corpus if windows are long.",
            ),
        ] = None,
        seed: Annotated[
            int | None,
            typer.Option(
                "--seed", min=0, max=LARGEST_SEED, help="Random seed of programs and of examples before an item."
            ),
        ] = None,
        out: Annotated[
            Path | None, typer.Option("--out", help="Folder for the evaluation; evaluation/ in MODEL if not given.")
        ] = None,
    ) -> None:
        """Measure a model, with 95 % confidence intervals.

        Give one of --corpus, --dataset, --code, --benchmarks, --preferences or --bias. The evaluation is kept for chatgpt-hf compare. With --dataset, the fields of chatgpt-hf finetune about task and data may be given too, such as --task or --label_column.

        Example: chatgpt-hf evaluate runs/quickstart/base --corpus builtin:python-docs

        Example: chatgpt-hf evaluate runs/sst2 --dataset test.csv --batch_size 32

        Example: chatgpt-hf evaluate smollm2 --code humaneval.jsonl --chat

        Example: chatgpt-hf evaluate runs/dpo --preferences held-out.jsonl --reference runs/quickstart
        """
        if ctx.args and dataset is None:
            known = [name for item in ctx.command.params for name in item.opts]
            raise UsageMistake(
                f"Unknown argument {ctx.args[0]}: fields of a task need --dataset.{did_you_mean(ctx.args[0], known)}"
            )
        wanted = {
            **{"--corpus": corpus, "--dataset": dataset, "--code": code, "--benchmarks": benchmarks},
            **{"--preferences": preferences, "--bias": bias},
        }
        given = [name for name, value in wanted.items() if value is not None]
        if len(given) != 1:
            raise UsageMistake(
                f"Give one of {', '.join(wanted)} to measure on" + (f", not {' and '.join(given)}." if given else ".")
            )
        for name, value, needed in (
            ("--window", window, "--corpus"),
            ("--stride", stride, "--corpus"),
            ("--chat", chat or None, "--code"),
            ("--as_judge", as_judge or None, "--preferences"),
            ("--reference", reference, "--preferences"),
            ("--skip_invalid", skip_invalid or None, "--preferences"),
        ):
            if value is not None and given != [needed]:
                raise UsageMistake(f"{name} is for {needed}, and this measures with {given[0]}: leave it out.")
        if as_judge and reference is not None:
            raise UsageMistake("--reference is for probabilities, and --as_judge asks the model: leave one out.")
        if dataset is not None:
            check_recipe(TASK, None, ctx.args)
        check_model(model)
        if reference is not None:
            check_model(reference)
        from chatgpt_hf import evaluate as measure

        command = shlex.join(["chatgpt-hf", *sys.argv[1:]])
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
            overrides = _fields(ctx.args)
            if text_column != "text":
                overrides["text_column"] = text_column
            if encoding is not None:
                overrides["encoding"] = encoding
            figures = measure.measure_task(
                model, dataset, batch_size=batch_size or 8, seed=seed or 0, out=out, command=command, **overrides
            )
        elif code is not None:
            ks = [int(number) for number in split_commas([k])]
            figures = measure.measure_code(
                model,
                code,
                samples=samples,
                ks=ks,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
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
                skip_invalid=skip_invalid,
                limit=limit,
                batch_size=batch_size,
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
