"""Peak memory and time of the language-model loss: whole logits against the chunked form.

Both paths compute the loss of one head, (rows, width) hidden states times a (vocab, width) matrix, and its gradients, from the
same random numbers. Each runs in a separate process, because a process never gives its peak back. On a CPU the memory is how
far the peak resident set rises above what the inputs take; on CUDA it is `torch.cuda.max_memory_allocated` above the inputs.
The script fails where the two losses or gradients disagree.
"""

import argparse
import json
import sys
from typing import Any

import harness
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from chatgpt_hf.model.loss_chatgpt import chunked_causal_lm_loss
from chatgpt_hf.training.hardware import synchronize

PATHS = ("whole logits", "chunked")
# How far the two may differ, relative to the loss and to the norm of a gradient.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def measure(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one path once, forward and backward, in this process."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    where = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    hidden = torch.randn(1, args.rows, args.width, **where).requires_grad_()
    weight = (torch.randn(args.vocab, args.width, **where) * 0.02).requires_grad_()
    labels = torch.randint(args.vocab, (1, args.rows), device=args.device)
    # A small product first: loading kernels and starting threads is no part of the loss.
    warm = torch.randn(8, 8, **where, requires_grad=True)
    (warm @ warm).log_softmax(-1).sum().backward()

    def step() -> torch.Tensor:
        if path == "chunked":
            loss = chunked_causal_lm_loss(hidden, weight, labels)
        else:
            loss = ForCausalLMLoss(hidden @ weight.T, labels, vocab_size=args.vocab)
        loss.backward()
        return loss

    before = harness.held_bytes(args.device)
    loss, seconds = harness.timed(step, wait=lambda: synchronize(torch.device(args.device)))
    memory = harness.peak_bytes(args.device) - before
    norms = [tensor.grad.float().norm().item() for tensor in (hidden, weight)]
    return {"path": path, "seconds": seconds, "gigabytes": memory / 1e9, "loss": loss.item(), "gradient_norms": norms}


def check_agreement(results: list[dict[str, Any]], tolerance: float) -> None:
    whole, chunked = results
    pairs = zip([whole["loss"], *whole["gradient_norms"]], [chunked["loss"], *chunked["gradient_norms"]], strict=True)
    for name, (expected, found) in zip(("loss", "hidden gradient", "weight gradient"), pairs, strict=True):
        if not abs(found - expected) <= tolerance * abs(expected):
            raise SystemExit(f"The paths disagree: {name} is {expected} from whole logits and {found} chunked.")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rows", type=int, default=8192, help="tokens in the batch (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=50257, help="entries of the vocabulary (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="width of the hidden states (default: %(default)s)")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32", help="default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU (default: torch's own choice)")
    parser.add_argument("--only", choices=PATHS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return

    command = [sys.executable, __file__, *sys.argv[1:], "--only"]
    outputs = [harness.run_apart(f"The {path!r} path", [*command, path]) for path in PATHS]
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
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

    settings = {name: getattr(args, name) for name in ("rows", "vocab", "width", "dtype", "device", "threads")}
    better = {f"whole/chunked {name}": 1 / ratio for name, ratio in ratios.items()}
    harness.write_json(
        args.json,
        better,
        settings=settings | {"torch": torch.__version__},
        results=results,
        chunked_over_whole=ratios,
    )


if __name__ == "__main__":
    main()
