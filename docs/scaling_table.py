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
    f"--per_device_train_batch_size 4 {ROWS}",
}
GPUS = (8, 64, 1024)
SHARDS = ("ddp", "fsdp2", "hsdp")


def make_table() -> str:
    """The table, in Markdown."""
    lines = [
        "| model | GPUs | | memory of each, GB | largest micro-batch | computing, s a step | communicating, s | tokens/s | $ for 1 G tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, options in MODELS.items():
        for gpus in GPUS:
            for shard in SHARDS:
                arguments = f"{options} --gpus {gpus} --shard {shard}".split()
                lines.append(_line(name, plan(*parse_recipe(TYPES, None, arguments))))
    return "\n".join(lines)


def _line(name: str, figures: dict[str, Any]) -> str:
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
