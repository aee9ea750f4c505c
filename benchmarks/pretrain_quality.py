"""Held-out loss of pretraining recipes against tokens and core-seconds, on the same data, with several seeds.

Every run is the package's `pretrain` in a separate process, pinned to one core with one thread, so that its CPU time is its
cost whatever else the machine does. Core-seconds are those of the training loop: data, forward, backward, optimizer, callbacks
and logging; not imports, evaluation and saving. Compilation is the time of the first step above the median step's and has a
separate column.

Suites (`--suite`):
  shakespeare  nanoGPT's CPU command (GPT-2 style, AdamW) against this project's recipes, characters as tokens
  ablations    one change at a time from the recipe `shakespeare-char`, at equal tokens
  optimizers-python-docs, optimizers-gutenberg
               Muon against AdamW at equal tokens, each at several learning rates

    python benchmarks/pretrain_quality.py --suite shakespeare --data PATH/TO/tinyshakespeare.txt
"""

import argparse
import json
import math
import os
import queue
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import harness
from rich.console import Console
from rich.progress import track


@dataclass(frozen=True)
class Arm:
    """One recipe of a suite: its name, and the options of `pretrain` that it changes."""

    name: str
    recipe: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """The options as command-line words."""
        words: list[str] = []
        for name, value in self.options.items():
            # No command-line word unsets a recipe's option: `measure` does that.
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
        return words


# nanoGPT's README: 4 layers, 4 heads, width 128, block 64, batch 12, 2,000 steps, no dropout, and the learning rate,
# betas, warm-up and decay of its config/train_shakespeare_char.py.
NANOGPT = Arm(
    "GPT-2 style, AdamW (nanoGPT's CPU run)",
    None,
    {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "hidden_act": "gelu",
        "qk_norm": False,
        "embedding_norm": False,
        "embedding_residual": False,
        "zero_init_residual": False,
        "tie_word_embeddings": True,
        "vocab_size": 260,
        "block_size": 65,
        "per_device_train_batch_size": 12,
        "max_steps": 2000,
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "adam_beta2": 0.99,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 100,
    },
)


def change(arm: Arm, name: str, **options: Any) -> Arm:
    """The arm with these options changed."""
    return Arm(name, arm.recipe, {**arm.options, **options})


@dataclass(frozen=True)
class Suite:
    """Arms trained on the same text."""

    train: str
    held_out: str
    arms: list[Arm]
    reference: str


def shakespeare(data: Path) -> Suite:
    """Trains on the first 90 % of the characters and holds out the rest, as nanoGPT's prepare.py does."""
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    recipe = Arm("shakespeare-char", "shakespeare-char")
    # Larger tables than the text needs: worth it where core-seconds count and parameters do not.
    tables = {"ngram_vocab_sizes": [4096, 8192, 16384], "torch_compile": True}
    quick = {"num_hidden_layers": 2, "max_steps": 160, "learning_rate": 0.01, "warmup_steps": 10}
    long = {
        # Two layers and more steps: 0.02 better than three layers in the same time.
        "num_hidden_layers": 2,
        "block_size": 257,
        "per_device_train_batch_size": 6,
        # A last batch of another size would be compiled again.
        "dataloader_drop_last": True,
        "gated_mlp": True,
        "hidden_act": "silu",
        "intermediate_size": 341,
        "ngram_vocab_sizes": [4096, 12288],
        "torch_compile": True,
        "learning_rate": 0.009,
        "max_steps": 1200,
        "lr_scheduler_kwargs": {"num_decay_steps": 960, "decay_type": "linear"},
    }
    return Suite(
        text[:cut],
        text[cut:],
        [
            NANOGPT,
            recipe,
            change(recipe, "2 layers, block 256, SwiGLU, big tables, compiled", **long),
            change(recipe, "2 layers, 160 steps, big tables, compiled", **tables, **quick),
        ],
        NANOGPT.name,
    )


def ablations(data: Path) -> Suite:
    """Makes one change at a time to `shakespeare-char` at 0.31 M tokens, with a learning rate for the shorter run."""
    suite = shakespeare(data)
    base = Arm("shakespeare-char, 400 steps", "shakespeare-char", {"max_steps": 400, "learning_rate": 0.008})
    changes: dict[str, dict[str, Any]] = {
        "learning rate 0.004": {"learning_rate": 0.004},
        "learning rate 0.016": {"learning_rate": 0.016},
        "learned positions": {"position_embedding_type": "learned"},
        "layer norm": {"norm_type": "layernorm"},
        "no QK-norm": {"qk_norm": False},
        "GELU": {"hidden_act": "gelu"},
        # 341 is two thirds of 512, for the same number of parameters. The config rounds up to 384.
        "SwiGLU": {"hidden_act": "silu", "gated_mlp": True, "intermediate_size": 341},
        "no zero initialization": {"zero_init_residual": False},
        "tied head": {"tie_word_embeddings": True},
        "no embedding residual": {"embedding_residual": False},
        "no embedding norm": {"embedding_norm": False},
        "soft-capped logits": {"final_logit_softcapping": 15},
        "no convolutions": {"conv_kernel_size": None},
        "no n-grams": {"ngram_vocab_sizes": None},
        "cosine": {"lr_scheduler_type": "cosine"},
        "batch 24": {"per_device_train_batch_size": 24, "max_steps": 200},
        "batch 6": {"per_device_train_batch_size": 6, "max_steps": 800, "learning_rate": 0.006},
        "AdamW 0.002": {"optim": "adamw_torch_fused", "learning_rate": 0.002},
        "AdamW 0.004": {"optim": "adamw_torch_fused", "learning_rate": 0.004},
        "AdamW 0.008": {"optim": "adamw_torch_fused", "learning_rate": 0.008},
        "AdamW 0.016": {"optim": "adamw_torch_fused", "learning_rate": 0.016},
    }
    return Suite(suite.train, suite.held_out, [base, *(change(base, k, **v) for k, v in changes.items())], base.name)


def optimizers(text: tuple[str, str]) -> Suite:
    """Compares Muon and AdamW, each at several learning rates, with a tokenizer of 2,048 tokens."""
    shape = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 2048,
        "block_size": 256,
        "per_device_train_batch_size": 8,
        "max_steps": 150,
        "warmup_steps": 15,
        "weight_decay": 0.1,
    }
    arms = [Arm(f"Muon {rate}", None, {**shape, "learning_rate": rate}) for rate in (0.0025, 0.005, 0.01, 0.02)]
    adamw = {**shape, "optim": "adamw_torch_fused"}
    arms += [Arm(f"AdamW {rate}", None, {**adamw, "learning_rate": rate}) for rate in (0.0005, 0.001, 0.002, 0.004)]
    return Suite(*text, arms, arms[0].name)


def python_docs(data: Path) -> Suite:
    """The built-in corpus with its held-out part."""
    from chatgpt_hf.data.builtin import load_builtin

    parts = load_builtin("builtin:python-docs")
    return optimizers(("\n\n".join(parts["train"]["text"]), "\n\n".join(parts["test"]["text"])))


def gutenberg(data: Path) -> Suite:
    """English novels; the last twentieth of each is held out."""
    texts = [file.read_text(encoding="utf-8") for file in sorted((data / "gutenberg_en").glob("*.txt"))]
    cuts = [int(len(text) * 0.95) for text in texts]
    train = "\n\n".join(text[:cut] for text, cut in zip(texts, cuts, strict=True))
    return optimizers((train, "\n\n".join(text[cut:] for text, cut in zip(texts, cuts, strict=True))))


SUITES = {
    "shakespeare": shakespeare,
    "ablations": ablations,
    "optimizers-python-docs": python_docs,
    "optimizers-gutenberg": gutenberg,
}


def measure(arm: Arm, seed: int, train: str, held_out: str, folder: str, points: int) -> dict[str, Any]:
    """Trains one arm with one seed in this process and returns its figures."""
    from transformers import TrainerCallback

    from chatgpt_hf.checkpoints import load_model
    from chatgpt_hf.evaluation.language_modeling import evaluate_language_modeling
    from chatgpt_hf.tokenization_chatgpt import load_tokenizer
    from chatgpt_hf.training.arguments import (
        ArchitectureArguments,
        CorpusArguments,
        ModelArguments,
        PretrainArguments,
        parse_recipe,
    )
    from chatgpt_hf.training.pretrain import pretrain

    class CoreSeconds(TrainerCallback):
        """CPU time from one step's end to the next, without evaluation and saving."""

        def __init__(self) -> None:
            self.steps: list[float] = []
            self.mark = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.mark = time.process_time()

        on_evaluate = on_save = on_train_begin

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.process_time()
            self.steps.append(now - self.mark)
            self.mark = now

    clock = CoreSeconds()
    types = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)
    fixed = {"corpus": train, "eval_corpus": held_out, "output_dir": folder, "seed": seed, "save_strategy": "no"}
    quiet = {"disable_tqdm": True, "logging_steps": 100}
    arguments = parse_recipe(types, arm.recipe, change(arm, "", **fixed, **quiet).arguments())
    for group in arguments:
        for name, value in arm.options.items():
            if value is None and hasattr(group, name):
                setattr(group, name, None)
    if points:
        arguments[-1].eval_strategy = "steps"
        arguments[-1].eval_steps = max(1, arguments[-1].max_steps // points)
    pretrain(*arguments, callbacks=[clock])

    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    text = Path(held_out).read_text(encoding="utf-8")
    context = model.config.max_position_embeddings
    result = evaluate_language_modeling(model, tokenizer, [text], stride=context - 1, batch_size=32, progress=False)
    state = json.loads((Path(folder) / "report" / "report.json").read_text(encoding="utf-8"))
    usual = statistics.median(clock.steps)
    # The first step includes compilation, if any.
    compilation = clock.steps[0] - usual
    cumulative = [compilation * -1]
    for step in clock.steps:
        cumulative.append(cumulative[-1] + step)
    tokens = arguments[-1].per_device_train_batch_size * arguments[-1].gradient_accumulation_steps
    tokens *= arguments[2].block_size
    return {
        "nats_per_character": result.negative_log_likelihood / len(text),
        "bits_per_byte": result.bits_per_byte,
        "core_seconds": cumulative[-1],
        "compilation": compilation,
        "parameters": model.num_parameters(),
        "steps": len(clock.steps),
        "tokens": tokens * len(clock.steps),
        "curve": [
            (entry["step"] * tokens, cumulative[entry["step"]], entry["eval_loss"])
            for entry in state["log_history"]
            if "eval_loss" in entry
        ],
    }


def start(arm: Arm, seed: int, train: Path, held_out: Path, points: int, cores: "queue.Queue[int]") -> dict[str, Any]:
    """Runs `measure` in a separate process on a free core."""
    core = cores.get()
    try:
        with tempfile.TemporaryDirectory() as folder:
            task = {"arm": asdict(arm), "seed": seed, "train": str(train), "held_out": str(held_out)}
            task |= {"folder": f"{folder}/run", "points": points, "core": core}
            output = harness.run_apart(
                f"{arm.name}, seed {seed}",
                [sys.executable, __file__, "--worker", json.dumps(task)],
                OMP_NUM_THREADS="1",
                TOKENIZERS_PARALLELISM="false",
                # An empty cache for each run, so that every run pays for its compilation.
                TORCHINDUCTOR_CACHE_DIR=f"{folder}/inductor",
            )
        return json.loads(output.splitlines()[-1])
    finally:
        cores.put(core)


def plot(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draws the held-out loss against tokens and against core-seconds, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for index, (name, runs) in enumerate(results.items()):
        for number, run in enumerate(runs):
            points = run["curve"]
            label = name if number == 0 else None
            for axis, axes in enumerate(panels):
                axes.plot(
                    [p[axis] for p in points], [p[2] for p in points], color=f"C{index}", marker=".", label=label
                )
    panels[0].set(xlabel="training tokens", ylabel="held-out loss (nats per token)")
    panels[1].set(xlabel="core-seconds, compilation apart")
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8)
    figure.savefig(file, dpi=120)


def show(suite: Suite, results: dict[str, list[dict[str, Any]]]) -> None:
    """Prints means and standard deviations over the seeds."""

    def column(name: str, key: str) -> tuple[float, float]:
        values = [run[key] for run in results[name]]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan

    titles = (
        "recipe",
        "parameters",
        "tokens",
        "nats/char",
        "±",
        "bits/byte",
        "core-s",
        "compiling",
        "share of core-s",
    )
    table = harness.rich_table(*titles, left=("recipe",))
    for name, runs in results.items():
        loss, spread = column(name, "nats_per_character")
        cost = column(name, "core_seconds")[0]
        table.add_row(
            name,
            f"{runs[0]['parameters']:,}",
            f"{runs[0]['tokens']:,}",
            f"{loss:.4f}",
            f"{spread:.4f}",
            f"{column(name, 'bits_per_byte')[0]:.4f}",
            f"{cost:.1f}",
            f"{column(name, 'compilation')[0]:.1f}",
            f"{cost / column(suite.reference, 'core_seconds')[0]:.2f}",
        )
    harness.show(table, width=140)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--suite", choices=SUITES, default="shakespeare", help="default: %(default)s")
    parser.add_argument(
        "--data",
        type=Path,
        default=harness.SHARED_DATA / "corpus",
        help="folder with tinyshakespeare.txt and gutenberg_en/",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument(
        "--points", type=int, default=4, help="evaluations during training, 0 for none (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each (default: all cores)"
    )
    parser.add_argument("--arms", nargs="+", help="run the first arm and those whose name contains one of these")
    parser.add_argument("--first_seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--max_steps", type=int, help="steps of every arm; each has a default")
    parser.add_argument(
        "--out", type=Path, default=harness.ROOT / "runs" / "benchmarks", help="folder of the figures and plots"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        task = json.loads(args.worker)
        # Before torch is imported, which asks how many cores it may use.
        os.sched_setaffinity(0, {task.pop("core")})
        print(json.dumps(measure(Arm(**task.pop("arm")), **task)))
        return
    if not args.data.is_dir():
        harness.skip(f"There is no folder {args.data}: name with --data one that holds tinyshakespeare.txt.")
    suite = SUITES[args.suite](args.data)
    arms = suite.arms
    if args.arms:
        arms = [arm for arm in arms if arm is arms[0] or any(word in arm.name for word in args.arms)]
    if args.max_steps:
        arms = [change(arm, arm.name, max_steps=args.max_steps) for arm in arms]
    args.out.mkdir(parents=True, exist_ok=True)
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0))[: args.jobs]:
        cores.put(core)
    results: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(cores.qsize()) as pool:
        train, held_out = Path(folder) / "train.txt", Path(folder) / "held_out.txt"
        train.write_text(suite.train, encoding="utf-8")
        held_out.write_text(suite.held_out, encoding="utf-8")
        # Seed by seed, so that a change in the machine's speed affects all arms.
        jobs = {
            pool.submit(start, arm, seed, train, held_out, args.points, cores): arm.name
            for seed in range(args.first_seed, args.first_seed + args.seeds)
            for arm in arms
        }
        for job in track(as_completed(jobs), total=len(jobs), description="Training", console=Console(stderr=True)):
            results[jobs[job]].append(job.result())
            # Written after each run, so that an interruption loses nothing.
            file = args.out / f"pretrain_quality-{args.suite}.json"
            file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if args.points:
        plot(results, args.out / f"pretrain_quality-{args.suite}.png")
    show(suite, results)
    losses = {name: statistics.mean(run["nats_per_character"] for run in runs) for name, runs in results.items()}
    first = losses.pop(suite.reference)
    ratios = {f"{suite.reference}/{name} nats per character": first / loss for name, loss in losses.items()}
    harness.write_json(args.json, ratios, results=results)


if __name__ == "__main__":
    main()
