"""Trains small base models, runs every task recipe from them, and prints a table of the results.

The base models learn from English novels and articles and from one Chinese novel, in less than 15 minutes each on one core; the
quickstart's base model learns from Python's documentation. Baselines (TF-IDF with logistic regression, the most frequent tag of
each word, the same architecture without pretraining) see the same rows. Runs that --out already holds are not repeated.

    python benchmarks/tasks.py --data FOLDER
    python benchmarks/tasks.py --data FOLDER --tasks sst2 tang-poems --jobs 1
"""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

from chatgpt_hf.training.run_folder import RECIPE_NAME, RESULTS_NAME

# The one novel of ten that no model reads; its beginning measures the English base model.
UNREAD = "Moby-Dick"
UNREAD_CHARACTERS = 200_000
# The recipe of each base model and its texts below corpus/; POEM makes a text of JSON.
POEM = "{title}\n{author}\n{paragraphs}"
BASES: dict[str, tuple[str, list[str | dict[str, str]]]] = {
    "base-english": ("base-english", ["gutenberg_en/*", "wikipedia_en_30_articles.txt", "wikitext2_valid.txt"]),
    "base-chinese": ("base-chinese", ["zh/*"]),
    # A thousand poems, none of them in the task's data.
    "base-poems": ("base-chinese", ["zh/*", {"source": "zh_poems/quan_tang_shi_0.json", "template": POEM}]),
    "pretrain-quickstart": ("pretrain-quickstart", []),
}


@dataclass(frozen=True)
class TaskRun:
    """One recipe.

    Attributes:
        base: The base model it starts from.
        folder: Where its rows are in the data.
        figures: The results to show.
        recipe: Its recipe, if it has another name.
        options: Further options of the command.
    """

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
    """Runs a command with the `--output_dir` `folder`, unless an earlier run finished; returns its results and seconds.

    Raises:
        SystemExit: When the command fails, with its last line.
    """
    finished, seconds_file = folder / RESULTS_NAME, folder.parent / f"{folder.name}.seconds.json"
    if not (finished.is_file() and seconds_file.is_file()):
        start = time.perf_counter()
        log = folder.parent / f"{folder.name}.log"
        # An interrupted run is resumed; its seconds are then those of the rest.
        begun = ["--resume_from_checkpoint", "true"] if (folder / RECIPE_NAME).is_file() else []
        with log.open("w", encoding="utf-8") as stream:
            code = subprocess.call(
                [*harness.CLI, *command, "--output_dir", str(folder), *begun], stdout=stream, stderr=stream
            )
        if code:
            said = log.read_text(encoding="utf-8").strip().splitlines()
            raise SystemExit(f"{name} failed: {said[-1] if said else code}; see {log}.")
        seconds_file.write_text(json.dumps(time.perf_counter() - start), encoding="utf-8")
    results: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return results | {"seconds": json.loads(seconds_file.read_text(encoding="utf-8"))}


def corpus_options(sources: list[str | dict[str, str]], data: Path, out: Path) -> list[str]:
    """The options for a base model's training and held-out texts."""
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
    parser = harness.parser(__doc__, epilog="Further options go to every task's `chatgpt-hf finetune`.")
    parser.add_argument(
        "--data", type=Path, default=harness.SHARED_DATA, help="folder with classification/, corpus/, ner/, qa/ ..."
    )
    parser.add_argument("--tasks", nargs="+", choices=list(RUNS), default=list(RUNS), help="run only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; set OMP_NUM_THREADS=1 with several")
    parser.add_argument("--max_steps", help="steps of every run, base models too, instead of the recipe's")
    parser.add_argument(
        "--out", type=Path, default=harness.ROOT / "runs" / "benchmarks" / "tasks", help="folder of the runs"
    )
    args, further = parser.parse_known_args()
    if not args.data.is_dir():
        harness.skip(f"There is no folder {args.data}: name one with --data.")
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
        # Base models first: a task that waits for its base must not take the base's place in the pool.
        bases = {base: pool.submit(make_base, base) for base in dict.fromkeys(RUNS[name].base for name in args.tasks)}
        made = pool.map(make_task, args.tasks)
        for base, future in bases.items():
            results = future.result()
            print(
                f"{base}: {results['held_out_bits_per_byte']:.3f} bits per byte, {results['seconds']:.0f} s",
                flush=True,
            )
        titles = ("recipe", "rows", "figure", "model", "beside it", "seconds")
        table = harness.rich_table(
            *titles, left=("recipe", "figure", "beside it"), title="Tasks from small base models"
        )
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
    harness.show(table, width=170)
    harness.write_json(args.json, ratios, results=finished)


if __name__ == "__main__":
    main()
