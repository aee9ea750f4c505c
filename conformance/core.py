"""Tests the package in a separate environment with its core dependencies only: what must work there, and what must name a missing extra.

Builds the package from the checkout, installs it with the releases of constraints.txt, and runs `with_core.py` and commands there.
"""

import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from environments import environment_variables, install, make_environment

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("with_core.py")
PIP = "which is not installed: pip install 'chatgpt-hf["


def make_core() -> Path:
    """The interpreter of an environment with the core dependencies, and the package as it is in the checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch_here = f"torch=={torch.__version__.split('+')[0]}"
    python = make_environment("core", [torch_here, *project["dependencies"]], ROOT / "constraints.txt")
    install(python, "--no-deps", "--force-reinstall", str(ROOT))
    subprocess.run([str(python), "-m", "pip", "check", "-q"], check=True)
    return python


class Core:
    """Runs programs in the environment and prints what came of each.

    Attributes:
        failed: Whether one did not do what it must.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        self.failed = False
        self._python = python
        self._folder = folder

    def works(self, *command: str, python: bool = False) -> None:
        """Runs a command that must end with 0."""
        result, seconds = self._run(command, python)
        self._report(result.returncode == 0, command, seconds, result.stdout if python else "")
        if result.returncode:
            print(result.stdout[-2000:], result.stderr[-4000:], sep="\n")

    def refuses(self, extra: str, *command: str) -> None:
        """Runs a command that must end with 2 and one line on stderr, which names the extra."""
        result, seconds = self._run(command)
        *before, line = result.stderr.rstrip().split("\n")
        right = result.returncode == 2 and line.startswith("error: ") and line.endswith(f"{PIP}{extra}]'")
        right = right and "Traceback" not in result.stderr and not any(text.startswith("error") for text in before)
        self._report(right, command, seconds, line)
        if not right:
            print(f"exit code {result.returncode}", result.stdout[-2000:], result.stderr[-4000:], sep="\n")

    def _run(self, command: tuple[str, ...], python: bool = False) -> tuple[subprocess.CompletedProcess[str], float]:
        start = time.perf_counter()
        program = [str(self._python), "-I"] if python else [str(self._python.with_name("chatgpt-hf"))]
        variables = environment_variables(self._folder / "home")
        result = subprocess.run([*program, *command], capture_output=True, text=True, env=variables, cwd=self._folder)
        return result, time.perf_counter() - start

    def _report(self, right: bool, command: tuple[str, ...], seconds: float, words: str) -> None:
        self.failed |= not right
        shown = " ".join(Path(word).name if word.startswith("/") else word for word in command)
        print(f"{'ok    ' if right else 'FAILED'} {shown} ({seconds:.0f} s)")
        for line in words.strip().split("\n") if words.strip() else ():
            print(f"       {line}")


def main() -> int:
    start = time.perf_counter()
    python = make_core()
    print(f"{python.parents[1]}, made in {time.perf_counter() - start:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        core = Core(python, folder)
        # Makes the folders `ours` and `gpt2`.
        core.works(str(SCRIPT), str(folder), python=True)
        core.works("--help")
        core.works("convert", "gpt2", "converted")
        core.works("convert", "converted", "back", "--to", "gpt2")
        core.works(str(SCRIPT), str(folder), "--same", "gpt2", "back", python=True)
        core.works("generate", "ours", "--prompt", "Once", "--max_new_tokens", "4")
        (folder / "text.txt").write_text("Once upon a time.\n" * 50, encoding="utf-8")
        core.refuses("train", "pretrain", "--corpus", "text.txt", "--output_dir", "run")
        core.refuses("train", "sft", "--model_name_or_path", "ours", "--dataset", "chats.jsonl", "--output_dir", "run")
        core.refuses("serve", "serve", "ours")
        core.refuses("ui", "ui", "ours")
        core.refuses("quantize", "quantize", "ours", "quantized")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return int(core.failed)


if __name__ == "__main__":
    raise SystemExit(main())
