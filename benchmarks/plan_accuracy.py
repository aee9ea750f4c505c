"""How near `chatgpt-hf plan` comes to the step time of the run that it speaks of.

For each depth: a plan, a run of the same arguments right after it, and the plan again, each in a process of its own with the same
number of threads. A run's step time is the mean over all steps but the first. Both are taken by the clock and in CPU time over
threads: where other work holds the cores, the clock moves for predictions and runs alike but not at the same time, and the
ratio of CPU times tells more. `share` is the CPU time that the run got over its wall time and threads. The script fails
when neither ratio, of the mean of the two predictions to the run, is within 0.7 to 1.3.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLI = "from chatgpt_hf_cli import main; main()"
# The command line with a callback more: [wall, CPU] seconds of each step, to the file that $CLOCK names.
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
"""
# A step of the batch that the dial proposes for depth 12 takes minutes on a CPU.
ROWS = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--block_size", "256"]


def call(code: str, *arguments: str, **environment: str) -> str:
    """The output of a command, in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{run.stderr}")
    return run.stdout


def compare(depth: int, folder: Path, steps: int, rows: list[str]) -> dict[str, Any]:
    """Plan, run, plan."""
    options = ["--depth", str(depth), "--tokenizer", str(folder / "tokenizer"), "--max_steps", str(steps), *rows]
    quiet = ["--eval_corpus", str(folder / "held-out.txt"), "--save_strategy", "no", "--eval_strategy", "no"]
    clock, output = folder / f"clock-{depth}.json", ["--output_dir", str(folder / f"run-{depth}")]
    before = json.loads(call(CLI, "plan", *options, "--json"))
    call(CLOCKED + CLI, "pretrain", *options, *quiet, *output, "--disable_tqdm", "true", CLOCK=str(clock))
    after = json.loads(call(CLI, "plan", *options, "--json"))
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
    """1 where a plan is right, less the further off it is, too high or too low; by the clock that is the nearer."""
    return max(min(ratio, 1 / ratio) for ratio in result["ratio"].values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options go to both commands, in place of " + " ".join(ROWS),
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--vocab_size", type=int, default=8192, help="of the tokenizer of all depths (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args, rows = parser.parse_known_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    results = []
    print(f"{'depth':>5}{'parameters':>13}{'':>6}{'predicted s':>18}{'measured s':>12}{'ratio':>7}{'share':>7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = ["--corpus", "builtin:python-docs", "--vocab_size", str(args.vocab_size)]
        call(CLI, "tokenizer", "train", *corpus, "--output_dir", str(folder / "tokenizer"))
        # Held-out text that takes no time: it is no part of a step.
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
    if args.json:
        ratios = {f"depth {result['depth']}: nearness of plan and run": nearness(result) for result in results}
        args.json.write_text(json.dumps({"results": results, "ratios": ratios}, indent=2) + "\n")
    if any(not any(0.7 <= ratio <= 1.3 for ratio in result["ratio"].values()) for result in results):
        raise SystemExit("A prediction is more than 30 % off.")


if __name__ == "__main__":
    main()
