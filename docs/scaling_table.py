"""Prints the table in docs/scaling.md about runs on many GPUs: `python docs/scaling_table.py`."""

from typing import Any

from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.plan import PlanArguments, plan

TYPES = (ModelArguments, ArchitectureArguments, CorpusArguments, PlanArguments, PretrainArguments)
ROWS = "--max_steps 10000 --gradient_accumulation_steps 1 --price_per_hour 3"
MODELS = {
    "1.2 B": f"--depth 24 --vocab_size 65536 --block_size 2048 --per_device_train_batch_size 8 {ROWS}",
    "6.7 B": "--hidden_size 4096 --num_hidden_layers 32 --num_attention_heads 32 --vocab_size 65536 --block_size 2048 "
    f"--per_device_train_batch_size 2 {ROWS}",
}
GPUS = (8, 64, 1024)
HEAD = "| model | GPUs | shard | memory of each, GB | largest micro-batch | computing, s a step | communicating, s | tokens/s | $ for 1 G tokens |"
SHARDS = ("ddp", "fsdp2", "hsdp")


def make_table() -> str:
    """The table, in Markdown."""
    lines = [make_line(name, gpus, shard) for name in MODELS for gpus in GPUS for shard in SHARDS]
    return "\n".join([HEAD, "|---" * HEAD.count(" | ") + "|---|", *lines])


def make_line(name: str, gpus: int, shard: str) -> str:
    """One line of it."""
    figures: dict[str, Any] = plan(*parse_recipe(TYPES, None, f"{MODELS[name]} --gpus {gpus} --shard {shard}".split()))
    cluster = figures["cluster"]
    speed, dollars = cluster["tokens_per_second"], cluster["dollars"]
    low, high = (dollars[key] / figures["tokens"] * 1e9 for key in ("overlapped", "exposed"))
    cells = (
        name,
        f"{cluster['gpus']:,}",
        cluster["shard"],
        f"{cluster['memory']['total'] / 1e9:.3g}",
        f"{cluster['largest_micro_batch']} rows",
        f"{cluster['computing_seconds']:.2f}",
        f"{cluster['communication_seconds']:.2f}",
        f"{speed['exposed'] / 1e3:,.0f} k to {speed['overlapped'] / 1e3:,.0f} k",
        f"{low:.0f} to {high:.0f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(make_table())
