"""Measures what alignment teaches small models: a reward model on pairs of answers, and GRPO on sums.

Every figure is of several seeds, on rows that were not trained on: the mean, and a 95 % interval of Student's t over seeds.

- `reward-en`, `reward-zh`: a new model learns pairs (`rasbt_preference_1100.json`, `lf_dpo_zh_demo.json`), split by prompt, and
  ranks the pairs that were held out. Beside it a rule that sees only the length of the answers.
- `arithmetic`: a new model learns to add numbers of three digits from examples, then from rewards for its own answers.

    python benchmarks/learned.py --out runs/learned
    python benchmarks/learned.py --out runs/learned --only arithmetic --seeds 0
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import harness

from chatgpt_hf.training.run_folder import RESULTS_NAME

PREFERENCES = harness.SHARED_DATA / "preference"
# The shape of the new models: 0.9 million parameters and their vocabulary.
SHAPE = (4, 4, 128)


def new_model(
    folder: Path, texts: Iterable[str], vocab_size: int, seed: int, *, context: int, max_digits: int
) -> Path:
    """Saves a model with random weights, and a tokenizer that learned from these texts."""
    import torch

    from chatgpt_hf import ChatGPTForCausalLM, train_tokenizer

    tokenizer = train_tokenizer(
        texts, vocab_size, max_digits=max_digits, show_progress=False, model_max_length=context
    )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(seed)
    config = harness.shaped_config(*SHAPE, vocab=len(tokenizer), context=context, **special)
    ChatGPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(target: Path, *words: object) -> dict[str, Any]:
    """Runs a training of the command line, unless an earlier run finished; returns its figures."""
    if not (target / RESULTS_NAME).is_file():
        options = ["--output_dir", target, "--disable_tqdm", "true"]
        harness.run_apart(str(words[0]), [*harness.CLI, *map(str, [*words, *options])])
    return json.loads((target / RESULTS_NAME).read_text(encoding="utf-8"))


def reward_model(file: str, out: Path, seed: int, more: list[str]) -> dict[str, float]:
    """The accuracy of a reward model on held-out pairs, and that of the answers' length."""
    data = PREFERENCES / file
    if not data.is_file():
        harness.skip(f"{data} is missing: CHATGPT_HF_DATA names the folder that has preference/{file}.")
    texts = [json.dumps(row, ensure_ascii=False) for row in json.loads(data.read_text(encoding="utf-8"))]
    base = new_model(out / f"base-{seed}", texts, 2048, seed, context=512, max_digits=2)
    words = ["reward", "reward-en", "--model_name_or_path", base, "--dataset", data, "--seed", seed, *more]
    found = trained(out / f"reward-{seed}", *words, "--learning_rate", 1e-3, "--num_train_epochs", 2)
    return {
        "pairs ranked right": found["held_out_pair_accuracy"],
        "pairs ranked right by length": found["held_out_length_accuracy"],
    }


def sums(count: int, seed: int) -> list[dict[str, str]]:
    """Questions of two numbers below 1,000, with their answers."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(1000), draw.randrange(1000)) for _ in range(count)]
    return [{"question": f"{one}+{other}=", "answer": str(one + other)} for one, other in pairs]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def arithmetic(out: Path, seed: int, more: list[str]) -> dict[str, float]:
    """The share of right sums before and after GRPO: sampled, greedy, and among eight samples."""
    # Different questions for every stage; with a million possible ones, few are in two of them.
    examples, prompts, held_out = (sums(count, 10 * seed + part) for part, count in enumerate((2000, 5000, 500)))
    seen = {row["question"] for row in examples + prompts}
    held_out = [row for row in held_out if row["question"] not in seen]
    texts = [f"{row['question']} {row['answer']}" for row in examples]
    base = new_model(out / f"base-{seed}", texts, 270, seed, context=128, max_digits=1)
    sft = ["sft", "--model_name_or_path", base, "--dataset", write(out / f"examples-{seed}.jsonl", examples)]
    sft += ["--block_size", 64, "--per_device_train_batch_size", 64, "--optim", "muon", "--learning_rate", 0.01]
    trained(out / f"sft-{seed}", *sft, "--evaluate_answers", 0, "--seed", seed, "--max_steps", 250)
    grpo = ["grpo", "grpo-arithmetic", "--model_name_or_path", out / f"sft-{seed}", "--seed", seed]
    grpo += ["--dataset", write(out / f"prompts-{seed}.jsonl", prompts), "--rewards", "exact"]
    grpo += ["--eval_dataset", write(out / f"held-out-{seed}.jsonl", held_out), "--evaluate_prompts", len(held_out)]
    found = trained(out / f"grpo-{seed}", *grpo, *more)
    names = {"reward": "sampled", "greedy_reward": "greedy", "pass_at_8": "one of eight"}
    return {
        f"{title} sums right, {time}": found[f"held_out_{name}{'_before' if time == 'before' else ''}"]
        for name, title in names.items()
        for time in ("before", "after")
    }


PARTS: dict[str, Callable[[Path, int, list[str]], dict[str, float]]] = {
    "reward-en": lambda *options: reward_model("rasbt_preference_1100.json", *options),
    "reward-zh": lambda *options: reward_model("lf_dpo_zh_demo.json", *options),
    "arithmetic": arithmetic,
}


# What one arm has over the other.
RATIOS = [
    (
        "English pairs ranked right, reward model/length",
        "reward-en",
        "pairs ranked right",
        "pairs ranked right by length",
    ),
    ("sampled sums right, after GRPO/before", "arithmetic", "sampled sums right, after", "sampled sums right, before"),
]


def interval(values: list[float]) -> str:
    """A 95 % interval of the mean over seeds."""
    import numpy as np
    from scipy import stats

    if len(values) < 2:
        return ""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"[{np.mean(values) - half:.3f}, {np.mean(values) + half:.3f}]"


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where models are trained")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of models and trainings")
    parser.add_argument("--fields", default="", help="further fields of the last training, in one word")
    args = parser.parse_args()
    harness.prepare()
    figures: dict[str, dict[str, list[float]]] = {}
    for part in args.only:
        (args.out / part).mkdir(parents=True, exist_ok=True)
        each = [PARTS[part](args.out / part, seed, args.fields.split()) for seed in args.seeds]
        figures[part] = {name: [found[name] for found in each] for name in each[0]}
    table = harness.rich_table(
        "part", "figure", *(f"seed {seed}" for seed in args.seeds), "mean", "95 % interval", left=("part", "figure")
    )
    for part, rows in figures.items():
        for name, values in rows.items():
            table.add_row(
                part, name, *(f"{value:.3f}" for value in values), f"{sum(values) / len(values):.3f}", interval(values)
            )
    harness.show(table, width=150)
    ratios = {
        name: sum(figures[part][better]) / sum(figures[part][worse])
        for name, part, better, worse in RATIOS
        if part in figures
    }
    harness.write_json(args.json, ratios, seeds=args.seeds, figures=figures)


if __name__ == "__main__":
    main()
