"""What fewer bits cost a trained model: size, perplexity and greedy answers, by torchao's own layers and by the CPU's kernels.

    python benchmarks/quantized.py --model runs/quickstart/base
    python benchmarks/quantized.py --model runs/novels --text held-out.txt

The text is cut into rows of the model's context; without --text it is the held-out documents of `builtin:python-docs`. Prompts are
the first 24 tokens of rows, answers 48 greedy tokens.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from serving import random_model
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from chatgpt_hf import load_builtin, load_model, load_tokenizer, use_cpu_kernels
from chatgpt_hf.evaluation.scoring import negative_log_likelihoods
from chatgpt_hf.inference.quantization import QUANTIZATIONS, quantize_folder
from chatgpt_hf.tokenization_chatgpt import encode_documents


def perplexity(model: PreTrainedModel, rows: list[torch.Tensor]) -> float:
    pieces = [(row.tolist(), 1) for row in rows]
    nats = negative_log_likelihoods(model, pieces, pad_token_id=0, batch_size=1, progress=False)
    return math.exp(nats.sum() / sum(len(row) - 1 for row in rows))


def answers(model: PreTrainedModel, rows: list[torch.Tensor]) -> list[list[int]]:
    options = {"max_new_tokens": 48, "do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 0}
    found = []
    for row in rows:
        prompt = row[None, :24]
        mask = torch.ones_like(prompt)
        found.append(model.generate(prompt, attention_mask=mask, eos_token_id=None, **options)[0, 24:].tolist())
    return found


def megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a trained model (default: the quickstart's shape, random weights)")
    parser.add_argument("--text", type=Path, help="a text that it did not learn from")
    parser.add_argument("--rows", type=int, default=40, help="of the text (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    args.model = args.model or random_model()
    tokenizer = load_tokenizer(args.model)
    context = load_model(args.model).config.max_position_embeddings
    texts = [args.text.read_text("utf-8")] if args.text else load_builtin("builtin:python-docs")["test"]["text"]
    encoded = (torch.tensor(ids) for ids in encode_documents(tokenizer, texts))
    rows = [row for ids in encoded for row in ids.split(context) if len(row) >= 64][: args.rows]
    forms: dict[str, tuple[Callable[[], PreTrainedModel], float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in ("float32", "bfloat16", *QUANTIZATIONS):
            folder = Path(work) / name
            if name in QUANTIZATIONS:
                quantize_folder(args.model, folder, name)
            else:
                load_model(args.model, dtype=getattr(torch, name)).save_pretrained(folder)
            forms[name] = (lambda f=folder: load_model(f).eval(), megabytes(folder))
        print(
            f"{args.model}: {len(rows)} rows, {sum(map(len, rows))} tokens; {min(len(rows), args.prompts)} answers\n\n"
            "| | MB | perplexity | by the kernels | to float32 | answers as in float32: torchao, kernels |\n"
            "|---|---|---|---|---|---|"
        )
        figures = {}
        for name, (make, size) in forms.items():
            plain = make()
            own = {"perplexity": perplexity(plain, rows), "answers": answers(plain, rows[: args.prompts])}
            fast = use_cpu_kernels(make())
            kernels = {"perplexity": perplexity(fast, rows), "answers": answers(fast, rows[: args.prompts])}
            figures[name] = {"megabytes": size, "plain": own, "kernels": kernels}
            exact = figures["float32"]["plain"]
            same = [
                sum(one == other for one, other in zip(form["answers"], exact["answers"], strict=True))
                for form in (own, kernels)
            ]
            print(
                f"| {name} | {size:.1f} | {own['perplexity']:.3f} | {kernels['perplexity']:.3f} "
                f"| {kernels['perplexity'] / exact['perplexity'] - 1:+.2%} | {same[0]}, {same[1]} |",
                flush=True,
            )
    ratios = {
        f"{name}, perplexity": figures["float32"]["plain"]["perplexity"] / form["kernels"]["perplexity"]
        for name, form in figures.items()
    }
    if args.json:
        args.json.write_text(json.dumps({"ratios": ratios, "figures": figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
