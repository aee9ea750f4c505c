"""Decoding on a GPU: tokens per second, and the share of the measured memory bandwidth.

A model of GPT-2-small's shape with random weights answers with transformers' `generate`: the stock GPT-2 class and ours in
bfloat16, ours with a static cache and compiled steps (CUDA graphs), and ours compiled with int8 and int4 weights. At batch 1
every token reads all weights of the layers and the head once, which gives GB/s; batch 64 shows throughput. All take turns; the
median of the rounds counts.

    python benchmarks/gpu.py --json gpu.json

For a training step and its share of the peak: python benchmarks/train_speed.py --size gpt2 --device cuda. Without a GPU this
script says so and ends with 77; --device cpu tries it.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, quantize_model
from chatgpt_hf.inference.compiling import StaticPrefix, compile_config, missing_compiler
from chatgpt_hf.training.hardware import synchronize

# Quantization, compiled, bytes per weight.
ARMS: dict[str, tuple[str | None, bool, float]] = {
    "stock bfloat16": (None, False, 2.0),
    "ours bfloat16": (None, False, 2.0),
    "ours bfloat16 compiled": (None, True, 2.0),
    "ours int8 compiled": ("int8-weight-only", True, 1.0),
    "ours int4 compiled": ("int4", True, 0.5 + 4 / 32),
}


def make(arm: str, device: torch.device, sizes: dict[str, int]) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Makes a function that answers (batch, seq) ids with as many tokens as asked for."""
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
        config = harness.greedy(count)
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "generation_config": config}
        if not compiled:
            return model.generate(ids, **options)
        config.compile_config = compile_config()
        prefix = caches.setdefault(len(ids), StaticPrefix(model, ids.shape[1] + count))
        return prefix.generate(ids, **options)

    return answer


def main() -> None:
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument(
        "--arms", nargs="*", choices=list(ARMS), metavar="ARM", help=f"measure these, of: {', '.join(ARMS)}"
    )
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    args = parser.parse_args()
    harness.prepare()
    if args.device == "cuda" and not torch.cuda.is_available():
        harness.skip("There is no GPU here: benchmarks/gpu.py measures one.")
    device = torch.device(args.device)
    sizes = {**harness.TINY, "vocab_size": 512} if args.tiny else {}
    config = ChatGPTConfig.gpt2("gpt2", **sizes)
    weights = harness.weights_read(config)
    peak = harness.copy_bandwidth(device, 16 if args.tiny else 1000)
    lacking = missing_compiler(device)
    if lacking is not None:
        print(f"Compiled arms are left out: {lacking} is missing.", file=sys.stderr)
    chosen = [arm for arm in args.arms or ARMS if lacking is None or not ARMS[arm][1]]
    answers = {arm: make(arm, device, sizes) for arm in chosen}
    prompts = {batch: torch.randint(0, config.vocab_size, (batch, 16), device=device) for batch in (1, 64)}
    wait = partial(synchronize, device)
    arms = {
        (arm, batch): partial(harness.timed, answer, ids, args.tokens, wait=wait)
        for batch, ids in prompts.items()
        for arm, answer in answers.items()
    }
    # The warm-up compiles.
    rounds = harness.in_turn(arms, args.rounds, warm_up=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}: copies {peak / 1e9:.0f} GB/s\n")
    titles = ("batch 1, tokens/s", "GB/s of weights", "of the bandwidth", "batch 64, tokens/s")
    print(harness.markdown_head("", *titles))
    figures = {}
    for arm in answers:
        one, many = (batch * args.tokens / harness.median_seconds(rounds[arm, batch]) for batch in prompts)
        rate = one * weights * ARMS[arm][2]
        figures[arm] = {"batch 1": one, "batch 64": many, "bandwidth": rate, "share": rate / peak}
        cells = (f"{one:.0f}", f"{rate / 1e9:.0f}", f"{rate / peak:.0%}", f"{many:.0f}")
        print(harness.markdown_row(arm, *cells))
    first = figures[next(iter(figures))]
    ratios = {
        f"{arm}, {case}": row[case] / first[case] for arm, row in figures.items() for case in ("batch 1", "batch 64")
    }
    harness.write_json(args.json, ratios, figures=figures, device=name)


if __name__ == "__main__":
    main()
