"""Many prompts of different lengths: batched continuously, as `chatgpt-hf generate --prompts` does, against padded batches.

Prompts of 8 to 400 random tokens get answers of 8 to 64 tokens, each of its own length, greedily; a padded batch goes on
until its longest answer is done. Both ways take turns in one process, in rounds, and the median counts. Whether the answers
are the same is counted as well: sums of other shapes round differently.

    python benchmarks/batching.py
"""

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, use_cpu_kernels
from chatgpt_hf.inference.continuous import prepare_batching
from chatgpt_hf.inference.prompt_file import Prompt, answers

# Layers, heads, width, vocabulary: the quickstart's model, and GPT-2's smallest.
SIZES = {"quickstart": (4, 3, 192, 4096), "gpt2": (12, 12, 768, 50257)}
CONTEXT = 512

Requests = list[tuple[list[int], int]]


def padded(model: ChatGPTForCausalLM, requests: Requests, size: int) -> list[list[int]]:
    """Answers in batches of so many, in the order of the file, padded on the left."""
    done = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        longest = max(len(ids) for ids, _ in batch)
        rows = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in batch])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max(count for _, count in batch), eos_token_id=None, pad_token_id=0
        )
        found = model.generate(rows, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        done += [answer[:count] for answer, (_, count) in zip(found, batch, strict=True)]
    return done


def continuous(model: ChatGPTForCausalLM, requests: Requests, size: int) -> list[list[int]]:
    """Answers batched continuously, so many at a time."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(use_cuda_graph=False, **prepare_batching(model, CONTEXT, size))
    rows = [Prompt(index, {}, ids, count) for index, (ids, count) in enumerate(requests)]
    found = {row.line: ids for row, ids, _ in answers(model, rows, config, batching)}
    return [found[row.line] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="quickstart", help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="rows in a padded batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    layers, heads, width, vocab = SIZES[args.size]
    torch.manual_seed(0)
    random.seed(0)
    model = ChatGPTForCausalLM(
        ChatGPTConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=CONTEXT,
            initializer_range=0.1,
        )
    ).eval()
    # As the command loads it.
    use_cpu_kernels(model)
    requests = [
        ([random.randrange(4, vocab) for _ in range(random.randint(8, 400))], random.randint(8, 64))
        for _ in range(args.prompts)
    ]
    tokens = sum(count for _, count in requests)
    ways = {"padded": padded, "continuous": continuous}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[list[int]]] = {}
    for _ in range(args.rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            found[name] = way(model, requests, args.batch)
            seconds[name].append(time.perf_counter() - begun)
    speed = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    same = sum(one == other for one, other in zip(found["padded"], found["continuous"], strict=True))
    print(f"{args.size}, {len(requests)} prompts, {tokens} tokens of answers, {args.threads} thread(s)\n")
    print(f"padded batches of {args.batch}   {speed['padded']:8.0f} tokens/s")
    print(f"continuous batching    {speed['continuous']:8.0f} tokens/s")
    ratio = speed["continuous"] / speed["padded"]
    print(f"continuous/padded      {ratio:8.2f}")
    print(f"equal answers          {same:8d} of {len(requests)}")
    if args.json:
        ratios = {"continuous/padded tokens per second": ratio, "equal answers": same / len(requests)}
        figures = {"seconds": seconds, "tokens": tokens, "same": same, "ratios": ratios}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
