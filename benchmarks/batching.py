"""Many prompts of different lengths: continuous batching, as in `chatgpt-hf generate --prompts`, against padded batches.

Prompts of 8 to 400 random tokens get greedy answers of 8 to 64 tokens; all lengths differ. A padded batch
runs until its longest answer is done. Both ways take turns in one process; the median of the rounds counts. The script also
counts equal answers: sums in another order round differently, and so may choose another token.

    python benchmarks/batching.py
"""

import os
import random
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from chatgpt_hf import ChatGPTForCausalLM, use_cpu_kernels
from chatgpt_hf.inference.continuous import prepare_batching
from chatgpt_hf.inference.prompt_file import Prompt, answers

# Layers, heads, width; vocabulary.
SIZES = {"quickstart": (harness.QUICKSTART, 4096), "gpt2": ((12, 12, 768), 50257)}
CONTEXT = 512

# The ids of each prompt, and the tokens of its answer.
Requests = list[tuple[list[int], int]]


def padded(model: ChatGPTForCausalLM, requests: Requests, size: int) -> list[list[int]]:
    """Answers in left-padded batches of `size` requests, in their order."""
    done = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        longest = max(len(ids) for ids, _ in batch)
        rows = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in batch])
        config = harness.greedy(max(count for _, count in batch))
        found = model.generate(rows, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        done += [answer[:count] for answer, (_, count) in zip(found, batch, strict=True)]
    return done


def continuous(model: ChatGPTForCausalLM, requests: Requests, size: int) -> list[list[int]]:
    """Answers up to `size` requests at a time; the next one starts as soon as one is done."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(use_cuda_graph=False, **prepare_batching(model, CONTEXT, size))
    rows = [Prompt(index, {}, ids, count) for index, (ids, count) in enumerate(requests)]
    found = {row.line: ids for row, ids, _ in answers(model, rows, config, batching)}
    return [found[row.line] for row in rows]


def main() -> None:
    options = harness.parser(__doc__, rounds=3, threads=1)
    options.add_argument("--size", choices=list(SIZES), default="quickstart", help="default: %(default)s")
    options.add_argument("--prompts", type=int, default=200, help="number of prompts (default: %(default)s)")
    options.add_argument("--batch", type=int, default=16, help="requests at a time (default: %(default)s)")
    args = options.parse_args()
    harness.prepare(args.threads)

    shape, vocab = SIZES[args.size]
    torch.manual_seed(0)
    random.seed(0)
    config = harness.shaped_config(*shape, vocab=vocab, context=CONTEXT, initializer_range=0.1)
    # With the kernels that the command uses.
    model = use_cpu_kernels(ChatGPTForCausalLM(config).eval())
    requests = [
        ([random.randrange(4, vocab) for _ in range(random.randint(8, 400))], random.randint(8, 64))
        for _ in range(args.prompts)
    ]
    tokens = sum(count for _, count in requests)

    ways = {"padded": padded, "continuous": continuous}
    rounds = harness.in_turn(
        {name: partial(harness.timed, way, model, requests, args.batch) for name, way in ways.items()}, args.rounds
    )

    speed = {name: tokens / harness.median_seconds(times) for name, times in rounds.items()}
    ratio = speed["continuous"] / speed["padded"]
    same = harness.count_equal(rounds["padded"][-1].result, rounds["continuous"][-1].result)
    print(f"{args.size}, {len(requests)} prompts, {tokens} tokens of answers, {args.threads} thread(s)\n")
    print(f"padded batches of {args.batch}   {speed['padded']:8.0f} tokens/s")
    print(f"continuous batching    {speed['continuous']:8.0f} tokens/s")
    print(f"continuous/padded      {ratio:8.2f}")
    print(f"equal answers          {same:8d} of {len(requests)}")
    harness.write_json(
        args.json,
        {"continuous/padded tokens per second": ratio, "equal answers": same / len(requests)},
        seconds={name: [one.seconds for one in times] for name, times in rounds.items()},
        tokens=tokens,
        same=same,
    )


if __name__ == "__main__":
    main()
