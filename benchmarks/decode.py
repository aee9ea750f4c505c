"""Tokens per second of one model with several engines, and the share of what this machine's memory allows.

All have the same weights: random ones of GPT-2-small's shape, or those of `--model FOLDER`. The engines: transformers' own class; our model as it is; ours as the commands load
it (packed linear layers, a cache that does not copy; float32, bfloat16 and quantized); the same with compiled steps; CTranslate2;
llama.cpp. Each runs in a separate process, whose peak memory is measured. They take turns; speeds and ratios are medians of the
rounds, in processor time with one thread, which other programs on the machine disturb less than the clock, and by the clock with
several. Answers are greedy, after prompts of 16 tokens; prefill is the time to the first token after 512.

The floor is the time to read every weight of the layers and the head once, at the bandwidth of a sum over 400 MB.

    python benchmarks/decode.py --json decode.json --plot decode.png
    python benchmarks/decode.py --model smollm2 --tokens 32 --rounds 3 --text wikitext2_valid.txt --arms "ours int8" "llama.cpp q8_0"

The script names what it leaves out: CTranslate2 and llama.cpp where they are not installed (pip install ctranslate2
llama-cpp-python), and compiled steps where there is no C++ compiler.
"""

import contextlib
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import harness
from engines import ARMS, load_engine, weights_read, write_copies, write_weights

QUICK = ("stock float32", "ours float32", "ours bfloat16", "ours int8")
REFERENCE = "stock float32"
PROMPT, PREFILL, MOST = 16, 512, 32

# Batch, prompt tokens, new tokens.
Case = tuple[int, int, int]


def own_memory() -> float:
    """MB of this process without mapped files, whose pages the system can drop at any time."""
    held = harness.status_bytes("RssAnon")
    return float("nan") if held is None else held / 1024e3


def work(arm: str, folder: Path, threads: int, pipe: Connection) -> None:
    """Runs one arm in this process.

    Takes (prompts, count) and answers with `Timed` ids; takes None and answers with its peak in MB; takes rows of text and
    answers with their perplexity.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    # The libraries first: their memory is not the arm's.
    import chatgpt_hf.inference.cpu.packed_linear  # noqa: F401

    torch.set_num_threads(threads)
    with contextlib.suppress(ImportError):
        import torchao  # noqa: F401
    before = peak = own_memory()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    engine = load_engine(arm, folder, threads)
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        # Processor time of one thread is free of waiting for other programs.
        clock = time.process_time if threads == 1 else time.perf_counter
        begun = clock()
        result = engine.answer(*task)
        pipe.send(harness.Timed(result, clock() - begun))
    ended.set()
    watcher.join()
    pipe.send(peak - before)
    rows = pipe.recv()
    pipe.send(engine.perplexity(rows) if rows else None)


def tokens_of(case: Case) -> int:
    """The tokens that a case's speed counts: new ones, or for a prefill those of the prompt."""
    return case[0] * (case[2] if case[2] > 1 else case[1])


def label(case: Case) -> str:
    return f"prefill {case[1]}" if case[2] == 1 else f"batch {case[0]}"


def measure(
    arms: list[str], cases: list[Case], folder: Path, threads: int, rounds: int, vocab: int, rows: list[list[int]]
) -> dict[str, dict[str, Any]]:
    """Returns the seconds of every round, the ids, the peak memory and the perplexity of each arm.

    Prints each case as soon as it is measured, so that an interrupted run was not in vain.
    """
    draw = random.Random(0)
    workers: dict[str, tuple[Any, Connection]] = {}
    for arm in arms:
        print(f"Loading {arm}", file=sys.stderr)
        workers[arm] = harness.start_worker("spawn", work, arm, folder, threads)
        # One after another: the next one waits until this one has its model.
        harness.receive(arm, workers[arm][1])

    def ask(arm: str, prompts: list[list[int]], count: int) -> harness.Timed[list[list[int]]]:
        pipe = workers[arm][1]
        pipe.send((prompts, count))
        return harness.receive(arm, pipe)

    results: dict[str, dict[str, Any]] = {arm: {"seconds": {}, "ids": {}} for arm in arms}
    for case in cases:
        prompts = [[draw.randrange(8, vocab) for _ in range(case[1])] for _ in range(case[0])]
        # llama.cpp's Python package answers one prompt at a time.
        taking_part = [arm for arm in arms if case[0] == 1 or not arm.startswith("llama.cpp")]
        for arm in taking_part:
            # Two tokens make an engine compile what it compiles; a compiled step also depends on the length.
            ask(arm, prompts, case[2] if arm.startswith("compiled") else min(case[2], 2))
        turns = {arm: partial(ask, arm, prompts, case[2]) for arm in taking_part}
        for arm, timed in harness.in_turn(turns, rounds).items():
            results[arm]["seconds"][label(case)] = [one.seconds for one in timed]
            results[arm]["ids"][label(case)] = timed[-1].result
            speed = tokens_of(case) / harness.median_seconds(timed)
            print(f"{label(case)}: {arm} {speed:.0f} tokens/s", file=sys.stderr)
    for arm, (process, pipe) in workers.items():
        pipe.send(None)
        results[arm]["peak_mb"] = harness.receive(arm, pipe)
        pipe.send(rows)
        results[arm]["perplexity"] = harness.receive(arm, pipe)
        if rows:
            print(f"perplexity: {arm} {results[arm]['perplexity']:.3f}", file=sys.stderr)
        process.join()
    return results


def report(results: dict[str, dict[str, Any]], cases: list[Case], rate: float, weights: int, cache_mb: float) -> dict:
    """Prints the table and returns the figures."""
    first = results[REFERENCE]["seconds"]
    figures: dict[str, Any] = {}
    names = [label(case) for case in cases]
    print(harness.markdown_head("", *names, "of the floor", "peak, MB (allowed)", "ids", "perplexity"))
    for arm, result in results.items():
        figures[arm] = {}
        cells = []
        for case in cases:
            seconds = result["seconds"].get(label(case))
            if seconds is None:
                cells.append("")
                continue
            middle = statistics.median(seconds)
            ratio = statistics.median(harness.round_ratios(first[label(case)], seconds))
            speed = tokens_of(case) / middle
            figures[arm][label(case)] = {"tokens_per_second": speed, "ratio": ratio}
            cells.append(f"{speed:.0f} ({ratio:.2f})")
        floor = weights * ARMS[arm][1] / rate
        share = floor * figures[arm].get("batch 1", {}).get("tokens_per_second", float("nan"))
        # 400 MB more: the embedding stays in full precision where the head is quantized or packed.
        allowed = weights * ARMS[arm][1] / 1e6 + cache_mb + 400
        same = [result["ids"][name] == results[REFERENCE]["ids"][name] for name in names if name in result["ids"]]
        figures[arm] |= {"share_of_floor": share, "peak_mb": result["peak_mb"], "allowed_mb": allowed, "same": same}
        equal = "the same" if all(same) else f"{sum(same)} of {len(same)}"
        peak = f"{result['peak_mb']:.0f} ({allowed:.0f})"
        cost = result["perplexity"]
        figures[arm]["perplexity"] = cost
        if cost is not None:
            exact = results[REFERENCE]["perplexity"]
            cost = f"{cost:.3f}" if arm == REFERENCE else f"{cost:.3f} ({cost / exact - 1:+.2%})"
        print(harness.markdown_row(arm, *cells, f"{share:.0%}", peak, equal, cost or ""))
    return figures


# Kinds of PyTorch operations by their names without the namespace; time outside all operations is Python's.
KINDS = {
    "matrix products": re.compile(r"(add)?mm|linear(_dynamic)?|_linear_pointwise|_weight_int[48]pack_mm\w*"),
    "attention": re.compile(r"_*scaled_dot_product\w+"),
    "copies, the cache's among them": re.compile(r"copy_|_?cat|clone"),
    "norms and activations": re.compile(r"(native_)?\w+_norm|gelu|tanh|pow"),
    "choosing the token": re.compile(r"argmax|isin|softmax|max"),
}


def profile(arm: str, folder: Path, cases: list[Case], threads: int, vocab: int) -> None:
    """Prints where the milliseconds of a token, or of a prefill, go."""
    import torch

    torch.set_num_threads(threads)
    answer = load_engine(arm, folder, threads).answer
    names = [*KINDS, "other operations", "Python"]
    table: dict[str, list[float]] = {name: [] for name in names}
    for batch, length, tokens in cases:
        prompts = torch.randint(8, vocab, (batch, length)).tolist()
        answer(prompts, tokens)
        wall = 1e3 * harness.timed(answer, prompts, tokens).seconds
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            answer(prompts, tokens)
        spent = dict.fromkeys(names, 0.0)
        for event in profiler.key_averages():
            operation = event.key.rpartition("::")[2]
            kind = next((name for name, pattern in KINDS.items() if pattern.fullmatch(operation)), None)
            spent[kind or "other operations"] += event.self_cpu_time_total / 1e3
        # The profiler slows small operations down, so their sum can exceed the time without it.
        spent["Python"] = max(0.0, wall - sum(spent.values()))
        for name in names:
            table[name].append(spent[name] / tokens)
    print(f"\n{arm}: milliseconds a token\n\n{harness.markdown_head('', *map(label, cases))}")
    for name, values in table.items():
        print(harness.markdown_row(name, *(f"{value:.2f}" for value in values)))


def draw_plot(figures: dict[str, Any], names: list[str], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = list(figures)[::-1]
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 0.32 * len(arms) + 1.2), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        values = [figures[arm].get(name, {}).get("ratio", 0) for arm in arms]
        colors = ["#2563eb" if arm.startswith(("ours", "compiled")) else "#a1a1aa" for arm in arms]
        bars = axis.barh(arms, values, color=colors)
        axis.bar_label(bars, [f"{value:.1f}" if value else "" for value in values], padding=2, fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.set_xlim(0, 1.2 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("times transformers' own class in float32", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = harness.parser(__doc__, rounds=5, threads=1)
    parser.add_argument(
        "--arms",
        nargs="*",
        choices=list(ARMS),
        metavar="ARM",
        help=f"measure these and {REFERENCE}, of: {', '.join(ARMS)}",
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer, 2 or more (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"two rounds of 24 tokens of {', '.join(QUICK)}")
    parser.add_argument("--profile", action="store_true", help="also print where a token's time goes")
    parser.add_argument(
        "--model", metavar="FOLDER", help="the weights of this model, of a family that all engines know"
    )
    parser.add_argument(
        "--cases", nargs="*", metavar="CASE", help="measure only these, such as 'batch 1' or 'prefill 512'"
    )
    parser.add_argument("--text", type=Path, help="also measure the perplexity on the beginning of this file")
    parser.add_argument("--rows", type=int, default=6, help="rows of 512 tokens of it (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the ratios, as a PNG")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if args.tokens < 2:
        parser.error("--tokens: give 2 or more; one token would only measure the prefill")
    rounds, tokens = (2, 24) if args.quick else (args.rounds, args.tokens)
    arms = [arm for arm in ARMS if arm in (args.arms or (QUICK if args.quick else ARMS)) or arm == REFERENCE]
    for arm in list(arms):
        package = ARMS[arm][0]
        missing = package if package and not find_spec(package) else None
        if missing is None and arm.startswith("compiled"):
            import torch

            from chatgpt_hf.inference.compiling import missing_compiler

            missing = missing_compiler(torch.device("cpu"))
        if missing is not None:
            print(f"Left out: {arm}; {missing} is missing.", file=sys.stderr)
            arms.remove(arm)
    cases: list[Case] = [(1, PROMPT, tokens), (1, PREFILL, 1), (8, PROMPT, tokens), (MOST, PROMPT, tokens)]
    if args.cases:
        known = {label(case): case for case in cases}
        if unknown := [name for name in args.cases if name not in known]:
            parser.error(f"--cases {unknown[0]}: choose from {', '.join(known)}")
        cases = [known[name] for name in args.cases]
    with tempfile.TemporaryDirectory() as work_folder:
        folder = Path(work_folder)
        print("Writing the weights", file=sys.stderr)
        if args.model:
            write_copies(folder, args.model, arms)
        else:
            write_weights(folder, arms, args.tiny)
        from transformers import AutoConfig

        import chatgpt_hf

        assert chatgpt_hf.ChatGPTConfig
        config = AutoConfig.from_pretrained(folder / "ours")
        weights = weights_read(folder / "ours")
        cache = 8e-6 * MOST * (PROMPT + tokens) * config.num_hidden_layers * config.hidden_size
        rows: list[list[int]] = []
        if args.text:
            ids = chatgpt_hf.load_tokenizer(folder / "ours")(args.text.read_text("utf-8")[: args.rows * 10_000])[
                "input_ids"
            ]
            rows = [ids[begin : begin + 512] for begin in range(0, len(ids) - 511, 512)][: args.rows]
        results = measure(arms, cases, folder, args.threads, rounds, min(config.vocab_size, 1000), rows)
        harness.prepare(args.threads)
        rate = harness.read_bandwidth()
        if args.profile:
            for arm in ("ours float32", "ours int8"):
                if arm in arms:
                    profile(arm, folder, cases, args.threads, min(config.vocab_size, 1000))
    print(f"{args.threads} thread(s), {rate / 1e9:.1f} GB/s; tokens a second (times {REFERENCE})\n")
    figures = report(results, cases, rate, weights, cache)
    ratios = {
        f"{arm}, {label(case)}": figures[arm][label(case)]["ratio"]
        for arm in results
        for case in cases
        if label(case) in figures[arm] and arm != REFERENCE
    }
    harness.write_json(args.json, ratios, figures=figures, bandwidth=rate, threads=args.threads)
    if args.plot:
        draw_plot(figures, [label(case) for case in cases], args.plot)


if __name__ == "__main__":
    main()
