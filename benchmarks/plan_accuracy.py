"""How close the step time that `chatgpt-hf plan` predicts comes to that of the run.

For each depth: a plan, a run with the same arguments, and the plan again, each in a separate process with the same number of
threads. A run's step time is the mean of all steps but the first. Prediction and run are compared by the clock and by CPU time
per thread: when other work takes the cores, it slows plans and runs at different moments, and the ratio of CPU times says more.
`share` is the part of its wall time for which the run had its threads. The script fails when neither ratio, of the mean of both
predictions to the run, lies between 0.7 and 1.3.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

# The command line with one more callback, which writes [wall, CPU] seconds of each step to the file $CLOCK names.
CLOCKED = """
import json, os, time
import transformers.trainer
from transformers import TrainerCallback
class Clock(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        self.marks = []
    def on_step_end(self, *args, **kwargs):
        self.marks.append([time.perf_counter(), time.process_time()])
    def on_train_end(self, *args, **kwargs):
        with open(os.environ["CLOCK"], "w") as file:
            json.dump(self.marks, file)
transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
from chatgpt_hf.cli import main; main()
"""
# With the batch that --depth 12 proposes, a step takes minutes on a CPU.
ROWS = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--block_size", "256"]


def compare(depth: int, folder: Path, steps: int, rows: list[str]) -> dict[str, Any]:
    """Plans, runs and plans again."""
    options = ["--depth", str(depth), "--tokenizer", str(folder / "tokenizer"), "--max_steps", str(steps), *rows]
    quiet = ["--eval_corpus", str(folder / "held-out.txt"), "--save_strategy", "no", "--eval_strategy", "no"]
    clock, output = folder / f"clock-{depth}.json", ["--output_dir", str(folder / f"run-{depth}")]
    plan = [*harness.CLI, "plan", *options, "--json"]
    run = [sys.executable, "-c", CLOCKED, "pretrain", *options, *quiet, *output, "--disable_tqdm", "true"]
    before = json.loads(harness.run_apart("The plan", plan))
    harness.run_apart("The run", run, CLOCK=str(clock))
    after = json.loads(harness.run_apart("The plan", plan))
    marks, threads = json.loads(clock.read_text()), before["here"]["threads"]
    wall, cpu = ((marks[-1][index] - marks[0][index]) / (len(marks) - 1) for index in (0, 1))
    plans = {
        "wall": [figures["here"]["step_seconds"] for figures in (before, after)],
        "cpu": [figures["here"]["step_cpu_seconds"] / threads for figures in (before, after)],
    }
    measured = {"wall": wall, "cpu": cpu / threads}
    return {
        "depth": depth,
        "parameters": before["parameters"],
        "threads": threads,
        "predicted": plans,
        "measured": measured,
        "ratio": {name: sum(plans[name]) / 2 / measured[name] for name in measured},
        "share": cpu / threads / wall,
    }


def nearness(result: dict[str, Any]) -> float:
    """1 for a plan that is right, less for one too high or too low; by wall or CPU time, whichever is closer."""
    return max(min(ratio, 1 / ratio) for ratio in result["ratio"].values())


def main() -> None:
    parser = harness.parser(__doc__, epilog=f"Further options go to both commands instead of {' '.join(ROWS)}")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12], help="default: 4 12")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run (default: %(default)s)")
    parser.add_argument(
        "--vocab_size", type=int, default=8192, help="size of the tokenizer that all depths use (default: %(default)s)"
    )
    args, rows = parser.parse_known_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    results = []
    print(f"{'depth':>5}{'parameters':>13}{'':>6}{'predicted s':>18}{'measured s':>12}{'ratio':>7}{'share':>7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = ["--corpus", "builtin:python-docs", "--vocab_size", str(args.vocab_size)]
        tokenizer = [*harness.CLI, "tokenizer", "train", *corpus, "--output_dir", str(folder / "tokenizer")]
        harness.run_apart("The tokenizer's training", tokenizer)
        # One short line: evaluation is no part of a step.
        (folder / "held-out.txt").write_text("Return a copy of the string with leading whitespace removed.\n")
        for depth in args.depths:
            result = compare(depth, folder, args.steps, rows or ROWS)
            results.append(result)
            for kind, start in (("wall", f"{depth:>5}{result['parameters']:>13,}"), ("cpu", " " * 18)):
                predicted = ", ".join(f"{seconds:.3f}" for seconds in result["predicted"][kind])
                print(
                    f"{start}{kind:>6}{predicted:>18}{result['measured'][kind]:>12.3f}{result['ratio'][kind]:>7.2f}"
                    f"{result['share']:>7.2f}",
                    flush=True,
                )
    ratios = {f"depth {result['depth']}: nearness of plan and run": nearness(result) for result in results}
    harness.write_json(args.json, ratios, results=results)
    if any(not any(0.7 <= ratio <= 1.3 for ratio in result["ratio"].values()) for result in results):
        raise SystemExit("A prediction is more than 30 % off.")


if __name__ == "__main__":
    main()
