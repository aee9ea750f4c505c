"""Small tests of two rules of `--depth`: one learning rate serves every width, and it grows with the root of the batch.

Two sweeps on `builtin:python-docs` with a vocabulary of 4,096, rows of 256 tokens, Muon and one seed. Each run is a
`chatgpt-hf pretrain` in a separate process; runs are compared by bits per byte on held-out documents:

- width: depths 2 and 4 (widths 128 and 256) at 2,048 tokens a step, learning rates a factor of two apart;
- batch: depth 2 at 2,048 and at 8,192 tokens a step for the same number of tokens, learning rates likewise.

A rule holds where the best learning rate stays (width) or doubles (batch: square root of four). The learning rates are coarse
and there is one seed, so only a rule that is wrong by a factor of two or more would show.
"""

import json
import os
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

from chatgpt_hf.data.builtin import load_builtin

BLOCK_SIZE = 256


def train(
    tokenizer: Path, depth: int, rows: int, steps: int, learning_rate: float, *, seed: int, options: Sequence[str]
) -> dict[str, Any]:
    """Trains once and returns the held-out bits per byte and the CPU seconds of the whole process."""
    fields: dict[str, Any] = {
        "tokenizer": tokenizer,
        "depth": depth,
        "block_size": BLOCK_SIZE,
        # Set here, so that --depth sets only the shape.
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "optim": "muon",
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": json.dumps({"num_decay_steps": steps * 2 // 5, "decay_type": "linear"}),
        "warmup_steps": steps // 20,
        "logging_steps": steps,
        "save_strategy": "no",
        "disable_tqdm": "true",
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        words = [str(part) for name, value in fields.items() for part in (f"--{name}", value)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [*harness.CLI, "pretrain", *words, *options, "--output_dir", f"{folder}/run"]
        harness.run_apart("The run", command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures = json.loads(Path(folder, "run", "results.json").read_text())
    return {
        "depth": depth,
        "tokens_per_step": rows * BLOCK_SIZE,
        "steps": steps,
        "learning_rate": learning_rate,
        "bits_per_byte": figures["held_out_bits_per_byte"],
        "cpu_seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
    }


def kept(small: list[dict[str, Any]], large: list[dict[str, Any]]) -> float:
    """How good a rule's choice is: the larger runs' best loss over their loss at the smaller runs' best rate; 1 is perfect."""
    losses = [result["bits_per_byte"] for result in large]
    chosen = min(range(len(small)), key=lambda index: small[index]["bits_per_byte"])
    return min(losses) / losses[chosen]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--sweep", choices=("width", "batch", "both"), default="both", help="default: both")
    parser.add_argument("--steps", type=int, help="steps of 2,048 tokens (default: 100 for width, 300 for batch)")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[0.005, 0.01, 0.02],
        help="learning rates at 2,048 tokens a step (default: 0.005 0.01 0.02)",
    )
    parser.add_argument("--held_out", type=int, help="number of held-out documents (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    runs = []
    if args.sweep != "batch":
        runs += [(depth, 8, args.steps or 100, rate) for depth in (2, 4) for rate in args.rates]
    if args.sweep != "width":
        runs += [(2, 8, args.steps or 300, rate) for rate in args.rates]
        runs += [(2, 32, (args.steps or 300) // 4, 2 * rate) for rate in args.rates]
    print(f"{'depth':>5}{'tokens/step':>13}{'steps':>7}{'rate':>7}{'bits/byte':>11}{'CPU s':>8}")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer")
        options = ["--corpus", "builtin:python-docs", "--vocab_size", "4096", "--output_dir", str(tokenizer)]
        harness.run_apart("The tokenizer's training", [*harness.CLI, "tokenizer", "train", *options])
        options = []
        if args.held_out:
            held_out = Path(folder, "held-out.jsonl")
            texts = load_builtin("builtin:python-docs")["test"]["text"][: args.held_out]
            held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
            options = ["--eval_corpus", str(held_out)]
        for run in runs:
            result = train(tokenizer, *run, seed=args.seed, options=options)
            results.append(result)
            print(
                f"{result['depth']:>5}{result['tokens_per_step']:>13,}{result['steps']:>7}{result['learning_rate']:>7}"
                f"{result['bits_per_byte']:>11.4f}{result['cpu_seconds']:>8.0f}",
                flush=True,
            )
            ratios, count = {}, len(args.rates)
            # A sweep is the smaller runs at all rates, then the larger ones.
            for start in range(0, len(results) - 2 * count + 1, 2 * count):
                small, large = results[start : start + count], results[start + count : start + 2 * count]
                sweep = "width" if small[0]["depth"] != large[0]["depth"] else "batch"
                ratios[f"{sweep}: best loss over the one at the rate that the rule gives"] = kept(small, large)
            # Written after each run, so that an interruption loses nothing.
            harness.write_json(args.json, ratios, results=results)


if __name__ == "__main__":
    main()
