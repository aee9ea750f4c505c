"""Tokens per second of one model with several engines, and the share of what this machine's memory allows.

All have the same weights: random ones of GPT-2-small's shape, or those of `--model FOLDER`. The engines: transformers' own class; our model as it is; ours as the commands load
it (packed linear layers, a cache that does not copy; float32, bfloat16 and quantized); the same with compiled steps; CTranslate2;
llama.cpp. Each runs in a separate process, whose peak memory is measured. They take turns; speeds and ratios are medians of the
rounds, in processor time with one thread, which other programs on the machine disturb less than the clock, and by the clock with
several. Answers are greedy, after prompts of 16 tokens; prefill is the time to the first token after 512.

The floor is the time to read every weight of the layers and the head once, at the bandwidth of a sum over 400 MB.

    python benchmarks/decode.py --json decode.json --plot decode.png

The script names what it leaves out: CTranslate2 and llama.cpp where they are not installed (pip install ctranslate2
llama-cpp-python), and compiled steps where there is no C++ compiler.
"""

import contextlib
import json
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import harness

# The package of an engine that is not ours, and bytes per weight.
ARMS = {
    "stock float32": (None, 4.0),
    "stock bfloat16": (None, 2.0),
    "plain float32": (None, 4.0),
    "plain bfloat16": (None, 2.0),
    "ours float32": (None, 4.0),
    "ours bfloat16": (None, 2.0),
    "ours int8": ("torchao", 1.0),
    "ours int8-weight-only": ("torchao", 1.0),
    # 4 bits, and a scale and a middle of 16 bits for 32 weights; the head has 8 bits.
    "ours int4": ("torchao", 0.5 + 4 / 32),
    "compiled float32": (None, 4.0),
    "compiled bfloat16": (None, 2.0),
    "compiled int8": ("torchao", 1.0),
    "compiled int4": ("torchao", 0.5 + 4 / 32),
    "ctranslate2 float32": ("ctranslate2", 4.0),
    "ctranslate2 int8": ("ctranslate2", 1.0),
    "llama.cpp float32": ("llama_cpp", 4.0),
    "llama.cpp q8_0": ("llama_cpp", 1.0 + 2 / 32),
}
QUICK = ("stock float32", "ours float32", "ours bfloat16", "ours int8")
REFERENCE = "stock float32"
PROMPT, PREFILL, MOST = 16, 512, 32

# Batch, prompt tokens, new tokens.
Case = tuple[int, int, int]
Answer = Callable[[list[list[int]], int], list[list[int]]]


def write_weights(folder: Path, arms: list[str], small: bool) -> None:
    """Saves the same weights for all engines: `ours`, `stock` in GPT-2's layout, and those of the chosen arms."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, convert_checkpoint, load_builtin, train_tokenizer

    torch.manual_seed(0)
    sizes = {**harness.TINY, "vocab_size": 2048} if small else {}
    model = ChatGPTForCausalLM(ChatGPTConfig.gpt2("gpt2", **sizes))
    # Large weights, so that the likeliest tokens stand out: otherwise sums in another order choose others.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.2)
    texts = load_builtin("builtin:python-docs")["train"]["text"][:300]
    tokenizer = train_tokenizer(texts, 1024, max_digits=3, show_progress=False)
    model.save_pretrained(folder / "ours")
    tokenizer.save_pretrained(folder / "ours")
    convert_checkpoint(folder / "ours", folder / "stock", "gpt2")
    write_quantized(folder, arms)
    if any(arm.startswith("ctranslate2") for arm in arms):
        from ctranslate2.converters import TransformersConverter
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        # CTranslate2 takes strings: each id becomes its digits.
        words = {str(index): index for index in range(model.config.vocab_size)}
        names = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), unk_token="0", bos_token="0", eos_token="1"
        )
        for file in (folder / "stock").glob("tokenizer*"):
            file.unlink()
        names.save_pretrained(folder / "stock")
        for kind in ("float32", "int8"):
            TransformersConverter(str(folder / "stock")).convert(str(folder / f"ct2-{kind}"), quantization=kind)
    write_gguf(folder, arms)


def write_copies(folder: Path, model: str, arms: list[str]) -> None:
    """Saves the weights of a model folder of a family that all engines know, such as Llama, for all engines."""
    from chatgpt_hf import load_model, load_tokenizer

    loaded = load_model(model)
    for name in ("ours", "stock"):
        loaded.save_pretrained(folder / name)
        load_tokenizer(model).save_pretrained(folder / name)
    del loaded
    write_quantized(folder, arms)
    if any(arm.startswith("ctranslate2") for arm in arms):
        from ctranslate2.converters import TransformersConverter

        for kind in ("float32", "int8"):
            TransformersConverter(str(folder / "stock")).convert(str(folder / f"ct2-{kind}"), quantization=kind)
    write_gguf(folder, arms)


def write_quantized(folder: Path, arms: list[str]) -> None:
    """Saves what the arms with quantized weights need."""
    from chatgpt_hf.inference.quantization import quantize_folder

    for name in sorted({arm.split()[1] for arm in arms if arm.startswith(("ours int", "compiled int"))}):
        quantize_folder(folder / "ours", folder / name, name)


def write_gguf(folder: Path, arms: list[str]) -> None:
    """Saves what llama.cpp's arms need."""
    from chatgpt_hf.export.export import export_model

    kinds = {arm.split()[1] for arm in arms if arm.startswith("llama.cpp")}
    for kind in sorted({"f32" if kind == "float32" else kind for kind in kinds}):
        export_model(folder / "ours", folder / f"gguf-{kind}", "gguf", outtype=kind, check=False)


def load_ours(folder: Path, means: str, kind: str) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM

    from chatgpt_hf import GrowingCache, use_cpu_kernels
    from chatgpt_hf.inference.compiling import StaticPrefix, compile_config

    name = "stock" if means == "stock" else kind if kind.startswith("int") else "ours"
    options = {} if kind.startswith("int") else {"dtype": getattr(torch, kind)}
    model = AutoModelForCausalLM.from_pretrained(folder / name, **options).eval()
    if means in ("ours", "compiled"):
        use_cpu_kernels(model)
    # A compiled step is for a cache of one size, which is kept for the next answer.
    caches: dict[tuple[int, int], StaticPrefix] = {}

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        config = harness.greedy(count)
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
    names = json.loads((folder / f"ct2-{kind}" / "vocabulary.json").read_text("utf-8"))

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        words = [[names[token] for token in prompt] for prompt in prompts]
        options = {"sampling_topk": 1, "include_prompt_in_result": False, "end_token": [names[2]]}
        found = model.generate_batch(words, max_length=count, min_length=count, **options)
        return [result.sequences_ids[0] for result in found]

    return answer


def load_llama_cpp(folder: Path, kind: str, threads: int) -> Answer:
    from llama_cpp import Llama

    file = next((folder / f"gguf-{kind}").glob("*.gguf"))
    model = Llama(str(file), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        (prompt,) = prompts
        return [harness.llama_answer(model, prompt, count)]

    return answer


def load(arm: str, folder: Path, threads: int) -> Answer:
    means, kind = arm.split()
    if means == "ctranslate2":
        return load_ctranslate2(folder, kind, threads)
    if means == "llama.cpp":
        return load_llama_cpp(folder, {"float32": "f32"}.get(kind, kind), threads)
    return load_ours(folder, means, kind)


def own_memory() -> float:
    """MB of this process without mapped files, whose pages the system can drop at any time."""
    held = harness.status_bytes("RssAnon")
    return float("nan") if held is None else held / 1024e3


def work(arm: str, folder: Path, threads: int, pipe: Connection) -> None:
    """Runs one arm in this process: takes (prompts, count), answers with `Timed` ids, and at the end with its peak in MB."""
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
    answer = load(arm, folder, threads)
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        # Processor time of one thread is free of waiting for other programs.
        clock = time.process_time if threads == 1 else time.perf_counter
        begun = clock()
        result = answer(*task)
        pipe.send(harness.Timed(result, clock() - begun))
    ended.set()
    watcher.join()
    pipe.send(peak - before)


def weights_read(folder: Path) -> int:
    """The weights that a token reads: those of all linear layers, of which the head may be tied to the embedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))


def label(case: Case) -> str:
    return f"prefill {case[1]}" if case[2] == 1 else f"batch {case[0]}"


def measure(
    arms: list[str], cases: list[Case], folder: Path, threads: int, rounds: int, vocab: int
) -> dict[str, dict[str, Any]]:
    """Returns the seconds of every round, the ids and the peak memory of each arm."""
    draw = random.Random(0)
    prompts = {case: [[draw.randrange(8, vocab) for _ in range(case[1])] for _ in range(case[0])] for case in cases}
    workers: dict[str, tuple[Any, Connection]] = {}
    for arm in arms:
        workers[arm] = harness.start_worker("spawn", work, arm, folder, threads)
        # One after another: the next one waits until this one has its model.
        harness.receive(arm, workers[arm][1])

    def ask(arm: str, case: Case) -> harness.Timed[list[list[int]]]:
        pipe = workers[arm][1]
        pipe.send((prompts[case], case[2]))
        return harness.receive(arm, pipe)

    # llama.cpp's Python package answers one prompt at a time.
    turns = {
        (arm, case): partial(ask, arm, case)
        for case in cases
        for arm in arms
        if case[0] == 1 or not arm.startswith("llama.cpp")
    }
    answers = harness.in_turn(turns, rounds, warm_up=True)
    results: dict[str, dict[str, Any]] = {}
    for arm, (process, pipe) in workers.items():
        pipe.send(None)
        results[arm] = {"seconds": {}, "ids": {}, "peak_mb": harness.receive(arm, pipe)}
        process.join()
    for (arm, case), timed in answers.items():
        results[arm]["seconds"][label(case)] = [one.seconds for one in timed]
        results[arm]["ids"][label(case)] = timed[-1].result
    return results


def report(results: dict[str, dict[str, Any]], cases: list[Case], rate: float, weights: int, cache_mb: float) -> dict:
    """Prints the table and returns the figures."""
    first = results[REFERENCE]["seconds"]
    figures: dict[str, Any] = {}
    names = [label(case) for case in cases]
    print(harness.markdown_head("", *names, "of the floor", "peak, MB (allowed)", "ids"))
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
            speed = case[0] * (case[2] if case[2] > 1 else case[1]) / middle
            figures[arm][label(case)] = {"tokens_per_second": speed, "ratio": ratio}
            cells.append(f"{speed:.0f} ({ratio:.2f})")
        floor = weights * ARMS[arm][1] / rate
        one = next(case for case in cases if case[0] == 1 and case[2] > 1)
        share = floor * figures[arm][label(one)]["tokens_per_second"]
        # 400 MB more: the embedding stays in full precision where the head is quantized or packed.
        allowed = weights * ARMS[arm][1] / 1e6 + cache_mb + 400
        same = [result["ids"][name] == results[REFERENCE]["ids"][name] for name in names if name in result["ids"]]
        figures[arm] |= {"share_of_floor": share, "peak_mb": result["peak_mb"], "allowed_mb": allowed, "same": same}
        equal = "the same" if all(same) else f"{sum(same)} of {len(same)}"
        print(harness.markdown_row(arm, *cells, f"{share:.0%}", f"{result['peak_mb']:.0f} ({allowed:.0f})", equal))
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
    answer = load(arm, folder, threads)
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
    cases: list[Case] = [(1, PROMPT, tokens), (8, PROMPT, tokens), (MOST, PROMPT, tokens), (1, PREFILL, 1)]
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
        results = measure(arms, cases, folder, args.threads, rounds, min(config.vocab_size, 1000))
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
