"""Peak memory and time of the language-model loss: whole logits against the chunked form.

Both paths compute the loss of one head, (rows, width) hidden states times a (vocab, width) matrix, and its gradients, on
the same random numbers. Each runs in a process of its own, because a process never gives its peak back. On a CPU the
memory is the growth of the peak resident set (`ru_maxrss`) over what the inputs take; on CUDA it is what
`torch.cuda.max_memory_allocated` counts above them. The script fails where the two losses or gradients disagree.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from chatgpt_hf.model.loss_chatgpt import chunked_causal_lm_loss

PATHS = ("whole logits", "chunked")
# How far apart the two may be, relative to the loss and to the norm of a gradient.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def peak_bytes(device: str) -> int:
    """The largest amount of memory that this process has held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes(device: str) -> int:
    """The memory that this process holds now: a peak may be left from the process that started it."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_bytes(device)
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one path once, forward and backward, in this process."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    where = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    hidden = torch.randn(1, args.rows, args.width, **where).requires_grad_()
    weight = (torch.randn(args.vocab, args.width, **where) * 0.02).requires_grad_()
    labels = torch.randint(args.vocab, (1, args.rows), device=args.device)
    # A small run first: kernels and thread pools are no part of the loss.
    warm = torch.randn(8, 8, **where, requires_grad=True)
    (warm @ warm).log_softmax(-1).sum().backward()
    synchronize(args.device)

    before, start = held_bytes(args.device), time.perf_counter()
    if path == "chunked":
        loss = chunked_causal_lm_loss(hidden, weight, labels)
    else:
        loss = ForCausalLMLoss(hidden @ weight.T, labels, vocab_size=args.vocab)
    loss.backward()
    synchronize(args.device)
    seconds, memory = time.perf_counter() - start, peak_bytes(args.device) - before
    norms = [tensor.grad.float().norm().item() for tensor in (hidden, weight)]
    return {"path": path, "seconds": seconds, "gigabytes": memory / 1e9, "loss": loss.item(), "gradient_norms": norms}


def measure_apart(path: str) -> dict[str, Any]:
    """The same in a process of its own, with the arguments of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", path]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"The {path!r} path failed:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def check_agreement(results: list[dict[str, Any]], tolerance: float) -> None:
    whole, chunked = results
    pairs = zip([whole["loss"], *whole["gradient_norms"]], [chunked["loss"], *chunked["gradient_norms"]], strict=True)
    for name, (expected, found) in zip(("loss", "hidden gradient", "weight gradient"), pairs, strict=True):
        if not abs(found - expected) <= tolerance * abs(expected):
            raise SystemExit(f"The paths disagree: {name} is {expected} from whole logits and {found} chunked.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="tokens in the batch (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=50257, help="entries of the vocabulary (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="width of the hidden states (default: %(default)s)")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32", help="default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--only", choices=PATHS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return

    results = [measure_apart(path) for path in PATHS]
    check_agreement(results, TOLERANCE[args.dtype])
    whole, chunked = results
    print(
        f"{args.rows:,} rows x {args.vocab:,} entries x {args.width:,}, {args.dtype}, {args.device}, forward and backward\n"
    )
    print(f"{'':<14}{'peak memory':>13}{'time':>10}{'loss':>11}")
    for result in results:
        print(f"{result['path']:<14}{result['gigabytes']:>10.2f} GB{result['seconds']:>8.2f} s{result['loss']:>11.5f}")
    ratios = {name: chunked[name] / whole[name] for name in ("gigabytes", "seconds")}
    print(f"{'chunked/whole':<14}{ratios['gigabytes']:>13.3f}{ratios['seconds']:>10.3f}")
    if args.json:
        settings = {name: getattr(args, name) for name in ("rows", "vocab", "width", "dtype", "device", "threads")}
        settings |= {"torch": torch.__version__}
        better = {f"whole/chunked {name}": 1 / ratio for name, ratio in ratios.items()}
        figures = {"settings": settings, "results": results, "chunked_over_whole": ratios, "ratios": better}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
