"""`chatgpt-hf plan`."""

import json
from collections.abc import Callable
from typing import Any

import typer

from ._recipe import recipe_command
from ._terminal import say

TYPES = (
    "training.arguments:ModelArguments",
    "training.arguments:ArchitectureArguments",
    "training.arguments:CorpusArguments",
    "training.plan:PlanArguments",
    "training.arguments:PretrainArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "plan", panel, TYPES, run, HELP)


HELP = """Estimate size, memory and time of a pretraining run before starting it.

Takes the recipe and the fields of pretrain; --depth sets those that are missing. Prints parameters, operations, tokens and memory, the time on this machine (measured in about half a minute), and the time on a GPU.

With --gpus, plans the run on many GPUs from published figures, without measuring: the memory of each by part, what it sends in a step, speed, price, and the largest micro-batch that fits.

Example: chatgpt-hf plan --depth 12 --gpu a100

Example: chatgpt-hf plan pretrain-quickstart --json

Example: chatgpt-hf plan --depth 32 --bf16 true --gpus 64 --shard fsdp2 --price_per_hour 3
"""


def run(parsed: tuple[Any, ...]) -> None:
    """Makes the plan and prints it."""
    from chatgpt_hf.training.plan import plan as make_plan

    figures = make_plan(*parsed)
    if parsed[-2].json:
        say(json.dumps(figures, indent=2))
    else:
        print_plan(figures)


def print_plan(figures: dict[str, Any]) -> None:
    """Prints the figures as a table, followed by warnings."""
    from rich.console import Console
    from rich.table import Table

    table = Table("plan", "", box=None, header_style="bold")
    table.add_row(
        "model", "{layers} layers, width {width}, {heads} heads, vocabulary {vocab_size:,}".format(**figures)
    )
    table.add_row(
        "parameters",
        f"{count(figures['parameters'])}, {count(figures['non_embedding_parameters'])} without embeddings",
    )
    table.add_row(
        "tokens", f"{count(figures['tokens'])}, {figures['tokens_per_parameter']:.3g} for each matrix parameter"
    )
    table.add_row(
        "steps",
        "{steps:,} of {tokens_per_step:,} tokens: {accumulation} x {micro_batch} rows of {block_size:,}".format(
            **figures
        ),
    )
    table.add_row(
        "optimizer", "{optim}, learning rate {learning_rate:g}, weight decay {weight_decay:g}".format(**figures)
    )
    table.add_row("operations", f"{figures['flops_per_token']:.3g} FLOPs a token, {figures['flops']:.3g} in all")
    console = Console()
    if "cluster" in figures:
        add_cluster(table, figures["cluster"])
        console.print(table)
        print_warnings(console, figures)
        return
    memory, here, gpu = (figures[name] for name in ("memory", "here", "gpu"))
    table.add_row("memory", f"{gigabytes(memory['total'])}; free here: {gigabytes(memory['free'])}")
    threads = f", {here['threads']} threads" if here["device"] == "cpu" else ""
    table.add_row(
        f"here ({here['device']}{threads})",
        f"{duration(here['step_seconds'])} a step, {duration(here['total_seconds'])} in all; "
        f"{here['tokens_per_second']:,.0f} tokens/s, {here['mfu']:.0%} of {count(here['matmul_peak'])}FLOP/s",
    )
    table.add_row(
        gpu["name"],
        f"{duration(gpu['total_seconds'])} in all, assuming {gpu['mfu']:.0%} of {count(gpu['flops'])}FLOP/s; "
        f"{gigabytes(gpu['memory'])} of {gigabytes(gpu['memory_of_gpu'])}",
    )
    console.print(table)
    console.print(
        "[dim]Times do not include compiling, evaluating and saving. Memory is an estimate.[/dim]", soft_wrap=True
    )
    if memory["total"] > memory["free"]:
        console.print("[yellow]This needs more memory than is free here: use fewer rows or a smaller model.[/yellow]")
    alone = here["step_cpu_seconds"] / here["threads"]
    if here["device"] == "cpu" and alone < 0.8 * here["step_seconds"]:
        console.print(
            "[yellow]Other programs used the cores during the measurement: the times are for a machine as busy as it is now. On "
            f"an idle machine, a step would take about {duration(alone)}.[/yellow]",
            soft_wrap=True,
        )


def add_cluster(table: Any, figures: dict[str, Any]) -> None:
    """Adds the rows about a run on several GPUs."""
    memory, step = figures["memory"], figures["step_seconds"]
    nodes = f" in {figures['nodes']:,} machines" if figures["nodes"] > 1 else ""
    assumed = f", assuming {figures['mfu']:.0%} of its peak" if figures["mfu"] is not None else ", measured"
    table.add_row("GPUs", f"{figures['gpus']:,} x {figures['gpu']}{nodes}, {figures['shard']}{assumed}")
    parts = [f"{name} {gigabytes(memory[name])}" for name in memory if name != "total" and memory[name]]
    table.add_row(
        "memory of each", f"{gigabytes(memory['total'])} of {gigabytes(figures['memory_of_gpu'])}: {', '.join(parts)}"
    )
    sent = [
        f"{name} {gigabytes(item['bytes'])}, {duration(item['seconds'])}"
        for name, item in figures["communication"].items()
    ]
    table.add_row("sent by each in a step", "; ".join(sent) or "nothing")
    table.add_row(
        "step",
        f"{duration(figures['computing_seconds'])} computing, {duration(figures['communication_seconds'])} communicating: "
        f"{between(step, duration)}",
    )
    table.add_row("speed", f"{between(figures['tokens_per_second'], lambda speed: f'{speed:,.0f}')} tokens/s")
    dollars = figures["dollars"]
    price = f", ${between(dollars, lambda price: f'{price:,.0f}')}" if dollars else ""
    table.add_row("in all", between(figures["total_seconds"], duration) + price)
    rows = figures["largest_micro_batch"]
    table.add_row("largest micro-batch", f"{rows:,} rows" if rows else "none fits")


def print_warnings(console: Any, figures: dict[str, Any]) -> None:
    """Prints the assumptions of a plan for several GPUs, and whether it fits."""
    console.print(
        "[dim]Counted, not measured. The first figure is for communication that is hidden behind computing, the second for none "
        "hidden. Compiling, evaluating and saving are not included.[/dim]",
        soft_wrap=True,
    )
    cluster = figures["cluster"]
    if figures["micro_batch"] > cluster["largest_micro_batch"]:
        console.print(
            f"[yellow]A micro-batch of {figures['micro_batch']} rows does not fit: use fewer rows, --gradient_checkpointing, or "
            "shard more.[/yellow]",
            soft_wrap=True,
        )


def between(figures: dict[str, float], shown: Callable[[float], str]) -> str:
    """`1 h to 2 h`, or only `1 h` where both are shown alike."""
    first, second = (shown(figures[name]) for name in ("overlapped", "exposed"))
    return first if first == second else f"{first} to {second}"


def count(number: float) -> str:
    """`1.2 M`."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "


def gigabytes(number: float) -> str:
    """`1.2 GB`."""
    return f"{number / 1e9:.3g} GB"


def duration(seconds: float) -> str:
    """The two largest units, as `3 h 20 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next(index for index, (value, _) in enumerate(parts) if value)
    return " ".join(f"{value:,} {unit}" for value, unit in parts[first : first + 2] if value)
