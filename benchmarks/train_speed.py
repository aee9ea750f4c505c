"""Step time and peak memory of training: our model against transformers' GPT-2 of the same size, both with stock `Trainer`.

An arm is MODEL/MODE/DTYPE. The models: `gpt2` is `GPT2LMHeadModel`, `ours-gpt2` the same architecture in our code, `ours` our
default architecture. Two more train `ours` in another way: `ours-loop` in a plain loop without `Trainer`, `ours-callbacks` with
what our pretraining adds to `Trainer`: the guard against divergence, its figures, and stopping on SIGTERM. The modes are eager
and compiled (`torch_compile`), the dtypes float32 and bfloat16 (autocast).

Each arm is a separate process; all train on the same random rows. They take turns of a few steps each, so that other work on
the machine slows all of them alike, and each round gives a ratio. CPU time is that of all threads of the arm's process; on a
busy machine, trust it rather than the wall time. The memory is the peak after warm-up, minus what the process held before it
made the model; on a CPU, a compiled arm still holds what the compiler left behind.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
import traceback
from fnmatch import fnmatch
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import datasets
import harness
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.model.configuration_chatgpt import GPT2_ARCHITECTURE
from chatgpt_hf.reporting.report import hardware_name
from chatgpt_hf.training.callbacks import DivergenceGuard, StopOnSigterm
from chatgpt_hf.training.hardware import matmul_peak, synchronize
from chatgpt_hf.training.scaling import flops_per_token
from chatgpt_hf.training.trainer import PretrainTrainer

# Layers, heads, width, tokens in a row, rows in a batch on a CPU and on an accelerator, vocabulary. `tiny` is nanoGPT's example.
SIZES = {
    "tiny": (4, 4, 128, 64, (12, 12), 65),
    "small": (6, 6, 384, 256, (4, 32), 4096),
    "gpt2": (12, 12, 768, 1024, (1, 8), 50257),
}
REFERENCE = "gpt2/eager/float32"
ARMS = [
    *(f"{model}/{mode}/{dtype}" for dtype in ("float32", "bfloat16") for mode in ("eager", "compiled")
      for model in ("gpt2", "ours-gpt2", "ours")),
    "ours-loop/eager/float32",
    "ours-callbacks/eager/float32",
]  # fmt: skip
# Compared in addition to the reference: the costs of `Trainer` and of our callbacks.
PAIRS = [
    ("ours/eager/float32", "ours-loop/eager/float32"),
    ("ours-callbacks/eager/float32", "ours/eager/float32"),
]
WARMUP_STEPS = 3
# Below this share of float32's speed, bfloat16 is emulated and nobody would use it.
BFLOAT16_WORTH_RUNNING = 0.5


class Stop(Exception):
    """Ends an arm's training."""


class Turns(TrainerCallback):
    """Holds an arm before a step until it is its turn, and reports the times of its last turn."""

    def __init__(self, connection: Connection, steps: int, device: torch.device) -> None:
        self.connection, self.steps, self.device = connection, steps, device
        self.count = 0
        self.begun = time.perf_counter()
        self.before: tuple[float, float] = (0.0, 0.0)
        self.first_step = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        done = self.count - WARMUP_STEPS
        if self.count == 1:
            synchronize(self.device)
            self.first_step = time.perf_counter() - self.begun
        if done >= 0 and done % self.steps == 0:
            synchronize(self.device)
            wall, cpu = (now - then for now, then in zip(clocks(), self.before, strict=True))
            if done == 0:
                harness.reset_peak(self.device.type)
            self.connection.send({"wall": wall / self.steps, "cpu": cpu / self.steps, "first": self.first_step})
            if self.connection.recv() == "stop":
                raise Stop
            self.before = clocks()
        self.count += 1


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def build(model: str, size: str) -> PreTrainedModel:
    layers, heads, width, block, _, vocab = SIZES[size]
    torch.manual_seed(0)
    if model == "gpt2":
        shape = {"vocab_size": vocab, "n_positions": block, "n_embd": width, "n_layer": layers, "n_head": heads}
        special = {"bos_token_id": None, "eos_token_id": None}
        return GPT2LMHeadModel(GPT2Config(**shape, **special, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    return ChatGPTForCausalLM(our_config(model, size))


def our_config(model: str, size: str) -> ChatGPTConfig:
    layers, heads, width, block, _, vocab = SIZES[size]
    architecture = GPT2_ARCHITECTURE if "gpt2" in model else {}
    return harness.shaped_config(layers, heads, width, vocab, block, **architecture)


def random_rows(size: str, count: int) -> datasets.Dataset:
    block, vocab = SIZES[size][3], SIZES[size][5]
    ids = torch.randint(vocab, (count, block), generator=torch.Generator().manual_seed(0)).tolist()
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})


def train(arm: str, args: argparse.Namespace, rows: datasets.Dataset, turns: Turns) -> None:
    name, mode, dtype = arm.split("/")
    model = build(name, args.size)
    if name == "ours-loop":
        return plain_loop(model, args, rows, turns)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=args.scratch),
        max_steps=total_steps(args),
        per_device_train_batch_size=args.batch,
        learning_rate=1e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=dtype == "bfloat16",
        torch_compile=mode == "compiled",
        use_cpu=args.device.type == "cpu",
    )
    if name != "ours-callbacks":
        Trainer(model, arguments, default_data_collator, rows, callbacks=[turns]).train()
        return
    # A run measures this once, at its first log: it is no part of a step.
    matmul_peak(args.device, torch.float32)
    PretrainTrainer(
        model,
        arguments,
        default_data_collator,
        rows,
        callbacks=[turns, StopOnSigterm(), DivergenceGuard()],
        flops_per_token=flops_per_token(model.config),
    ).train()


def plain_loop(model: PreTrainedModel, args: argparse.Namespace, rows: datasets.Dataset, turns: Turns) -> None:
    """Does to the weights what `Trainer` does, and nothing else: clipped gradients, fused AdamW, a linear schedule."""
    model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, total_steps(args))
    loader = DataLoader(rows, args.batch, shuffle=True, collate_fn=default_data_collator)
    for batch in loader:
        turns.on_step_begin()
        loss = model(**{name: tensor.to(args.device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def total_steps(args: argparse.Namespace) -> int:
    return WARMUP_STEPS + args.rounds * args.steps + 1


def live(arm: str, args: argparse.Namespace, connection: Connection) -> None:
    """Trains an arm in this process, and sends its peak memory at the end."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            harness.prepare(args.threads)
            rows = random_rows(args.size, total_steps(args) * args.batch)
            # glibc keeps freed blocks up to the size of the largest one freed so far, and returns larger ones to the system:
            # 3,000 page faults in a step of `tiny`, a twentieth of its time. So all arms first free a block of the same size.
            torch.zeros(4 * 2**20)
            before = harness.held_bytes(args.device.type)
            with contextlib.suppress(Stop):
                train(arm, args, rows, Turns(connection, args.steps, args.device))
            connection.send({"peak": harness.peak_bytes(args.device.type) - before})
        except Exception:
            connection.send({"error": traceback.format_exc()})


def probe(args: argparse.Namespace, connection: Connection) -> None:
    """Measures this machine's best speeds, outside the process that the arms are forked from."""
    torch.set_num_threads(args.threads)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.randn(256, 256, device=args.device).to(dtype)
        seconds[dtype] = harness.fastest(partial(torch.mm, square, square), 5, partial(synchronize, args.device))
    speed = seconds[torch.float32] / seconds[torch.bfloat16]
    peaks = {"float32": matmul_peak(args.device, torch.float32)}
    if speed >= BFLOAT16_WORTH_RUNNING:
        peaks["bfloat16"] = matmul_peak(args.device, torch.bfloat16)
    connection.send({"bfloat16_speed": speed, "peaks": peaks, "hardware": hardware_name(args.device)})


def measure(arms: list[str], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Trains all arms in turn; returns the times of their rounds and their peak memory."""
    results: dict[str, dict[str, Any]] = {}
    connections: dict[str, Connection] = {}
    for arm in arms:
        _, connections[arm] = harness.start_worker("fork", live, arm, args)
        # One after another: another arm's compiler would slow the first step.
        results[arm] = {"first_step": harness.receive(arm, connections[arm])["first"]}

    def turn(arm: str) -> dict[str, float]:
        connections[arm].send("go")
        return harness.receive(arm, connections[arm])

    rounds = harness.in_turn({arm: partial(turn, arm) for arm in arms}, args.rounds, rotate=True)
    for arm, turns in rounds.items():
        connections[arm].send("stop")
        results[arm] |= {clock: [took[clock] for took in turns] for clock in ("wall", "cpu")}
        results[arm]["peak"] = harness.receive(arm, connections[arm])["peak"]
    return results


def ratios(results: dict[str, dict[str, Any]], arm: str, other: str, clock: str) -> list[float]:
    """The ratio of two arms' step times in each round."""
    return harness.round_ratios(results[arm][clock], results[other][clock])


def spread(each: list[float]) -> str:
    """The median and the quartiles, as text."""
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def choose(patterns: list[str], bfloat16: bool) -> list[str]:
    arms = [arm for arm in ARMS if any(fnmatch(arm, pattern) for pattern in patterns)]
    arms = [arm for arm in arms if bfloat16 or not arm.endswith("bfloat16")]
    if not arms:
        raise SystemExit(f"No arm matches {' '.join(patterns)}; there are:\n" + "\n".join(ARMS))
    return arms


def main() -> None:
    parser = harness.parser(__doc__, rounds=12, threads=torch.get_num_threads())
    parser.add_argument("--size", choices=list(SIZES), default="tiny", help="default: %(default)s")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="arms to measure, e.g. '*/eager/float32' (default: all)",
    )
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps in a turn (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="rows in a step (default: depends on --size)")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--force-bfloat16", action="store_true", help="run bfloat16 even where it is much slower than float32"
    )
    args = parser.parse_args()
    block = SIZES[args.size][3]
    args.batch = args.batch or SIZES[args.size][4][args.device.type != "cpu"]

    _, connection = harness.start_worker("fork", probe, args)
    machine = harness.receive("the probe", connection)
    slow = machine["bfloat16_speed"] < BFLOAT16_WORTH_RUNNING and not args.force_bfloat16
    arms = choose(args.arms, bfloat16=not slow)
    print(
        f"{args.size}: {args.batch} rows of {block} tokens a step; {args.rounds} rounds of {args.steps} steps\n"
        f"{machine['hardware']}; {args.threads} threads; torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(
        "matrix-product peak: "
        + ", ".join(f"{peak / 1e9:,.0f} GFLOP/s {name}" for name, peak in machine["peaks"].items())
    )
    if slow:
        print(
            f"bfloat16 is left out: a matrix product takes {1 / machine['bfloat16_speed']:.0f} times as long as in float32"
        )
    with tempfile.TemporaryDirectory() as args.scratch:
        results = measure(arms, args)

    columns = f"{'arm':<29}{'CPU ms':>9}{'wall ms':>9}{'tokens/s':>10}{'of peak':>9}{'first step':>12}{'memory':>11}"
    print(f"\n{columns}")
    for arm, result in results.items():
        name, _, dtype = arm.split("/")
        cpu, wall = (statistics.median(result[clock]) for clock in ("cpu", "wall"))
        speed = args.batch * block / wall
        peak = machine["peaks"].get(dtype)
        share = flops_per_token(our_config(name, args.size)) * speed / peak if peak else None
        result |= {"tokens_per_second": speed, "share_of_peak": share}
        shown = f"{share:>9.1%}" if share is not None else f"{'':>9}"
        print(
            f"{arm:<29}{1e3 * cpu:>9.1f}{1e3 * wall:>9.1f}{speed:>10,.0f}{shown}{result['first_step']:>10.1f} s"
            f"{result['peak'] / 1e6:>8,.0f} MB"
        )
    pairs = [(arm, REFERENCE) for arm in arms if REFERENCE in arms and arm != REFERENCE]
    pairs += [pair for pair in PAIRS if set(pair) <= set(arms)]
    print(f"\n{'step time, median of the rounds (quartiles)':<61}{'CPU':>23}{'wall':>25}")
    for arm, other in pairs:
        cpu, wall = (spread(ratios(results, arm, other, clock)) for clock in ("cpu", "wall"))
        print(f"{arm:<29} / {other:<29}{cpu:>23}{wall:>25}")
    settings = {name: str(value) for name, value in vars(args).items()} | machine
    settings |= {"torch": torch.__version__, "transformers": transformers.__version__}
    faster = {
        f"{arm} over {other}: steps per CPU second": 1 / statistics.median(ratios(results, arm, other, "cpu"))
        for arm, other in pairs
    }
    harness.write_json(args.json, faster, settings=settings, results=results)


if __name__ == "__main__":
    main()
