"""Runs a short version of every benchmark and compares its ratios with the stored ones.

Takes five to nine minutes on two otherwise idle cores. With `--json FILE`, every script of this folder writes, among other
figures, an object "ratios" of names and numbers. Each ratio compares two things measured side by side in one run; larger is
better. Only ratios are compared with `ratios.json`, since speeds differ from machine to machine. A ratio fails when it is
below the stored one by more than its tolerance, a share of it. A script that lacks a GPU or its data says so in its last
line and exits with 77, as automake's tests do: it is skipped.

    python benchmarks/bench.py
    python benchmarks/bench.py --only batching serving
    python benchmarks/bench.py --update
"""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import harness

FOLDER = Path(__file__).resolve().parent
RATIOS = FOLDER / "ratios.json"
# For a ratio that is stored for the first time; the tolerances in the file are set by hand, from the spread of several runs.
TOLERANCE = 0.2
# The arguments of each script's short version; FOLDER stands for an empty folder. The scripts stay on the CPU even where there
# is a GPU, because the stored ratios are a CPU's.
SHORT = {
    "batching": "--size gpt2 --prompts 10 --batch 5 --rounds 1",
    "decode": "--quick",
    "gpu": "",
    "quantized": "--rows 8 --prompts 2",
    "speculation": "--prompts 3 --tokens 48 --rounds 2",
    "exports": "--only onnx openvino --questions 8 --tokens 32 --conversations 8",
    "loss_memory": "--rows 4096 --vocab 16384 --device cpu",
    "plan_accuracy": "--depths 2 --steps 10 --vocab_size 2048",
    "serving": "--requests 32 --max_tokens 40",
    "train_speed": "--arms '*/eager/float32' --rounds 8 --steps 3 --device cpu",
    "lr_scaling": "--sweep width --steps 8 --rates 0.005 0.02 --held_out 10",
    "tasks": "--tasks thucnews --max_steps 30 --adapt_epochs 0.2 --out FOLDER",
    "pretrain_quality": "--arms shakespeare-char --seeds 1 --points 0 --max_steps 150 --jobs 1 --out FOLDER",
    "data_memory": "--megabytes 2",
    "prepare": "--megabytes 4 --part 0.25",
    "startup": "--rounds 3",
    "alignment": "--rounds 3",
    "command_memory": "--commands convert generate",
    "learned": "--only reward-en --seeds 0 --out FOLDER",
    "abstention": "--out FOLDER --seeds 0 --questions 120 --part 40 --sft '--num_train_epochs 40' --pretrain "
    "'--hidden_size 96 --num_hidden_layers 2 --vocab_size 1024 --max_steps 20'",
}
# Ratios of losses, memory or CPU time: two of these scripts run at a time, the longest first. The others measure by the clock
# and need the machine for themselves.
UNTIMED = {
    "abstention",
    "alignment",
    "command_memory",
    "data_memory",
    "learned",
    "lr_scaling",
    "prepare",
    "pretrain_quality",
    "quantized",
    "startup",
    "tasks",
}


@dataclass
class Stored:
    """One entry of `ratios.json`.

    Attributes:
        ratio: The measured ratio.
        tolerance: The share of it that a run may lose.
        date: When it was measured.
        machine: Where it was measured, in words.
    """

    ratio: float
    tolerance: float
    date: str
    machine: str


class Row(NamedTuple):
    """One line of the table."""

    name: str
    stored: float | None
    measured: float | None
    verdict: str
    failed: bool = False


class Unmeasured(Exception):
    """A script gave no ratios; the message says why. `skipped` scripts lack something here, the others failed."""

    def __init__(self, reason: str, skipped: bool) -> None:
        super().__init__(reason)
        self.skipped = skipped


def results(names: list[str]) -> Iterator[tuple[str, Future[dict[str, float]]]]:
    """Runs the scripts, first those that measure by the clock, one at a time; yields each when it is done."""
    for jobs, group in ((1, [n for n in names if n not in UNTIMED]), (2, [n for n in names if n in UNTIMED])):
        with ThreadPoolExecutor(jobs) as pool:
            begun = {pool.submit(run, name): name for name in group}
            for future in as_completed(begun):
                yield begun[future], future


def run(name: str) -> dict[str, float]:
    """Runs a script's short version in a separate process and returns its ratios.

    Raises:
        Unmeasured: When the script skips itself or fails.
    """
    print(f"{name}.py {SHORT[name]}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder, "figures.json")
        options = [folder if word == "FOLDER" else word for word in shlex.split(SHORT[name])]
        command = [sys.executable, str(FOLDER / f"{name}.py"), *options, "--json", str(file)]
        # One thread, so that ratios do not depend on the number of cores.
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            said = done.stderr.strip().splitlines()
            reason = said[-1] if said else f"it ended with {done.returncode}"
            raise Unmeasured(reason, skipped=done.returncode == harness.SKIPPED)
        ratios: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["ratios"]
    return {f"{name}: {title}": ratio for title, ratio in ratios.items()}


def compare(stored: dict[str, Stored], measured: dict[str, float]) -> list[Row]:
    """Compares a script's stored ratios with those of its run."""
    rows = []
    for name in stored | measured:
        entry, ratio = stored.get(name), measured.get(name)
        if entry is None:
            rows.append(Row(name, None, ratio, "new"))
        elif ratio is None:
            rows.append(Row(name, entry.ratio, None, "FAILED: the run did not give it", failed=True))
        elif not ratio >= entry.ratio * (1 - entry.tolerance):
            lost = f"FAILED: below {entry.ratio * (1 - entry.tolerance):.3f}"
            rows.append(Row(name, entry.ratio, ratio, lost, failed=True))
        else:
            better = ratio > entry.ratio * (1 + entry.tolerance)
            rows.append(Row(name, entry.ratio, ratio, "better" if better else "holds"))
    return rows


def renew(stored: dict[str, Stored], measured: dict[str, float], machine: str) -> dict[str, Stored]:
    """Makes a script's new entries: tolerances stay, and ratios it no longer gives are dropped."""
    date = datetime.date.today().isoformat()
    return {
        name: Stored(round(ratio, 4), stored[name].tolerance if name in stored else TOLERANCE, date, machine)
        for name, ratio in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(SHORT), metavar="NAME", help=f"run only these, of: {', '.join(SHORT)}"
    )
    parser.add_argument("--update", action="store_true", help="store the measured ratios in ratios.json")
    args = parser.parse_args()

    stored = {name: Stored(**entry) for name, entry in json.loads(RATIOS.read_text(encoding="utf-8")).items()}
    names = args.only or list(SHORT)
    rows: list[Row] = []
    broken = False
    here = harness.machine() if args.update else ""
    begun = time.perf_counter()
    for number, (name, result) in enumerate(results(names), 1):
        seconds = time.perf_counter() - begun
        print(
            f"{number} of {len(names)}: {name} is done, {seconds:.0f} s after the start", file=sys.stderr, flush=True
        )
        known = {title: entry for title, entry in stored.items() if title.startswith(f"{name}: ")}
        try:
            measured = result.result()
        except Unmeasured as unmeasured:
            verdict = f"{'skipped' if unmeasured.skipped else 'FAILED'}: {unmeasured}"
            rows.append(Row(name, None, None, verdict))
            broken |= not unmeasured.skipped
        else:
            rows += compare(known, measured)
            if args.update:
                stored = {title: entry for title, entry in stored.items() if title not in known}
                stored |= renew(known, measured, here)
                # Written after each script, so that an interruption loses nothing.
                content = {title: asdict(entry) for title, entry in sorted(stored.items())}
                RATIOS.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    table = harness.rich_table("ratio", "stored", "measured", "verdict", left=("ratio", "verdict"))
    for row in rows:
        figures = ("" if figure is None else f"{figure:.3f}" for figure in (row.stored, row.measured))
        table.add_row(row.name, *figures, row.verdict)
    harness.show(table, width=150)
    if broken or (not args.update and any(row.failed for row in rows)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
