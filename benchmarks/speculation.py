"""Speculative decoding: tokens per step, correct guesses, and whether it saves time.

Three ways to the same greedy text take turns; the median of the rounds counts: one token a step; prompt lookup, which guesses
what followed the same tokens earlier; and a smaller model that guesses. There are two kinds of prompts: a passage with the
request to summarise it, where the answer repeats the passage, and prose to continue.

    python benchmarks/speculation.py --model runs/novels --assistant runs/novels-small --text held-out.txt
"""

import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import torch

from chatgpt_hf import ChatGPTForCausalLM, GrowingCache, load_builtin, load_for_generation, load_tokenizer
from chatgpt_hf.inference.speculation import Speculation, make_speculation
from chatgpt_hf.tokenization_chatgpt import encode_documents

REFERENCE = "one token a step"


def answers(model: ChatGPTForCausalLM, way: Speculation, prompts: list[torch.Tensor], count: int) -> list[list[int]]:
    """Up to `count` greedy tokens after each prompt."""
    config = harness.greedy(count, **way.generation)
    found = []
    with way.counting(model):
        for prompt in prompts:
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                past_key_values=GrowingCache(model.config),
                assistant_model=way.assistant,
            )
            found.append(ids[0, prompt.shape[1] :].tolist())
    return found


def main() -> None:
    parser = harness.parser(__doc__, rounds=3, threads=1)
    parser.add_argument("--model", help="folder of a trained model (default: the quickstart's shape, random weights)")
    parser.add_argument("--assistant", help="folder of a smaller model with the same tokenizer (default: none)")
    parser.add_argument("--text", type=Path, help="prose that no model was trained on (default: builtin:python-docs)")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of each kind (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="longest answer (default: %(default)s)")
    parser.add_argument("--quantize", help="quantization of the model, as in chatgpt-hf generate")
    args = parser.parse_args()
    harness.prepare(args.threads)

    args.model = args.model or harness.random_model()
    tokenizer = load_tokenizer(args.model)
    model = load_for_generation(args.model, args.quantize)
    context = model.config.max_position_embeddings
    room = context - args.tokens
    text = (
        args.text.read_text("utf-8") if args.text else "\n\n".join(load_builtin("builtin:python-docs")["test"]["text"])
    )
    paragraphs = [part for part in text.split("\n\n") if len(part) > 300][: args.prompts]
    texts = {
        "summarise": [f"{part}\n\nThe passage above, summarised: {part[:40]}" for part in paragraphs],
        "prose": [part[:200] for part in paragraphs],
    }
    ways: dict[str, Speculation] = {
        REFERENCE: Speculation(),
        "prompt lookup": make_speculation("auto", tokenizer, model, context),
    }
    if args.assistant:
        ways["assistant"] = make_speculation(args.assistant, tokenizer, model, context)
    own = model.config.num_hidden_layers // 2
    ways[f"own {own} layers"] = make_speculation(str(own), tokenizer, model, context)

    print(f"{args.model}, {args.threads} thread(s)\n")
    titles = ("tokens a step", "guesses that were right", "tokens/s", "ratio", "same ids")
    print(harness.markdown_head("prompts", "", *titles))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind, prompts in texts.items():
        ids = [torch.tensor([row[:-1][-room:]]) for row in encode_documents(tokenizer, prompts)]
        for way in ways.values():
            way.steps = way.guesses = 0
        arms = {name: partial(harness.timed, answers, model, way, ids, args.tokens) for name, way in ways.items()}
        rounds = harness.in_turn(arms, args.rounds)
        results[kind] = {}
        expected, first = rounds[REFERENCE][-1].result, harness.median_seconds(rounds[REFERENCE])
        for name, way in ways.items():
            found, middle = rounds[name][-1].result, harness.median_seconds(rounds[name])
            same = harness.count_equal(found, expected)
            # An answer may end early; greedy answers are the same in each round.
            answered = sum(len(answer) for answer in found)
            tokens = answered * args.rounds
            results[kind][name] = row = {
                "tokens_per_step": tokens / way.steps,
                "accepted": (tokens - way.steps) / way.guesses if way.guesses else 0.0,
                "tokens_per_second": answered / middle,
                "ratio": first / middle,
                "same": same,
            }
            cells = (
                f"{row['tokens_per_step']:.2f}",
                f"{row['accepted']:.0%}" if way.guesses else "",
                f"{row['tokens_per_second']:.0f}",
                f"{row['ratio']:.2f}",
                f"{same} of {len(ids)}",
            )
            print(harness.markdown_row(kind, name, *cells), flush=True)

    ratios = {
        f"{kind}, {name}": row["ratio"]
        for kind, rows in results.items()
        for name, row in rows.items()
        if name != REFERENCE
    }
    harness.write_json(args.json, ratios, figures=results)


if __name__ == "__main__":
    main()
