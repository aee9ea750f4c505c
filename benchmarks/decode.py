"""Tokens per second of one model by several means, beside the share of what this machine's memory allows.

One set of weights, of GPT-2-small's shape and random: transformers' own GPT-2 class, ours plainly, ours as the commands load it
(packed linear layers, a cache that does not copy; float32, bfloat16, and quantized), the same with compiled steps, CTranslate2 and llama.cpp. Every means runs
in a process of its own, which is where its peak of memory is read; they answer in turn, in rounds. Speeds and ratios are the
medians of those of the rounds.
Answers are greedy, after prompts of 16 tokens; prefill is the time to the first token after 512.

The floor is the time to read every weight of the layers and the head once, at the bandwidth that a sum over 400 MB reaches.

    python benchmarks/decode.py --json decode.json --plot decode.png

CTranslate2 and llama.cpp are left out by name where they are not installed (pip install ctranslate2 llama-cpp-python), and compiled
steps where there is no C++ compiler.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Means, its package if it is not ours, bytes a weight.
ARMS = {
    "stock float32": (None, 4.0),
    "stock bfloat16": (None, 2.0),
    "plain float32": (None, 4.0),
    "plain bfloat16": (None, 2.0),
    "ours float32": (None, 4.0),
    "ours bfloat16": (None, 2.0),
    "ours int8": ("torchao", 1.0),
    "ours int8-weight-only": ("torchao", 1.0),
    "ours int4": ("torchao", 0.5 + 4 / 32),
    "compiled float32": (None, 4.0),
    "compiled bfloat16": (None, 2.0),
    "compiled int8": ("torchao", 1.0),
    "ctranslate2 float32": ("ctranslate2", 4.0),
    "ctranslate2 int8": ("ctranslate2", 1.0),
    "llama.cpp float32": ("llama_cpp", 4.0),
    "llama.cpp q8_0": ("llama_cpp", 1.0 + 2 / 32),
}
QUICK = ("stock float32", "ours float32", "ours bfloat16", "ours int8")
REFERENCE = "stock float32"
PROMPT, PREFILL, MOST = 16, 512, 32

# (batch, prompt tokens, new tokens)
Case = tuple[int, int, int]
Answer = Callable[[list[list[int]], int], list[list[int]]]


def write_weights(folder: Path, arms: list[str], small: bool) -> None:
    """The same weights for everybody: `ours`, `stock` in GPT-2's layout, and what the other means read."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, convert_checkpoint, load_builtin, train_tokenizer

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 2048} if small else {}
    model = ChatGPTForCausalLM(ChatGPTConfig.gpt2("gpt2", **sizes))
    # Its likeliest tokens are to be clearly so, or sums in another order choose others.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.2)
    texts = load_builtin("builtin:python-docs")["train"]["text"][:300]
    tokenizer = train_tokenizer(texts, 1024, max_digits=3, show_progress=False)
    model.save_pretrained(folder / "ours")
    tokenizer.save_pretrained(folder / "ours")
    convert_checkpoint(folder / "ours", folder / "stock", "gpt2")
    for arm in arms:
        if arm.startswith(("ours int", "compiled int")):
            from chatgpt_hf.inference.quantization import quantize_folder

            name = arm.split()[1]
            if not (folder / name).exists():
                quantize_folder(folder / "ours", folder / name, name)
    if any(arm.startswith("ctranslate2") for arm in arms):
        from ctranslate2.converters import TransformersConverter
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        # It speaks in strings; each id is its own.
        words = {str(index): index for index in range(model.config.vocab_size)}
        names = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), unk_token="0", bos_token="0", eos_token="1"
        )
        for file in (folder / "stock").glob("tokenizer*"):
            file.unlink()
        names.save_pretrained(folder / "stock")
        for kind in ("float32", "int8"):
            TransformersConverter(str(folder / "stock")).convert(str(folder / f"ct2-{kind}"), quantization=kind)
    if any(arm.startswith("llama.cpp") for arm in arms):
        from chatgpt_hf.export.export import export_model

        for kind in ("f32", "q8_0"):
            export_model(folder / "ours", folder / f"gguf-{kind}", "gguf", outtype=kind, check=False)


def load_ours(folder: Path, means: str, kind: str) -> Answer:
    import torch
    from transformers import GenerationConfig, GPT2LMHeadModel

    from chatgpt_hf import ChatGPTForCausalLM, GrowingCache, use_cpu_kernels
    from chatgpt_hf.inference.compiling import StaticPrefix, compile_config

    name = "stock" if means == "stock" else kind if kind.startswith("int") else "ours"
    options = {} if kind.startswith("int") else {"dtype": getattr(torch, kind)}
    model = (
        (GPT2LMHeadModel if means == "stock" else ChatGPTForCausalLM).from_pretrained(folder / name, **options).eval()
    )
    if means in ("ours", "compiled"):
        use_cpu_kernels(model)
    # A compiled step is for a cache of one size, which is kept for the next answer.
    caches: dict[tuple[int, int], StaticPrefix] = {}

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        config = GenerationConfig(do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0)
        cache: Any = None
        if means == "ours":
            cache = GrowingCache(model.config)
        elif means == "compiled":
            config.compile_config = compile_config()
            config.compile_config.dynamic = False
            cache = caches.setdefault(
                (len(ids), ids.shape[1] + count), StaticPrefix(model, ids.shape[1] + count)
            ).take([])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, past_key_values=cache
        )
        return found[:, ids.shape[1] :].tolist()

    return answer


def load_ctranslate2(folder: Path, kind: str, threads: int) -> Answer:
    import ctranslate2

    model = ctranslate2.Generator(str(folder / f"ct2-{kind}"), intra_threads=threads, compute_type=kind)

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        words = [[str(token) for token in prompt] for prompt in prompts]
        options = {"sampling_topk": 1, "include_prompt_in_result": False, "end_token": ["2"]}
        found = model.generate_batch(words, max_length=count, min_length=count, **options)
        return [result.sequences_ids[0] for result in found]

    return answer


def load_llama_cpp(folder: Path, kind: str, threads: int) -> Answer:
    from llama_cpp import Llama

    file = next((folder / f"gguf-{kind}").glob("*.gguf"))
    model = Llama(str(file), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        (prompt,) = prompts
        model.reset()
        found: list[int] = []
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            found.append(token)
            if len(found) == count:
                break
        return [found]

    return answer


def load(arm: str, folder: Path, threads: int) -> Answer:
    means, kind = arm.split()
    if means == "ctranslate2":
        return load_ctranslate2(folder, kind, threads)
    if means == "llama.cpp":
        return load_llama_cpp(folder, {"float32": "f32"}.get(kind, kind), threads)
    return load_ours(folder, means, kind)


def own_memory() -> float:
    """MB that belong to this process alone; pages of a file that was mapped can go at any time."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(kilobytes) / 1e3


def work(arm: str, folder: Path, threads: int, pipe: Any) -> None:
    """A process with one means of answering: takes (prompts, count), gives (ids, seconds), and at the end its peak in MB."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    # What every program with these libraries has is no means' own.
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
    answer = load(arm, folder, threads)
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        begun = time.perf_counter()
        found = answer(*task)
        pipe.send((found, time.perf_counter() - begun))
    ended.set()
    watcher.join()
    pipe.send(peak - before)


def bandwidth(threads: int) -> float:
    """Bytes per second that a sum over 400 MB reads."""
    import torch

    torch.set_num_threads(threads)
    values = torch.ones(100_000_000)
    seconds = []
    for _ in range(7):
        begun = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - begun)
    return values.numel() * 4 / min(seconds)


def label(case: Case) -> str:
    return f"prefill {case[1]}" if case[2] == 1 else f"batch {case[0]}"


def measure(
    arms: list[str], cases: list[Case], folder: Path, threads: int, rounds: int, vocab: int
) -> dict[str, dict[str, Any]]:
    """Seconds of every round, ids and peak of memory, by means."""
    import random

    context = multiprocessing.get_context("spawn")
    draw = random.Random(0)
    prompts = {case: [[draw.randrange(8, vocab) for _ in range(case[1])] for _ in range(case[0])] for case in cases}
    workers: dict[str, tuple[Any, Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    for arm in arms:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(arm, folder, threads, theirs), daemon=True)
        process.start()
        theirs.close()
        if ours.recv() == "ready":
            workers[arm] = (process, ours)
            results[arm] = {"seconds": {label(case): [] for case in cases}, "ids": {}}
    for turn in range(rounds + 1):
        print("Warming up" if turn == 0 else f"Round {turn} of {rounds}", file=sys.stderr)
        for case in cases:
            for arm, (_, pipe) in workers.items():
                if arm.startswith("llama.cpp") and case[0] > 1:
                    continue
                pipe.send((prompts[case], case[2]))
                ids, seconds = pipe.recv()
                if turn:
                    results[arm]["seconds"][label(case)].append(seconds)
                    results[arm]["ids"][label(case)] = ids
    for arm, (process, pipe) in workers.items():
        pipe.send(None)
        results[arm]["peak_mb"] = pipe.recv()
        process.join()
    return results


def report(results: dict[str, dict[str, Any]], cases: list[Case], rate: float, weights: int, cache_mb: float) -> dict:
    """Prints the table; returns the figures."""
    first = results[REFERENCE]["seconds"]
    figures: dict[str, Any] = {}
    names = [label(case) for case in cases]
    print(f"| | {' | '.join(names)} | of the floor | peak, MB (allowed) | ids |\n|{'---|' * (len(names) + 4)}")
    for arm, result in results.items():
        figures[arm] = {}
        cells = []
        for case in cases:
            seconds = result["seconds"][label(case)]
            if not seconds:
                cells.append("")
                continue
            middle = statistics.median(seconds)
            # Round by round, since what else the machine has to do differs more between rounds than within one.
            ratio = statistics.median(one / other for one, other in zip(first[label(case)], seconds, strict=True))
            speed = case[0] * (case[2] if case[2] > 1 else case[1]) / middle
            figures[arm][label(case)] = {"tokens_per_second": speed, "ratio": ratio}
            cells.append(f"{speed:.0f} ({ratio:.2f})")
        floor = weights * ARMS[arm][1] / rate
        one = next(case for case in cases if case[0] == 1 and case[2] > 1)
        share = floor * figures[arm][label(one)]["tokens_per_second"]
        # The embedding is looked up in full precision where the head is quantized or packed.
        allowed = weights * ARMS[arm][1] / 1e6 + cache_mb + 400
        same = [result["ids"][name] == results[REFERENCE]["ids"][name] for name in names if name in result["ids"]]
        figures[arm] |= {"share_of_floor": share, "peak_mb": result["peak_mb"], "allowed_mb": allowed, "same": same}
        print(
            f"| {arm} | {' | '.join(cells)} | {share:.0%} | {result['peak_mb']:.0f} ({allowed:.0f}) "
            f"| {'the same' if all(same) else f'{sum(same)} of {len(same)}'} |"
        )
    return figures


# What operations of PyTorch do, by their names without the namespace; the time that none accounts for is Python's.
KINDS = {
    "matrix products": re.compile(r"(add)?mm|linear(_dynamic)?|_linear_pointwise|_weight_int[48]pack_mm\w*"),
    "attention": re.compile(r"_*scaled_dot_product\w+"),
    "copies, the cache's among them": re.compile(r"copy_|_?cat|clone"),
    "norms and activations": re.compile(r"(native_)?\w+_norm|gelu|tanh|pow"),
    "choosing the token": re.compile(r"argmax|isin|softmax|max"),
}


def profile(arm: str, folder: Path, cases: list[Case], threads: int, vocab: int) -> None:
    """Prints where the milliseconds of a token go (of a prefill, where that is the case)."""
    import torch

    torch.set_num_threads(threads)
    answer = load(arm, folder, threads)
    names = [*KINDS, "other operations", "Python"]
    table: dict[str, list[float]] = {name: [] for name in names}
    for batch, length, tokens in cases:
        prompts = torch.randint(8, vocab, (batch, length)).tolist()
        answer(prompts, tokens)
        begun = time.perf_counter()
        answer(prompts, tokens)
        wall = (time.perf_counter() - begun) * 1e3
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            answer(prompts, tokens)
        spent = dict.fromkeys(names, 0.0)
        for event in profiler.key_averages():
            operation = event.key.rpartition("::")[2]
            kind = next((name for name, pattern in KINDS.items() if pattern.fullmatch(operation)), None)
            spent[kind or "other operations"] += event.self_cpu_time_total / 1e3
        # The profiler slows small operations down, so that they can come to more than the run took without it.
        spent["Python"] = max(0.0, wall - sum(spent.values()))
        for name in names:
            table[name].append(spent[name] / tokens)
    print(
        f"\n{arm}: milliseconds a token\n\n| | {' | '.join(label(case) for case in cases)} |\n|{'---|' * (len(cases) + 1)}"
    )
    for name, values in table.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")


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
    figure.supxlabel("times transformers' GPT-2 in float32", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), metavar="ARM", help=f"of: {', '.join(ARMS)}")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, 2 or more (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}; two rounds of 24 tokens")
    parser.add_argument("--profile", action="store_true", help="also print where a token's time goes")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, to try the script")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the ratios, as a PNG")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if args.tokens < 2:
        parser.error("--tokens: 2 or more, since one token is the prefill")
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
            print(f"Left out: {arm}, for want of {missing}.", file=sys.stderr)
            arms.remove(arm)
    cases: list[Case] = [(1, PROMPT, tokens), (8, PROMPT, tokens), (MOST, PROMPT, tokens), (1, PREFILL, 1)]
    with tempfile.TemporaryDirectory() as work_folder:
        folder = Path(work_folder)
        print("Writing the weights", file=sys.stderr)
        write_weights(folder, arms, args.tiny)
        from transformers import AutoConfig

        import chatgpt_hf

        assert chatgpt_hf.ChatGPTConfig
        config = AutoConfig.from_pretrained(folder / "ours")
        # Attention 4 and feed-forward 8 squares of the width, and the head.
        weights = 12 * config.num_hidden_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size
        cache = 8e-6 * MOST * (PROMPT + tokens) * config.num_hidden_layers * config.hidden_size
        results = measure(arms, cases, folder, args.threads, rounds, min(config.vocab_size, 1000))
        rate = bandwidth(args.threads)
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
    if args.json:
        content = {"ratios": ratios, "figures": figures, "bandwidth": rate, "threads": args.threads}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        draw_plot(figures, [label(case) for case in cases], args.plot)


if __name__ == "__main__":
    main()
