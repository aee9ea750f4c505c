"""Decoding on a GPU: tokens per second, and the share of the bandwidth that its memory was measured to have.

A model of GPT-2-small's shape with random weights, by transformers' `generate`: the stock GPT-2 class and ours in bfloat16, ours with
a static cache and compiled steps (CUDA graphs), and ours with int8 and int4 weights, compiled. Batch 1 reads every weight of the
layers and the head once a token, which makes GB/s; batch 64 shows throughput. They answer in turn, in rounds, the median counts.

    python benchmarks/gpu.py --json gpu.json

For a step of training and its share of the peak: python benchmarks/train_speed.py --size gpt2 --device cuda. Without a GPU this script says
so and ends with 77; --device cpu tries it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import skip
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, quantize_model
from chatgpt_hf.inference.compiling import StaticPrefix, compile_config, missing_compiler
from chatgpt_hf.training.hardware import synchronize

# Name, quantization, compiled, bytes a weight.
ARMS: dict[str, tuple[str | None, bool, float]] = {
    "stock bfloat16": (None, False, 2.0),
    "ours bfloat16": (None, False, 2.0),
    "ours bfloat16 compiled": (None, True, 2.0),
    "ours int8 compiled": ("int8-weight-only", True, 1.0),
    "ours int4 compiled": ("int4", True, 0.5 + 4 / 32),
}


def copy_bandwidth(device: torch.device, megabytes: int) -> float:
    """Bytes per second, read and written, of copying so much memory."""
    source = torch.ones(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        synchronize(device)
        begun = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * source.numel() * 4 / min(seconds)


def make(arm: str, device: torch.device, sizes: dict[str, int]) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """What answers (batch, seq) ids with so many tokens each."""
    quantization, compiled, _ = ARMS[arm]
    torch.manual_seed(0)
    model: PreTrainedModel
    if arm.startswith("stock"):
        names = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}
        model = GPT2LMHeadModel(GPT2Config(**{names.get(name, name): value for name, value in sizes.items()}))
    else:
        model = ChatGPTForCausalLM(ChatGPTConfig.gpt2("gpt2", **sizes))
    model = model.to(device, torch.bfloat16).eval()
    if quantization:
        quantize_model(model, quantization)
    caches: dict[int, Any] = {}

    def answer(ids: torch.Tensor, count: int) -> torch.Tensor:
        config = GenerationConfig(do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0)
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "generation_config": config}
        if not compiled:
            return model.generate(ids, **options)
        config.compile_config = compile_config()
        prefix = caches.setdefault(len(ids), StaticPrefix(model, ids.shape[1] + count))
        return prefix.generate(ids, **options)

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), metavar="ARM", help=f"of: {', '.join(ARMS)}")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, to try the script")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    if args.device == "cuda" and not torch.cuda.is_available():
        skip("There is no GPU here: benchmarks/gpu.py measures one.")
    device = torch.device(args.device)
    sizes = (
        {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512} if args.tiny else {}
    )
    config = ChatGPTConfig.gpt2("gpt2", **sizes)
    weights = 12 * config.num_hidden_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size
    peak = copy_bandwidth(device, 16 if args.tiny else 1000)
    lacking = missing_compiler(device)
    if lacking is not None:
        print(f"Compiled means are left out: {lacking} is missing.", file=sys.stderr)
    chosen = [arm for arm in args.arms or ARMS if lacking is None or not ARMS[arm][1]]
    arms = {arm: make(arm, device, sizes) for arm in chosen}
    results: dict[str, dict[int, list[float]]] = {arm: {1: [], 64: []} for arm in arms}
    for turn in range(args.rounds + 1):
        for batch in (1, 64):
            ids = torch.randint(0, config.vocab_size, (batch, 16), device=device)
            for arm, answer in arms.items():
                synchronize(device)
                begun = time.perf_counter()
                answer(ids, args.tokens)
                synchronize(device)
                # The first turn compiles.
                if turn:
                    results[arm][batch].append(time.perf_counter() - begun)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}: copies {peak / 1e9:.0f} GB/s\n")
    print("| | batch 1, tokens/s | GB/s of weights | of the bandwidth | batch 64, tokens/s |\n|---|---|---|---|---|")
    figures = {}
    for arm, seconds in results.items():
        one, many = (batch * args.tokens / statistics.median(seconds[batch]) for batch in (1, 64))
        rate = one * weights * ARMS[arm][2]
        figures[arm] = {"batch 1": one, "batch 64": many, "bandwidth": rate, "share": rate / peak}
        print(f"| {arm} | {one:.0f} | {rate / 1e9:.0f} | {rate / peak:.0%} | {many:.0f} |")
    first = figures[next(iter(figures))]
    ratios = {
        f"{arm}, {case}": row[case] / first[case] for arm, row in figures.items() for case in ("batch 1", "batch 64")
    }
    if args.json:
        args.json.write_text(json.dumps({"ratios": ratios, "figures": figures, "device": name}, indent=2) + "\n")


if __name__ == "__main__":
    main()
