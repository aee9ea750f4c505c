"""`chatgpt-hf evaluate`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ._moderation import split_commas


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def evaluate(
        ctx: typer.Context,
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
        corpus: Annotated[
            str | None,
            typer.Option("--corpus", help="Text to predict: file, folder, glob, Hub id or builtin:python-docs."),
        ] = None,
        dataset: Annotated[
            str | None, typer.Option("--dataset", help="Rows of the task that the model was fine-tuned for.")
        ] = None,
        code: Annotated[
            str | None, typer.Option("--code", help="Problems in HumanEval's format (jsonl), run in a sandbox.")
        ] = None,
        benchmarks: Annotated[
            str | None,
            typer.Option("--benchmarks", help="Names in lm-evaluation-harness, with commas: hellaswag,arc_easy."),
        ] = None,
        bias: Annotated[
            bool | None, typer.Option("--bias", help="Sentences with he and with she, for the model's card.")
        ] = None,
        benchmark_data: Annotated[
            str | None,
            typer.Option("--benchmark_data", help="Folder with the benchmarks' files, where there is no Hub."),
        ] = None,
        limit: Annotated[int | None, typer.Option("--limit", help="Items of each benchmark.")] = None,
        num_fewshot: Annotated[int | None, typer.Option("--num_fewshot", help="Examples before each item.")] = None,
        stride: Annotated[
            int | None, typer.Option("--stride", help="New tokens per window of a long text; 1 is exact and slow.")
        ] = None,
        text_column: Annotated[str, typer.Option("--text_column", help="Column that holds the text.")] = "text",
        samples: Annotated[int, typer.Option("--samples", help="Programs written for each problem.")] = 1,
        k: Annotated[str, typer.Option("--k", help="The k of pass@k, with commas.")] = "1",
        temperature: Annotated[
            float, typer.Option("--temperature", help="Of programs; 0 takes the likeliest token each time.")
        ] = 0.0,
        max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Longest program.")] = 512,
        batch_size: Annotated[int, typer.Option("--batch_size", help="Rows at a time; changes no figure.")] = 8,
        seed: Annotated[int | None, typer.Option("--seed", help="Of programs and of examples before an item.")] = None,
        out: Annotated[
            Path | None, typer.Option("--out", help="Folder for the evaluation [default: MODEL/evaluation].")
        ] = None,
    ) -> None:
        """Measure a model, with 95 % confidence intervals, and keep the evaluation for `chatgpt-hf compare`.

        On text (perplexity, bits per byte), on rows of its task, on programs (pass@k), on standard benchmarks, or on pairs of sentences
        that show a bias. With --dataset, every field of `chatgpt-hf finetune` about the rows may be given, such as --task or --text_column.

        Example: chatgpt-hf evaluate runs/quickstart/base --corpus builtin:python-docs
        """
        from .. import evaluate as measure
        from ..errors import ConfigError

        wanted = {"--corpus": corpus, "--dataset": dataset, "--code": code, "--benchmarks": benchmarks, "--bias": bias}
        given = [name for name, value in wanted.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(
                f"Give one of {', '.join(wanted)} to measure on" + (f", not {' and '.join(given)}." if given else ".")
            )
        if ctx.args and dataset is None:
            raise ConfigError(f"Unknown argument {ctx.args[0]}: fields of a task go with --dataset.")
        command = shlex.join(["chatgpt-hf", *sys.argv[1:]])
        if corpus is not None:
            figures = measure.measure_corpus(
                model, corpus, text_column=text_column, stride=stride, batch_size=batch_size, out=out, command=command
            )
        elif dataset is not None:
            overrides = _fields(ctx.args)
            if text_column != "text":
                overrides["text_column"] = text_column
            figures = measure.measure_task(
                model, dataset, batch_size=batch_size, seed=seed or 0, out=out, command=command, **overrides
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
                batch_size=batch_size,
                seed=seed or 0,
                out=out,
                command=command,
            )
        elif bias is not None:
            figures = measure.measure_bias(model, batch_size=batch_size, out=out, command=command)
        else:
            figures = measure.measure_benchmarks(
                model,
                split_commas([benchmarks or ""]),
                data_folder=benchmark_data,
                limit=limit,
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                seed=seed,
                out=out,
                command=command,
            )
        print_figures(figures)


def _fields(arguments: list[str]) -> dict[str, Any]:
    """The fields of a task that are given, read as a recipe's are."""
    from ..tasks.arguments import TaskArguments
    from ..training.arguments import RecipeParser, parse_recipe

    (parsed,) = parse_recipe((TaskArguments,), None, arguments)
    return {name: getattr(parsed, name) for name in RecipeParser((TaskArguments,)).given(arguments)}


def print_figures(figures: dict[str, Any]) -> None:
    """A table of every figure with its interval."""
    from rich.console import Console
    from rich.table import Table

    table = Table("evaluation", "figure", "value", "95 % interval", box=None, header_style="bold")
    for name, found in figures.items():
        for figure, value in found.items():
            table.add_row(name, figure, f"{value.value:.4g}", f"{value.low:.4g} to {value.high:.4g}")
    Console().print(table)
