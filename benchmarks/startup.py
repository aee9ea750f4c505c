"""CPU seconds (user and system) until the command line answers, and until `import chatgpt_hf` is done.

Beside them, on the same machine and in turn, what they are held against: importing torch and transformers' Auto classes, and
TRL's command line. Each command runs in a separate process; the median of the rounds counts. The ratios are
`import torch, transformers` divided by each of ours: a larger one is faster.

    python benchmarks/startup.py
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

REFERENCE = "import torch, transformers"
CLI = ["-m", "chatgpt_hf_cli"]
COMMANDS = {
    REFERENCE: ["-c", "import torch; from transformers import AutoModelForCausalLM"],
    "trl --help": ["-c", "import sys; sys.argv = ['trl', '--help']; from trl.cli import main; main()"],
    "chatgpt-hf --help": [*CLI, "--help"],
    "chatgpt-hf sft --help": [*CLI, "sft", "--help"],
    "a typo": [*CLI, "quikstart"],
    "a wrong field": [*CLI, "sft", "--lerning_rate", "1e-3"],
    "import chatgpt_hf": ["-c", "import chatgpt_hf"],
}
OURS = list(COMMANDS)[2:]


def cpu_seconds(arguments: list[str]) -> float:
    """CPU seconds of a Python process with these arguments, including its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    # 2 is a usage error, which is what two of them are.
    if done.returncode not in (0, 2):
        raise SystemExit(done.stderr.decode())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()

    # The first run reads the files from the disk and writes compiled modules.
    for arguments in COMMANDS.values():
        cpu_seconds(arguments)
    rounds = [{name: cpu_seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(args.rounds)]
    seconds = {name: statistics.median(figures[name] for figures in rounds) for name in COMMANDS}
    ratios = {f"{REFERENCE}/{name}": seconds[REFERENCE] / seconds[name] for name in OURS}

    table = Table("command", "CPU seconds", f"times {REFERENCE}")
    for name, figure in seconds.items():
        table.add_row(name, f"{figure:.3f}", f"{figure / seconds[REFERENCE]:.2f}")
    Console(width=100).print(table)
    if args.json:
        args.json.write_text(json.dumps({"seconds": seconds, "ratios": ratios}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
