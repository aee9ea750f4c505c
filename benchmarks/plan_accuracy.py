"""How close the step time that `chatgpt-hf plan` predicts comes to that of the run.

For each depth: a plan, a run with the same arguments, and the plan again, each in a separate process with the same number of
threads. A run's step time is the mean of all steps but the first. Prediction and run are compared by the clock and by CPU time
per thread: when other work takes the cores, it slows plans and runs at different moments, and the ratio of CPU times says more.
`share` is the part of its wall time for which the run had its threads. The script fails when neither ratio, of the mean of both
predictions to the run, lies between 0.7 and 1.3.

`--processes 2` does the same for a run of several processes on this machine, and compares the peak memory of the first one too: what
the training adds to the process that has imported everything, weights included. The plan gets the bandwidth of an all-reduce
between such processes, measured before. Communication is not hidden behind computing there, so the plan's longer time counts.
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
import torch._dynamo  # Imported by the first step otherwise, and no part of it.
import transformers.trainer
from transformers import TrainerCallback
def resident(name):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))
class Clock(TrainerCallback):
    def on_init_end(self, *args, model=None, **kwargs):
        self.before = resident("VmRSS") - sum(weight.nbytes for weight in model.parameters())
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    def on_train_begin(self, *args, **kwargs):
        self.marks = []
    def on_step_end(self, *args, **kwargs):
        self.marks.append([time.perf_counter(), time.process_time()])
    def on_train_end(self, *args, **kwargs):
        if os.environ.get("RANK", "0") == "0":
            with open(os.environ["CLOCK"], "w") as file:
                json.dump({"marks": self.marks, "memory": resident("VmHWM") - self.before}, file)
transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
from chatgpt_hf_cli import main; main()
"""
# Bytes per second of an all-reduce, by the clock and by the CPU time of a process; each sends its tensor once if there are two.
BANDWIDTH = """
import json, os, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
tensor, share = torch.ones(2**22), 2 * (dist.get_world_size() - 1) / dist.get_world_size()
dist.all_reduce(tensor)
dist.barrier()
begin = time.perf_counter(), time.process_time()
for _ in range(8):
    dist.all_reduce(tensor)
spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
if dist.get_rank() == 0:
    print(json.dumps([8 * share * tensor.nbytes / seconds for seconds in spent]), flush=True)
dist.destroy_process_group()
"""
# With the batch that --depth 12 proposes, a step takes minutes on a CPU.
ROWS = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--block_size", "256"]


def compare(depth: int, folder: Path, steps: int, rows: list[str], processes: int) -> dict[str, Any]:
    """Plans, runs and plans again."""
    options = ["--depth", str(depth), "--tokenizer", str(folder / "tokenizer"), "--max_steps", str(steps), *rows]
    quiet = ["--eval_corpus", str(folder / "held-out.txt"), "--save_strategy", "no", "--eval_strategy", "no"]
    if processes > 1:
        return compare_processes(depth, folder, steps, [*options, *quiet], processes)
    clock, output = folder / f"clock-{depth}.json", ["--output_dir", str(folder / f"run-{depth}")]
    plan = [*harness.CLI, "plan", *options, "--json"]
    run = [sys.executable, "-c", CLOCKED, "pretrain", *options, *quiet, *output, "--disable_tqdm", "true"]
    before = json.loads(harness.run_apart("The plan", plan))
    harness.run_apart("The run", run, CLOCK=str(clock))
    after = json.loads(harness.run_apart("The plan", plan))
    marks, threads = json.loads(clock.read_text())["marks"], before["here"]["threads"]
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


def compare_processes(depth: int, folder: Path, steps: int, options: list[str], processes: int) -> dict[str, Any]:
    """The same for a run of several processes, with its memory."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
        "--no-python",
    ]
    # Without it, `Trainer` on a CPU takes no notice of the other processes.
    options = [*options, "--use_cpu", "true"]
    probe = harness.run_apart("The all-reduce", [*launch, sys.executable, "-c", BANDWIDTH])
    bandwidth, cpu_bandwidth = json.loads(probe.strip().splitlines()[-1])
    shared = ["--gpus", str(processes), "--gpu", "here", "--link_bandwidth", str(bandwidth / 1e9)]
    plan = [*harness.CLI, "plan", *options, *shared, "--json"]
    clock, output = (
        folder / f"clock-{depth}.json",
        ["--output_dir", str(folder / f"run-{depth}"), "--disable_tqdm", "true"],
    )
    before = json.loads(harness.run_apart("The plan", plan))
    harness.run_apart(
        "The run", [*launch, sys.executable, "-c", CLOCKED, "pretrain", *options, *output], CLOCK=str(clock)
    )
    clusters = [figures["cluster"] for figures in (before, json.loads(harness.run_apart("The plan", plan)))]
    run, threads = json.loads(clock.read_text()), clusters[0]["threads"]
    marks = run["marks"]
    wall, cpu = ((marks[-1][index] - marks[0][index]) / (len(marks) - 1) for index in (0, 1))
    sent = sum(item["bytes"] for item in clusters[0]["communication"].values())
    plans = {
        "wall": [figures["step_seconds"]["exposed"] for figures in clusters],
        "cpu": [(figures["computing_cpu_seconds"] + sent / cpu_bandwidth) / threads for figures in clusters],
    }
    measured = {"wall": wall, "cpu": cpu / threads}
    memory = clusters[0]["memory"]["total"]
    return {
        "depth": depth,
        "parameters": before["parameters"],
        "threads": threads,
        "processes": processes,
        "bandwidth": bandwidth,
        "predicted": plans,
        "measured": measured,
        "ratio": {name: sum(plans[name]) / 2 / measured[name] for name in measured},
        "share": cpu / threads / wall,
        "memory": {"predicted": clusters[0]["memory"], "measured": run["memory"], "ratio": memory / run["memory"]},
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
    parser.add_argument(
        "--processes", type=int, default=1, help="processes of each run, on this machine (default: %(default)s)"
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
            result = compare(depth, folder, args.steps, rows or ROWS, args.processes)
            results.append(result)
            for kind, start in (("wall", f"{depth:>5}{result['parameters']:>13,}"), ("cpu", " " * 18)):
                predicted = ", ".join(f"{seconds:.3f}" for seconds in result["predicted"][kind])
                print(
                    f"{start}{kind:>6}{predicted:>18}{result['measured'][kind]:>12.3f}{result['ratio'][kind]:>7.2f}"
                    f"{result['share']:>7.2f}",
                    flush=True,
                )
            if memory := result.get("memory"):
                predicted, measured = (memory["predicted"]["total"] / 1e6, memory["measured"] / 1e6)
                print(f"{'':>18}memory{predicted:>15,.0f} MB{measured:>9,.0f} MB{memory['ratio']:>7.2f}", flush=True)
    ratios = {f"depth {result['depth']}: nearness of plan and run": nearness(result) for result in results}
    harness.write_json(args.json, ratios, results=results)
    if any(not any(0.7 <= ratio <= 1.3 for ratio in result["ratio"].values()) for result in results):
        raise SystemExit("A prediction is more than 30 % off.")
    if any(not 0.85 <= result["memory"]["ratio"] <= 1.15 for result in results if "memory" in result):
        raise SystemExit("The predicted memory is more than 15 % off.")


if __name__ == "__main__":
    main()
