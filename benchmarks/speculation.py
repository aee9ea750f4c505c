"""Guessed tokens: how many a step they make, how many are right, and whether they save time.

Three ways to the same greedy text, in turn, in rounds, the median counts: one token a step; prompt lookup, which guesses what
followed the same tokens before; and a smaller model that guesses. Two kinds of prompts: a passage and the request to summarise it,
where the answer repeats the passage, and prose to continue.

    python benchmarks/speculation.py --model runs/novels --assistant runs/novels-small --text held-out.txt
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from serving import random_model
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from chatgpt_hf import GrowingCache, load_builtin, load_for_generation, load_tokenizer
from chatgpt_hf.inference.speculation import Speculation, make_speculation
from chatgpt_hf.tokenization_chatgpt import encode_documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a trained model (default: the quickstart's shape, random weights)")
    parser.add_argument("--assistant", help="folder of a smaller one with the same tokenizer; without, lookup alone")
    parser.add_argument("--text", type=Path, help="prose that neither learned from (default: builtin:python-docs)")
    parser.add_argument("--prompts", type=int, default=8, help="of each kind (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--quantize", help="as chatgpt-hf generate takes it")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    args.model = args.model or random_model()
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
        "one token a step": Speculation(),
        "prompt lookup": make_speculation("auto", tokenizer, model, context),
    }
    if args.assistant:
        ways["assistant"] = make_speculation(args.assistant, tokenizer, model, context)
    own = model.config.num_hidden_layers // 2
    ways[f"own {own} layers"] = make_speculation(str(own), tokenizer, model, context)
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{args.model}, {args.threads} thread(s)\n")
    print(
        "| prompts | | tokens a step | guesses that were right | tokens/s | ratio | same ids |\n|---|---|---|---|---|---|---|"
    )
    for kind, prompts in texts.items():
        ids = [torch.tensor([row[:-1][-room:]]) for row in encode_documents(tokenizer, prompts)]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, list[list[int]]] = {}
        for way in ways.values():
            way.steps = way.guesses = 0
        for _ in range(args.rounds):
            for name, way in ways.items():
                config = GenerationConfig(
                    do_sample=False, max_new_tokens=args.tokens, eos_token_id=None, pad_token_id=0, **way.generation
                )
                begun = time.perf_counter()
                with way.counting(model):
                    found[name] = [
                        model.generate(
                            prompt,
                            attention_mask=torch.ones_like(prompt),
                            generation_config=config,
                            past_key_values=GrowingCache(model.config),
                            assistant_model=way.assistant,
                        )[0, prompt.shape[1] :].tolist()
                        for prompt in ids
                    ]
                seconds[name].append(time.perf_counter() - begun)
        results[kind] = {}
        first = statistics.median(seconds["one token a step"])
        for name, way in ways.items():
            middle = statistics.median(seconds[name])
            same = sum(one == other for one, other in zip(found[name], found["one token a step"], strict=True))
            # An answer may end before it is as long as it may be; greedy ones are the same in each round.
            answered = sum(len(answer) for answer in found[name])
            tokens = answered * args.rounds
            results[kind][name] = {
                "tokens_per_step": tokens / way.steps,
                "accepted": (tokens - way.steps) / way.guesses if way.guesses else 0.0,
                "tokens_per_second": answered / middle,
                "ratio": first / middle,
                "same": same,
            }
            row = results[kind][name]
            right = f"{row['accepted']:.0%}" if way.guesses else ""
            print(
                f"| {kind} | {name} | {row['tokens_per_step']:.2f} | {right} | {row['tokens_per_second']:.0f} "
                f"| {row['ratio']:.2f} | {same} of {len(ids)} |",
                flush=True,
            )
    ratios = {
        f"{kind}, {name}": row["ratio"]
        for kind, rows in results.items()
        for name, row in rows.items()
        if name != "one token a step"
    }
    if args.json:
        args.json.write_text(json.dumps({"ratios": ratios, "figures": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
