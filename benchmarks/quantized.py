"""Measures the cost of quantizing a trained model: size, perplexity and greedy answers, with torchao's layers and with our CPU kernels.

    python benchmarks/quantized.py --model runs/quickstart/base
    python benchmarks/quantized.py --model runs/novels --text held-out.txt

The text is cut into rows of the model's context; without --text it is the held-out documents of `builtin:python-docs`. Prompts
are the first 24 tokens of rows, answers 48 greedy tokens.
"""

import math
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import torch
from transformers import PreTrainedModel

from chatgpt_hf import load_builtin, load_model, load_tokenizer, use_cpu_kernels
from chatgpt_hf.evaluation.scoring import negative_log_likelihoods
from chatgpt_hf.inference.quantization import QUANTIZATIONS, quantize_folder
from chatgpt_hf.tokenization_chatgpt import encode_documents


def perplexity(model: PreTrainedModel, rows: list[torch.Tensor]) -> float:
    pieces = [(row.tolist(), 1) for row in rows]
    nats = negative_log_likelihoods(model, pieces, pad_token_id=0, batch_size=1, progress=False)
    return math.exp(nats.sum() / sum(len(row) - 1 for row in rows))


def figures_of(model: PreTrainedModel, rows: list[torch.Tensor], prompts: int) -> dict:
    """Perplexity on the rows, and answers to the beginnings of the first of them."""
    answers = [harness.greedy_answer(model, row[:24].tolist(), 48) for row in rows[:prompts]]
    return {"perplexity": perplexity(model, rows), "answers": answers}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", help="folder of a trained model (default: the quickstart's shape, random weights)")
    parser.add_argument("--text", type=Path, help="a text that the model was not trained on")
    parser.add_argument("--rows", type=int, default=40, help="rows of the text to use (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="number of answers (default: %(default)s)")
    args = parser.parse_args()
    harness.prepare(threads=1)

    args.model = args.model or harness.random_model()
    tokenizer = load_tokenizer(args.model)
    context = load_model(args.model).config.max_position_embeddings
    texts = [args.text.read_text("utf-8")] if args.text else load_builtin("builtin:python-docs")["test"]["text"]
    encoded = (torch.tensor(ids) for ids in encode_documents(tokenizer, texts))
    rows = [row for ids in encoded for row in ids.split(context) if len(row) >= 64][: args.rows]

    figures: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as work:
        folders = {name: Path(work) / name for name in ("float32", "bfloat16", *QUANTIZATIONS)}
        for name, folder in folders.items():
            if name in QUANTIZATIONS:
                quantize_folder(args.model, folder, name)
            else:
                load_model(args.model, dtype=getattr(torch, name)).save_pretrained(folder)
        print(
            f"{args.model}: {len(rows)} rows, {sum(map(len, rows))} tokens; {min(len(rows), args.prompts)} answers\n\n"
            + harness.markdown_head(
                "", "MB", "perplexity", "by the kernels", "to float32", "answers as in float32: torchao, kernels"
            )
        )
        for name, folder in folders.items():
            plain = figures_of(load_model(folder).eval(), rows, args.prompts)
            kernels = figures_of(use_cpu_kernels(load_model(folder).eval()), rows, args.prompts)
            figures[name] = {"megabytes": harness.megabytes(folder), "plain": plain, "kernels": kernels}
            exact = figures["float32"]["plain"]
            same = [harness.count_equal(form["answers"], exact["answers"]) for form in (plain, kernels)]
            cells = (
                f"{figures[name]['megabytes']:.1f}",
                f"{plain['perplexity']:.3f}",
                f"{kernels['perplexity']:.3f}",
                f"{kernels['perplexity'] / exact['perplexity'] - 1:+.2%}",
                f"{same[0]}, {same[1]}",
            )
            print(harness.markdown_row(name, *cells), flush=True)

    exact = figures["float32"]["plain"]
    ratios = {
        f"{name}, perplexity": exact["perplexity"] / form["kernels"]["perplexity"] for name, form in figures.items()
    }
    harness.write_json(args.json, ratios, figures=figures)


if __name__ == "__main__":
    main()
