"""Measures the cost of quantizing a trained model: size, perplexity and greedy answers, with torchao's layers and with our CPU kernels.

    python benchmarks/quantized.py --model runs/quickstart/base
    python benchmarks/quantized.py --model runs/novels --text held-out.txt
    python benchmarks/quantized.py --model smollm2 --text wikitext2_valid.txt --calibrate --shuffle --prompts 0

The text is cut into rows of the model's context, of at most 512 tokens; without --text it is the held-out documents of
`builtin:python-docs`. Prompts are the first 24 tokens of rows, answers 48 greedy tokens.

With --calibrate, int4 is also measured with weights that are chosen by rows of the text that are not measured. With --shuffle,
the channels of a Llama model are put in another order first, which changes none of its results: weights that were in groups of
4 bits before, as those of a GGUF file, are otherwise in the same groups again and lose nothing.
"""

import math
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import torch
from transformers import PreTrainedModel

from chatgpt_hf import load_builtin, load_model, load_tokenizer, quantize_model, use_cpu_kernels
from chatgpt_hf.checkpoints import context_length
from chatgpt_hf.evaluation.scoring import negative_log_likelihoods
from chatgpt_hf.inference.quantization import GOOD, QUANTIZATIONS
from chatgpt_hf.tokenization_chatgpt import encode_documents


def perplexity(model: PreTrainedModel, rows: list[torch.Tensor]) -> float:
    pieces = [(row.tolist(), 1) for row in rows]
    nats = negative_log_likelihoods(model, pieces, pad_token_id=0, batch_size=1, progress=False)
    return math.exp(nats.sum() / sum(len(row) - 1 for row in rows))


def figures_of(model: PreTrainedModel, rows: list[torch.Tensor], prompts: int) -> dict:
    """Perplexity on the rows, and answers to the beginnings of the first of them."""
    answers = [harness.greedy_answer(model, row[:24].tolist(), 48) for row in rows[:prompts]]
    return {"perplexity": perplexity(model, rows), "answers": answers}


@torch.no_grad()
def shuffle(model: PreTrainedModel) -> None:
    """Reorders the residual stream and the channels of each feed-forward layer of a Llama model."""
    draw = torch.Generator().manual_seed(0)
    width = torch.randperm(model.config.hidden_size, generator=draw)

    def reorder(weight: torch.nn.Parameter, order: torch.Tensor, dim: int) -> None:
        weight.copy_(weight.index_select(dim, order))

    reorder(model.model.embed_tokens.weight, width, 1)
    if not model.config.tie_word_embeddings:
        reorder(model.lm_head.weight, width, 1)
    reorder(model.model.norm.weight, width, 0)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for part in (layer.input_layernorm, layer.post_attention_layernorm, attention.o_proj, mlp.down_proj):
            reorder(part.weight, width, 0)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reorder(part.weight, width, 1)
        inner = torch.randperm(model.config.intermediate_size, generator=draw)
        reorder(mlp.gate_proj.weight, inner, 0)
        reorder(mlp.up_proj.weight, inner, 0)
        reorder(mlp.down_proj.weight, inner, 1)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", help="folder of a trained model (default: the quickstart's shape, random weights)")
    parser.add_argument("--text", type=Path, help="a text that the model was not trained on")
    parser.add_argument("--rows", type=int, default=40, help="rows of the text to use (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="number of answers (default: %(default)s)")
    parser.add_argument("--calibrate", action="store_true", help="also int4 that is chosen by other rows of the text")
    parser.add_argument("--shuffle", action="store_true", help="first put the model's channels in another order")
    args = parser.parse_args()
    harness.prepare(threads=1)

    args.model = args.model or harness.random_model()
    tokenizer = load_tokenizer(args.model)
    exact_model = load_model(args.model, dtype=torch.float32).eval()
    length = min(context_length(exact_model), 512)
    texts = [args.text.read_text("utf-8")] if args.text else load_builtin("builtin:python-docs")["test"]["text"]
    encoded = (torch.tensor(ids) for ids in encode_documents(tokenizer, texts))
    found = [row for ids in encoded for row in ids.split(length) if len(row) >= 64]
    rows, others = found[: args.rows], [row.tolist() for row in found[args.rows :][-16:]]
    if args.shuffle:
        shuffle(exact_model)

    figures: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as work:
        original = Path(work) / "float32"
        exact_model.save_pretrained(original)
        del exact_model
        print(
            f"{args.model}: {len(rows)} rows, {sum(map(len, rows))} tokens; {min(len(rows), args.prompts)} answers\n\n"
            + harness.markdown_head(
                "", "MB", "perplexity", "by the kernels", "to float32", "answers as in float32: torchao, kernels"
            )
        )
        names = ["float32", "bfloat16", *QUANTIZATIONS, *(["int4, calibrated"] if args.calibrate else [])]
        for name in names:
            folder = Path(work) / name
            if name == "bfloat16":
                load_model(original, dtype=torch.bfloat16).save_pretrained(folder)
            elif name != "float32":
                chosen_by = others if name.endswith("calibrated") else ()
                quantize_model(load_model(original).eval(), name.partition(",")[0], chosen_by).save_pretrained(folder)
            plain = figures_of(load_model(folder).eval(), rows, args.prompts)
            kernels = figures_of(use_cpu_kernels(load_model(folder).eval()), rows, args.prompts)
            figures[name] = {"megabytes": harness.megabytes(folder), "plain": plain, "kernels": kernels}
            exact = figures["float32"]["plain"]
            same = [harness.count_equal(form["answers"], exact["answers"]) for form in (plain, kernels)]
            increase = kernels["perplexity"] / exact["perplexity"] - 1
            costly = increase > GOOD.get(name.partition(",")[0], math.inf)
            cells = (
                f"{figures[name]['megabytes']:.1f}",
                f"{plain['perplexity']:.3f}",
                f"{kernels['perplexity']:.3f}",
                f"{increase:+.2%}{' (not good)' if costly else ''}",
                f"{same[0]}, {same[1]}",
            )
            print(harness.markdown_row(name, *cells), flush=True)
            if name != "float32":
                shutil.rmtree(folder)

    exact = figures["float32"]["plain"]
    ratios = {
        f"{name}, perplexity": exact["perplexity"] / form["kernels"]["perplexity"] for name, form in figures.items()
    }
    harness.write_json(args.json, ratios, figures=figures)


if __name__ == "__main__":
    main()
