"""Measures what alignment teaches small models: a reward model on pairs of answers, and GRPO on sums.

Every figure is of several seeds, on rows that were not trained on: the mean, and a 95 % interval of Student's t over seeds.

- `reward-en`, `reward-zh`: a new model learns pairs (`rasbt_preference_1100.json`, `lf_dpo_zh_demo.json`), split by prompt, and
  ranks the pairs that were held out. Beside it a rule that sees only the length of the answers. The Chinese file has only 300
  pairs, so three models each learn two thirds of them, and every pair is held out once.
- `arithmetic`: a new model learns to add numbers of three digits from examples, then from rewards for its own answers.
- `calculator`: a new model learns from a few examples to call a calculator for such sums, then from rewards for its own answers.

    python benchmarks/learned.py --out runs/learned
    python benchmarks/learned.py --out runs/learned --only arithmetic --seeds 0
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import harness

from chatgpt_hf.tokenization_chatgpt import IM_END
from chatgpt_hf.training.run_folder import RESULTS_NAME

PREFERENCES = harness.SHARED_DATA / "preference"
# Layers, heads and width of the new models: 0.9 million parameters and their vocabulary.
SHAPE = (4, 4, 128)
# For the few, long Chinese rows.
SMALL = (2, 2, 64)
# Models that share the Chinese pairs: each learns all but its own part.
PARTS_OF_CHINESE = 3
# The share of sampled sums that should be right before GRPO.
START = 0.76


def new_model(
    folder: Path,
    texts: Iterable[str],
    vocab_size: int,
    seed: int,
    *,
    context: int,
    max_digits: int,
    shape: tuple[int, int, int] = SHAPE,
) -> Path:
    """Saves a model with random weights, and a tokenizer that learned from these texts."""
    import torch

    from chatgpt_hf import ChatGPTForCausalLM, train_tokenizer

    tokenizer = train_tokenizer(
        texts, vocab_size, max_digits=max_digits, show_progress=False, model_max_length=context
    )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(seed)
    config = harness.shaped_config(*shape, vocab=len(tokenizer), context=context, **special)
    ChatGPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(target: Path, *words: object) -> dict[str, Any]:
    """Runs a training of the command line, unless an earlier run finished; returns its figures."""
    if not (target / RESULTS_NAME).is_file():
        options = ["--output_dir", target, "--disable_tqdm", "true"]
        harness.run_apart(str(words[0]), [*harness.CLI, *map(str, [*words, *options])])
    return json.loads((target / RESULTS_NAME).read_text(encoding="utf-8"))


def read_pairs(file: str) -> list[dict[str, Any]]:
    """The rows of a file of preferences; skips the script where it is missing."""
    data = PREFERENCES / file
    if not data.is_file():
        harness.skip(f"{data} is missing: CHATGPT_HF_DATA names the folder that has preference/{file}.")
    rows: list[dict[str, Any]] = json.loads(data.read_text(encoding="utf-8"))
    return rows


def reward_model(
    rows: list[dict[str, Any]], out: Path, seed: int, words: list[object], **sizes: Any
) -> dict[str, Any]:
    """Trains a reward model that starts from random weights; returns the figures of its results.json."""
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    base = new_model(out / f"base-{seed}", texts, 2048, seed, max_digits=2, **sizes)
    shared = ["--model_name_or_path", base, "--seed", seed, "--learning_rate", 1e-3]
    return trained(out / f"reward-{seed}", "reward", "reward-en", *shared, *words)


def english(out: Path, seed: int, more: list[str]) -> dict[str, float]:
    """The accuracy of a reward model on held-out English pairs, and that of the answers' length."""
    file = "rasbt_preference_1100.json"
    words = ["--dataset", PREFERENCES / file, "--num_train_epochs", 2, *more]
    found = reward_model(read_pairs(file), out, seed, words, context=512)
    return {
        "pairs ranked right": found["held_out_pair_accuracy"],
        "pairs ranked right by length": found["held_out_length_accuracy"],
    }


def chinese(out: Path, seed: int, more: list[str]) -> dict[str, float]:
    """The same for Chinese pairs, each of which is held out from one of three models; longer rows than 1,024 tokens are cut."""
    rows = read_pairs("lf_dpo_zh_demo.json")
    prompts = [json.dumps(row["conversations"], ensure_ascii=False) for row in rows]
    order = sorted(set(prompts))
    random.Random(seed).shuffle(order)
    part_of = {prompt: place % PARTS_OF_CHINESE for place, prompt in enumerate(order)}
    right, count = {"pair": 0.0, "length": 0.0}, 0
    for part in range(PARTS_OF_CHINESE):
        folder = out / f"part-{part}"
        folder.mkdir(exist_ok=True)
        learned, held_out = (
            [row for row, prompt in zip(rows, prompts, strict=True) if (part_of[prompt] == part) == is_held_out]
            for is_held_out in (False, True)
        )
        words = ["--dataset", write(folder / f"learned-{seed}.jsonl", learned)]
        words += ["--eval_dataset", write(folder / f"held-out-{seed}.jsonl", held_out)]
        words += ["--max_length", 1024, "--long_preferences", "cut", "--num_train_epochs", 3]
        words += ["--per_device_train_batch_size", 4, *more]
        found = reward_model(learned, folder, seed, words, context=1024, shape=SMALL)
        count += found["held_out_rows"]
        for rule in right:
            right[rule] += found[f"held_out_{rule}_accuracy"] * found["held_out_rows"]
    return {"pairs ranked right": right["pair"] / count, "pairs ranked right by length": right["length"] / count}


def sums(count: int, seed: int) -> list[dict[str, str]]:
    """Questions of two numbers below 1,000, with their answers."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(1000), draw.randrange(1000)) for _ in range(count)]
    return [{"question": f"{one}+{other}=", "answer": str(one + other)} for one, other in pairs]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def answer_gains(found: dict[str, Any]) -> dict[str, float]:
    """The shares of right sums before and after GRPO: sampled, greedy, and among eight samples."""
    names = {"reward": "sampled", "greedy_reward": "greedy", "pass_at_8": "one of eight"}
    return {
        f"{title} sums right, {time}": found[f"held_out_{name}{'_before' if time == 'before' else ''}"]
        for name, title in names.items()
        for time in ("before", "after")
    }


def grpo(
    out: Path, model: Path, seed: int, recipe: str, prompts: list[dict[str, str]], held_out: list[dict[str, str]]
) -> list[object]:
    """The words of a training from rewards for exact sums."""
    words: list[object] = ["grpo", recipe, "--model_name_or_path", model, "--seed", seed]
    words += ["--dataset", write(out / f"prompts-{seed}.jsonl", prompts), "--rewards", "exact"]
    words += ["--eval_dataset", write(out / f"held-out-{seed}.jsonl", held_out), "--evaluate_prompts", len(held_out)]
    return words


def stages(seed: int, *counts: int) -> list[list[dict[str, str]]]:
    """Sums for several stages; the last ones are held out, so those that an earlier stage has too are left out."""
    *learned, held_out = (sums(count, 10 * seed + part) for part, count in enumerate(counts))
    seen = {row["question"] for rows in learned for row in rows}
    return [*learned, [row for row in held_out if row["question"] not in seen]]


def nearest_checkpoint(run: Path, rows: list[dict[str, str]], share: float) -> Path:
    """The checkpoint whose sampled sums are right most nearly in this share; a model learns to carry within a few dozen steps."""
    import torch

    from chatgpt_hf import load_model, load_tokenizer
    from chatgpt_hf.chat_templates import encode_chat_prompt
    from chatgpt_hf.inference.sampler import sample_completions

    tokenizer = load_tokenizer(run)
    ends = [tokenizer.convert_tokens_to_ids(IM_END), tokenizer.eos_token_id]
    prompts = [encode_chat_prompt(tokenizer, [{"role": "user", "content": row["question"]}]) for row in rows]
    found = {}
    for folder in sorted(run.glob("checkpoint-*")):
        sampled = sample_completions(
            load_model(folder).eval(),
            prompts,
            samples=4,
            end_ids=ends,
            max_new_tokens=16,
            generator=torch.Generator().manual_seed(0),
        )
        right = [
            tokenizer.decode(sample.ids, skip_special_tokens=True).strip() == row["answer"]
            for row, samples in zip(rows, sampled, strict=True)
            for sample in samples
        ]
        found[folder] = sum(right) / len(right)
    return min(found, key=lambda folder: abs(found[folder] - share))


def arithmetic(out: Path, seed: int, more: list[str]) -> dict[str, float]:
    """Returns the shares of right sums before and after GRPO, of a model that learned them from examples."""
    examples, prompts, held_out = stages(seed, 2000, 5000, 500)
    texts = [f"{row['question']} {row['answer']}" for row in examples]
    base = new_model(out / f"base-{seed}", texts, 270, seed, context=128, max_digits=1)
    sft = ["sft", "--model_name_or_path", base, "--dataset", write(out / f"examples-{seed}.jsonl", examples)]
    sft += ["--block_size", 64, "--per_device_train_batch_size", 64, "--optim", "muon", "--learning_rate", 0.01]
    sft += ["--evaluate_answers", 0, "--seed", seed, "--max_steps", 450, "--save_steps", 25, "--save_total_limit", 18]
    trained(out / f"sft-{seed}", *sft)
    chosen = nearest_checkpoint(out / f"sft-{seed}", prompts[:200], START)
    return answer_gains(
        trained(out / f"grpo-{seed}", *grpo(out, chosen, seed, "grpo-arithmetic", prompts, held_out), *more)
    )


def call(row: dict[str, str], schema: dict[str, Any]) -> dict[str, Any]:
    """A conversation in which the assistant asks the calculator for a sum."""
    asked = {"name": "calculator", "arguments": {"expression": row["question"].rstrip("=")}}
    turns = [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": asked}]},
        {"role": "tool", "name": "calculator", "content": row["answer"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    return {"tools": [schema], "messages": turns}


def with_calculator(out: Path, seed: int, more: list[str]) -> dict[str, float]:
    """Returns the shares of right sums before and after GRPO, of a model that learned from examples to call a calculator."""
    from transformers.utils import get_json_schema

    from chatgpt_hf.inference.calculator import calculator

    examples, prompts, held_out = stages(seed, 2000, 5000, 200)
    rows = [call(row, get_json_schema(calculator)) for row in examples]
    # As the chat template writes them: then few tokens are left of the text that describes the tool.
    texts = [text_of_calls(row) for row in rows[:200]]
    base = new_model(out / f"base-{seed}", texts, 455, seed, context=256, max_digits=1)
    sft = ["sft", "--model_name_or_path", base, "--dataset", write(out / f"examples-{seed}.jsonl", rows)]
    sft += ["--block_size", 192, "--per_device_train_batch_size", 32, "--optim", "muon", "--learning_rate", 0.01]
    trained(out / f"sft-{seed}", *sft, "--evaluate_answers", 0, "--seed", seed, "--max_steps", 250)
    found = trained(
        out / f"grpo-{seed}", *grpo(out, out / f"sft-{seed}", seed, "grpo-calculator", prompts, held_out), *more
    )
    return {**answer_gains(found), "calls for an answer, after": found["held_out_tool_calls"]}


def text_of_calls(row: dict[str, Any]) -> str:
    """A conversation with tools as the chat template of new models writes it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    from chatgpt_hf.tokenization_chatgpt import CHAT_TEMPLATE

    (text,), _ = render_jinja_template([row["messages"]], tools=row["tools"], chat_template=CHAT_TEMPLATE)
    return str(text)


PARTS: dict[str, Callable[[Path, int, list[str]], dict[str, float]]] = {
    "reward-en": english,
    "reward-zh": chinese,
    "arithmetic": arithmetic,
    "calculator": with_calculator,
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
