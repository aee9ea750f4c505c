"""A short version of every benchmark, its ratios beside the stored ones: five to nine minutes on two cores that do
nothing else.

Every script of this folder writes with `--json FILE`, among other things, an object "ratios" of names and numbers: each is
of two things measured side by side in that run, and a larger one is better. They are compared with `ratios.json`, never
speeds, which differ from machine to machine. A ratio fails when it is smaller than the stored one by more than the share
that is its tolerance. A script that finds no GPU, or none of the data that it reads, says so in its last line and exits
with 77, as automake's tests do: it is skipped.

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
from typing import NamedTuple, NoReturn

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
RATIOS = FOLDER / "ratios.json"
SKIPPED = 77
# Of a ratio that is stored for the first time; those in the file are set by hand, by how far runs lie apart.
TOLERANCE = 0.2
# The arguments of each script's short version; FOLDER is an empty one. What a GPU would do faster stays on the CPU, because the
# stored ratios are a CPU's.
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
    "startup": "--rounds 3",
}
# Their ratios are of losses, memory or CPU time, so two of them run at a time, the longest first; the clock's need the
# machine alone.
UNTIMED = {"data_memory", "lr_scaling", "pretrain_quality", "quantized", "startup", "tasks"}


@dataclass
class Stored:
    """One entry of `ratios.json`.

    Attributes:
        ratio: As it was measured.
        tolerance: The share of it that a run may lose.
        date: Of the measurement.
        machine: In words.
    """

    ratio: float
    tolerance: float
    date: str
    machine: str


class Row(NamedTuple):
    """A line of the table."""

    name: str
    stored: float | None
    measured: float | None
    verdict: str
    failed: bool = False


class Unmeasured(Exception):
    """A script gave no ratios; the message says why, `skipped` whether that is no failure."""

    def __init__(self, reason: str, skipped: bool) -> None:
        super().__init__(reason)
        self.skipped = skipped


def skip(reason: str) -> NoReturn:
    """Ends a script that lacks what it needs."""
    print(reason, file=sys.stderr)
    raise SystemExit(SKIPPED)


def results(names: list[str]) -> Iterator[tuple[str, Future[dict[str, float]]]]:
    """Runs the scripts, those that look at the clock first and alone; each as it is done."""
    for jobs, group in ((1, [n for n in names if n not in UNTIMED]), (2, [n for n in names if n in UNTIMED])):
        with ThreadPoolExecutor(jobs) as pool:
            begun = {pool.submit(run, name): name for name in group}
            for future in as_completed(begun):
                yield begun[future], future


def run(name: str) -> dict[str, float]:
    """The ratios of a script's short version, run in a process of its own.

    Raises:
        Unmeasured: When it skipped itself or failed.
    """
    print(f"{name}.py {SHORT[name]}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder, "figures.json")
        options = [folder if word == "FOLDER" else word for word in shlex.split(SHORT[name])]
        command = [sys.executable, str(FOLDER / f"{name}.py"), *options, "--json", str(file)]
        # One thread, so that a ratio does not depend on the number of cores.
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            said = done.stderr.strip().splitlines()
            reason = said[-1] if said else f"it ended with {done.returncode}"
            raise Unmeasured(reason, skipped=done.returncode == SKIPPED)
        ratios: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["ratios"]
    return {f"{name}: {title}": ratio for title, ratio in ratios.items()}


def compare(stored: dict[str, Stored], measured: dict[str, float]) -> list[Row]:
    """What is stored of a script beside what its run gave."""
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
    """A script's entries anew: tolerances stay, and what it gives no longer goes."""
    date = datetime.date.today().isoformat()
    return {
        name: Stored(round(ratio, 4), stored[name].tolerance if name in stored else TOLERANCE, date, machine)
        for name, ratio in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SHORT), metavar="NAME", help=f"of {', '.join(SHORT)}")
    parser.add_argument("--update", action="store_true", help="store what is measured in ratios.json")
    args = parser.parse_args()

    stored = {name: Stored(**entry) for name, entry in json.loads(RATIOS.read_text(encoding="utf-8")).items()}
    names = args.only or list(SHORT)
    rows: list[Row] = []
    broken = False
    here = machine() if args.update else ""
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
                # After each, so that what was measured survives an interruption.
                content = {title: asdict(entry) for title, entry in sorted(stored.items())}
                RATIOS.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    table = Table("ratio", "stored", "measured", "verdict")
    for row in rows:
        figures = ("" if figure is None else f"{figure:.3f}" for figure in (row.stored, row.measured))
        table.add_row(row.name, *figures, row.verdict)
    Console(width=150).print(table)
    if broken or (not args.update and any(row.failed for row in rows)):
        raise SystemExit(1)


def machine() -> str:
    """The processor in words."""
    import torch

    from chatgpt_hf.report import hardware_name

    return f"{hardware_name(torch.device('cpu'))}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
