"""The recipes for tasks, each run to its end from small base models that are made first, and a table of what they reach.

The base models learn from English novels and articles and from one Chinese novel, below 15 minutes each on one core; the quickstart's
base model from Python's documentation. What stands beside a model (TF-IDF and logistic regression, the most frequent tag of each
word, the same architecture without pretraining) sees the same rows. Runs that are finished in --out are not made again.

    python benchmarks/tasks.py --data FOLDER
    python benchmarks/tasks.py --data FOLDER --tasks sst2 tang-poems --jobs 1
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import skip
from rich.console import Console
from rich.table import Table

from chatgpt_hf.checkpoints import RECIPE_NAME
from chatgpt_hf.training.run import RESULTS_NAME

ROOT = Path(__file__).resolve().parents[1]
CLI = "from chatgpt_hf_cli import main; main()"
# Of the ten novels one stays unread; its beginning is what the English base model is measured on.
UNREAD = "Moby-Dick"
UNREAD_CHARACTERS = 200_000
# Where a base model's texts lie below corpus/, and how JSON becomes one.
POEM = "{title}\n{author}\n{paragraphs}"
BASES: dict[str, tuple[str, list[str | dict[str, str]]]] = {
    "base-english": ("base-english", ["gutenberg_en/*", "wikipedia_en_30_articles.txt", "wikitext2_valid.txt"]),
    "base-chinese": ("base-chinese", ["zh/*"]),
    # A thousand poems, none of which is among the recipe's.
    "base-poems": ("base-chinese", ["zh/*", {"source": "zh_poems/quan_tang_shi_0.json", "template": POEM}]),
    "pretrain-quickstart": ("pretrain-quickstart", []),
}


@dataclass(frozen=True)
class TaskRun:
    """One recipe: the base model it starts from, where its rows lie in the data, the figure that counts, and changes."""

    base: str
    folder: str
    figures: tuple[str, ...]
    recipe: str | None = None
    options: tuple[str, ...] = ()


PERPLEXITY = "held_out_perplexity"
RUNS = {
    "sst2": TaskRun("base-english", "classification", ("held_out_accuracy",)),
    "ag-news": TaskRun("base-english", "classification", ("held_out_accuracy",)),
    "thucnews": TaskRun("base-chinese", "classification", ("held_out_accuracy",)),
    "wnut17": TaskRun("base-english", "ner", ("held_out_overall_f1",)),
    "xquad-en": TaskRun("base-english", "qa", ("held_out_token_f1", "held_out_exact_match")),
    "xquad-zh": TaskRun("base-chinese", "qa", ("held_out_token_f1", "held_out_exact_match")),
    "tang-poems": TaskRun("base-poems", "corpus/zh_poems", (PERPLEXITY,)),
    "tang-poems, new weights": TaskRun(
        "base-poems", "corpus/zh_poems", (PERPLEXITY,), "tang-poems", ("--from_scratch", "true")
    ),
    "translate-en-zh": TaskRun("base-chinese", "translation", ("held_out_bleu", "held_out_chrf")),
    "summarise-news": TaskRun("base-english", "summarization", ("held_out_rouge1", "held_out_rougeL")),
    "code-docstrings": TaskRun("pretrain-quickstart", "", (PERPLEXITY,)),
    "relations": TaskRun("base-english", "", ("held_out_triple_f1", "held_out_parses")),
}


def run(name: str, command: list[str], folder: Path) -> dict[str, Any]:
    """The results of a command whose `--output_dir` is `folder`, and the seconds it took; kept from an earlier run.

    Raises:
        SystemExit: When it fails, with what it said last.
    """
    finished, seconds_file = folder / RESULTS_NAME, folder.parent / f"{folder.name}.seconds.json"
    if not (finished.is_file() and seconds_file.is_file()):
        start = time.perf_counter()
        log = folder.parent / f"{folder.name}.log"
        # What an interrupted run of this script began is gone on with, and its seconds are those of the rest.
        begun = ["--resume_from_checkpoint", "true"] if (folder / RECIPE_NAME).is_file() else []
        with log.open("w", encoding="utf-8") as stream:
            code = subprocess.call(
                [sys.executable, "-c", CLI, *command, "--output_dir", str(folder), *begun],
                stdout=stream,
                stderr=stream,
            )
        if code:
            said = log.read_text(encoding="utf-8").strip().splitlines()
            raise SystemExit(f"{name} failed: {said[-1] if said else code}; {log} has the whole of it.")
        seconds_file.write_text(json.dumps(time.perf_counter() - start), encoding="utf-8")
    results: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return results | {"seconds": json.loads(seconds_file.read_text(encoding="utf-8"))}


def corpus_options(sources: list[str | dict[str, str]], data: Path, out: Path) -> list[str]:
    """What a base model reads and is measured on."""
    files: list[Path] = []
    options = []
    for source in sources:
        if isinstance(source, dict):
            options.append(json.dumps({**source, "source": str(data / "corpus" / source["source"])}))
        else:
            files += sorted((data / "corpus").glob(source))
    if not files:
        raise SystemExit(f"{data / 'corpus'} has none of {sources[0]}: name another folder with --data.")
    options += [str(file) for file in files if UNREAD not in file.name]
    for file in files:
        if UNREAD in file.name:
            held_out = out / "held-out.txt"
            held_out.write_text(file.read_text(encoding="utf-8")[:UNREAD_CHARACTERS], encoding="utf-8")
            options += ["--eval_corpus", str(held_out)]
    return ["--corpus", *options]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options go to every task's `chatgpt-hf finetune`.",
    )
    default = Path(os.environ.get("CHATGPT_HF_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument(
        "--data", type=Path, default=default, help="folder with classification/, corpus/, ner/, qa/ ..."
    )
    parser.add_argument("--tasks", nargs="+", choices=list(RUNS), default=list(RUNS), help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; set OMP_NUM_THREADS=1 with several")
    parser.add_argument("--max_steps", help="of every run, base models too, in place of its own")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks" / "tasks", help="folder of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args, further = parser.parse_known_args()
    if not args.data.is_dir():
        skip(f"There is no folder {args.data}: name one with --data.")
    args.out.mkdir(parents=True, exist_ok=True)
    shorter = ["--max_steps", args.max_steps] if args.max_steps else []

    def make_base(base: str) -> dict[str, Any]:
        recipe, sources = BASES[base]
        corpus = corpus_options(sources, args.data, args.out) if sources else []
        return run(base, ["pretrain", recipe, *corpus, *shorter], args.out / base)

    def make_task(name: str) -> dict[str, Any]:
        task = RUNS[name]
        bases[task.base].result()
        folder = args.out / name.replace(", ", "-").replace(" ", "-")
        data = ["--data_dir", str(args.data / task.folder)] if task.folder else []
        base = ["--model_name_or_path", str(args.out / task.base)]
        return run(name, ["finetune", task.recipe or name, *data, *base, *task.options, *shorter, *further], folder)

    with ThreadPoolExecutor(args.jobs) as pool:
        # In this order, so that no task that waits for its base keeps that base from a place.
        bases = {base: pool.submit(make_base, base) for base in dict.fromkeys(RUNS[name].base for name in args.tasks)}
        made = pool.map(make_task, args.tasks)
        for base, future in bases.items():
            results = future.result()
            print(
                f"{base}: {results['held_out_bits_per_byte']:.3f} bits per byte, {results['seconds']:.0f} s",
                flush=True,
            )
        table = Table(title="Tasks from small base models")
        for title in ("recipe", "rows", "figure", "model", "beside it", "seconds"):
            table.add_column(title, justify="left" if title in ("recipe", "figure", "beside it") else "right")
        finished = dict(zip(args.tasks, made, strict=True))
        ratios: dict[str, float] = {}
        for name, results in finished.items():
            for figure in RUNS[name].figures:
                short = figure.removeprefix("held_out_")
                others = {key.split(":")[0]: value for key, value in results.items() if key.endswith(f": {short}")}
                ratios |= {
                    f"{name}, model/{other} {short}": results[figure] / value for other, value in others.items()
                }
                beside = [f"{other} {value:.3f}" for other, value in others.items()]
                table.add_row(
                    name,
                    f"{results['train_rows']}, {results['held_out_rows']}",
                    short,
                    f"{results[figure]:.3f}",
                    "; ".join(beside),
                    f"{results['seconds']:.0f}",
                )
    Console(width=170).print(table)
    if args.json:
        args.json.write_text(json.dumps({"results": finished, "ratios": ratios}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
