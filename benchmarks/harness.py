"""Shared by the benchmarks: options, result files, timing in turn, processes, memory, models, answers and tables.

Only the standard library is imported at the top, since some benchmarks measure the memory of processes that import this file.
"""

import argparse
import atexit
import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from transformers import GenerationConfig, PreTrainedModel

    from chatgpt_hf import ChatGPTConfig

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("CHATGPT_HF_DATA") or ROOT.parent / "shared" / "data")
# The command line as a process; the words of a command follow.
CLI = [sys.executable, "-c", "from chatgpt_hf_cli import main; main()"]
# The exit status of a script that has nothing to measure here, as automake's tests use it.
SKIPPED = 77
# Fields of a model for trying a script out.
TINY = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
# Layers, heads, width of the quickstart's model.
QUICKSTART = (4, 3, 192)

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


# Options and result files.


def parser(
    doc: str | None, *, rounds: int | None = None, threads: int | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Makes a parser with `--json`, and with `--rounds` and `--threads` where their defaults are given.

    Args:
        doc: The script's docstring, which `--help` prints as it is.
        rounds: Default of `--rounds`.
        threads: Default of `--threads`.
        epilog: Text after the options.
    """
    made = argparse.ArgumentParser(
        description=doc, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help="measurements of each (default: %(default)s)")
    if threads is not None:
        made.add_argument("--threads", type=int, default=threads, help="threads of torch (default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return made


def write_json(file: Path | None, ratios: Mapping[str, float], **figures: object) -> None:
    """Writes figures and the ratios that `bench.py` compares, if `--json` names a file."""
    if file is not None:
        file.write_text(json.dumps({"ratios": ratios, **figures}, indent=2) + "\n", encoding="utf-8")


def skip(reason: str) -> NoReturn:
    """Ends a script that lacks a GPU or data it needs."""
    print(reason, file=sys.stderr)
    raise SystemExit(SKIPPED)


def prepare(threads: int | None = None) -> None:
    """Silences transformers' warnings, and sets the threads of torch if a number is given."""
    import torch
    from transformers.utils import logging

    if threads is not None:
        torch.set_num_threads(threads)
    logging.set_verbosity_error()


# Time.


class Timed(NamedTuple, Generic[Result]):
    """Returns a call's result and the seconds it took."""

    result: Result
    seconds: float


def no_wait() -> None:
    """A CPU is done when a call returns."""


def timed(call: Callable[..., Result], *arguments: Any, wait: Callable[[], None] = no_wait) -> Timed[Result]:
    """Times a call.

    Args:
        call: What to call.
        arguments: Its arguments.
        wait: Waits for an accelerator's work; called before each look at the clock.
    """
    wait()
    begun = time.perf_counter()
    result = call(*arguments)
    wait()
    return Timed(result, time.perf_counter() - begun)


def in_turn(
    arms: Mapping[Key, Callable[[], Result]], rounds: int, *, warm_up: bool = False, rotate: bool = False
) -> dict[Key, list[Result]]:
    """Calls each arm once a round, so that other work on the machine slows all of them alike.

    Args:
        arms: What to compare, by name.
        rounds: How often each arm is called.
        warm_up: Begin with a round whose results are dropped.
        rotate: Begin each round with another arm.

    Returns:
        The results of each arm, one for each round.
    """
    results: dict[Key, list[Result]] = {name: [] for name in arms}
    names = list(arms)
    if warm_up:
        print("Warming up", file=sys.stderr)
        for name in names:
            arms[name]()
    for index in range(rounds):
        print(f"Round {index + 1} of {rounds}", file=sys.stderr)
        first = index % len(names) if rotate else 0
        for name in names[first:] + names[:first]:
            results[name].append(arms[name]())
    return results


def median_seconds(rounds: Iterable[Timed]) -> float:
    """The median time of an arm's rounds."""
    return statistics.median(timed.seconds for timed in rounds)


def round_ratios(figures: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratio of two arms in each round: other work on the machine changes more between rounds than within one."""
    return [figure / other for figure, other in zip(figures, others, strict=True)]


def fastest(call: Callable[[], object], times: int, wait: Callable[[], None] = no_wait) -> float:
    """The shortest time of several calls, in seconds."""
    return min(timed(call, wait=wait).seconds for _ in range(times))


# The machine.


def read_bandwidth() -> float:
    """Bytes per second that a sum over 400 MB reads, with the threads torch has."""
    import torch

    values = torch.ones(100_000_000)
    return values.nbytes / fastest(values.sum, 7)


def copy_bandwidth(device: "torch.device", megabytes: int) -> float:
    """Bytes per second, read and written, of copying this much memory on the device."""
    import torch

    from chatgpt_hf.training.hardware import synchronize

    source = torch.ones(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source), 10, lambda: synchronize(device))


def machine() -> str:
    """The processor, its threads and the release of torch, in words."""
    import torch

    from chatgpt_hf.reporting.report import hardware_name

    return f"{hardware_name(torch.device('cpu'))}, torch {torch.__version__}"


# Memory of this process.


def status_bytes(field: str) -> int | None:
    """A size from Linux' /proc/self/status; None on other systems."""
    file = Path("/proc/self/status")
    if not file.exists():
        return None
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has held so far, on CUDA or in resident pages."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = status_bytes("VmHWM")
    if peak is not None:
        # Unlike ru_maxrss, it leaves out the process that started this one.
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes(device: str = "cpu") -> int:
    """The memory this process holds now, or its peak where the system does not tell."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    held = status_bytes("VmRSS")
    return peak_bytes() if held is None else held


def reset_peak(device: str = "cpu") -> None:
    """Lets `peak_bytes` start again from what is held now, where the system can."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


# Processes.


def run_apart(name: str, command: Sequence[str], **environment: str) -> str:
    """Runs a command in a separate process and returns its output.

    Raises:
        SystemExit: When it fails: `name` and the end of its errors.
    """
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return done.stdout


class Usage(NamedTuple):
    """Resources that a process used: its largest resident set in MB, CPU seconds, and seconds by the clock."""

    megabytes: float
    cpu_seconds: float
    seconds: float


def usage(command: Sequence[str]) -> Usage:
    """Runs a command in a separate process and measures it.

    Raises:
        SystemExit: When it fails: the command and its output.
    """
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')}")
    # Linux counts kilobytes, macOS bytes.
    megabytes = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    return Usage(megabytes, used.ru_utime + used.ru_stime, seconds)


def start_worker(method: str, target: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """Starts a process that answers through a connection, its function's last argument.

    Args:
        method: `fork`, for a copy of this process with everything imported, or `spawn`, for an empty one.
        target: The function it runs.
        arguments: Those before the connection.
    """
    context: Any = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    return process, here


def receive(name: str, connection: Connection) -> Any:
    """The next answer of a worker.

    Raises:
        SystemExit: When the worker is gone, or answers with a dict that holds an `error`.
    """
    try:
        message = connection.recv()
    except EOFError:
        raise SystemExit(f"The process of {name} ended early: was there enough memory?") from None
    if isinstance(message, dict) and "error" in message:
        raise SystemExit(f"{name} failed:\n{message['error']}")
    return message


# Models and their answers.


def shaped_config(layers: int, heads: int, width: int, vocab: int, context: int, **options: Any) -> "ChatGPTConfig":
    """A configuration of this shape."""
    from chatgpt_hf import ChatGPTConfig

    return ChatGPTConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        **options,
    )


def random_model(folder: Path | None = None) -> str:
    """Saves a model of the quickstart's shape, random enough that its likeliest tokens stand out, and a tokenizer.

    Args:
        folder: Where to save it; by default a folder that is deleted when the script ends.

    Returns:
        The folder.
    """
    import torch

    from chatgpt_hf import ChatGPTForCausalLM, load_builtin, train_tokenizer

    tokenizer = train_tokenizer(load_builtin("builtin:python-docs")["train"]["text"], 4096, show_progress=False)
    torch.manual_seed(0)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = shaped_config(*QUICKSTART, vocab=len(tokenizer), context=256, initializer_range=0.2, **special)
    if folder is None:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ChatGPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def real_model(dtype: str) -> str:
    """Returns the folder of SmolLM2-135M-Instruct in `float32` or `bfloat16`; skips the script where it cannot be had."""
    spec = importlib.util.spec_from_file_location("real_model", ROOT / "tests" / "real_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return str(module.real_model(dtype))
    except module.Unavailable as error:
        skip(str(error))


def weights_read(config: "ChatGPTConfig") -> int:
    """The weights that one token reads in GPT-2's architecture: 12 squares of the width in each layer, and the head."""
    return 12 * config.num_hidden_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size


def megabytes(folder: Path, endings: tuple[str, ...] = (".safetensors",)) -> float:
    """The size of the files of a folder that end like this."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(endings)) / 1e6


def greedy(count: int, **options: Any) -> "GenerationConfig":
    """Greedy decoding of up to this many tokens; a model's own end token still ends an answer."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0, **options)


def greedy_answer(model: "PreTrainedModel", prompt: list[int], count: int) -> list[int]:
    """Exactly this many greedy tokens after a prompt: no end token, no penalty."""
    import torch

    ids = torch.tensor([prompt])
    options = {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **options)
    return found[0, len(prompt) :].tolist()


def llama_answer(model: Any, prompt: list[int], count: int) -> list[int]:
    """The same by llama.cpp: exactly this many greedy tokens."""
    model.reset()
    found: list[int] = []
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        found.append(token)
        if len(found) == count:
            break
    return found


def count_equal(answers: Sequence[object], others: Sequence[object]) -> int:
    """How many answers are equal to their counterparts."""
    return sum(answer == other for answer, other in zip(answers, others, strict=True))


# Tables.


def markdown_row(*cells: object) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def markdown_head(*titles: str) -> str:
    """The first two lines of a Markdown table."""
    return f"{markdown_row(*titles)}\n|{'---|' * len(titles)}"


def rich_table(*titles: str, left: Iterable[str] = (), title: str | None = None) -> "Table":
    """An empty table of right-aligned columns, except those in `left`."""
    from rich.table import Table

    table = Table(title=title)
    for name in titles:
        table.add_column(name, justify="left" if name in left else "right")
    return table


def show(table: "Table", width: int) -> None:
    """Prints a table, however narrow the terminal is."""
    from rich.console import Console

    Console(width=width).print(table)
