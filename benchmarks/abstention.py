"""Measures abstention on the quickstart's model: right answers lost and invented answers avoided, at a calibrated threshold.

A part of the questions that a model was trained on chooses the threshold; the figures are of other trained questions, and of
questions about functions that it never saw. An answer is exact if it is the reference word for word, and invented if it is
neither exact nor withheld, and does not say that the model does not know. Answers are greedy, with the model's own settings, as
in `chatgpt-hf chat --temperature 0`.

    python benchmarks/abstention.py --out runs/abstention                          # trains three models
    python benchmarks/abstention.py --out runs/abstention --taught                 # the same, taught to say that they do not know
    python benchmarks/abstention.py --models runs/quickstart runs/honest
"""

import json
import random
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatgpt_hf.chat_templates import encode_chat_prompt
from chatgpt_hf.data.builtin import load_builtin
from chatgpt_hf.evaluation.figures import Figure
from chatgpt_hf.evaluation.generation import generate_completions
from chatgpt_hf.inference.calibration import Judged, auroc, choose_threshold, judge, share
from chatgpt_hf.inference.loading import load_for_generation
from chatgpt_hf.rewards.answers import abstains
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.training.run_folder import RESULTS_NAME

Conversation = list[dict[str, Any]]


class Answers(NamedTuple):
    """A model's answers to some questions.

    Attributes:
        exact: Whether the answer that is shown without a threshold is the reference, (questions,).
        abstains: Whether it says that the model does not know, (questions,).
        judged: The greedy answer behind the confidence.
    """

    exact: np.ndarray
    abstains: np.ndarray
    judged: Judged


def questions(count: int | None) -> tuple[list[Conversation], list[Conversation]]:
    """The conversations about functions that the quickstart trains on, or `count` of them, and those about others."""
    rows = load_builtin("builtin:python-qa")
    trained = [row["messages"] for row in rows["train"] if not row["name"].startswith("chat.")]
    if count is not None:
        trained = random.Random(0).sample(trained, count)
    return trained, list(rows["test"]["messages"])


def train(args: Any, seed: int, trained: list[Conversation]) -> Path:
    """Makes the quickstart's model with this seed, unless an earlier run finished; returns its folder."""
    base, folder = args.out / f"base-{seed}", args.out / f"chat-{seed}"
    pretrain = ["pretrain", "pretrain-quickstart", *args.pretrain.split()]
    sft = ["sft", "sft-quickstart", "--model_name_or_path", str(base), "--evaluate_base", "false", *args.sft.split()]
    if args.questions is not None:
        file = args.out / "questions.jsonl"
        file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in trained), encoding="utf-8")
        sft += ["--dataset", str(file)]
    steps = [(pretrain, base), (sft, folder)]
    if args.taught:
        folder, chat = args.out / f"taught-{seed}", folder
        teach = ["sft", "honest-quickstart", "--model_name_or_path", str(chat), "--evaluate_answers", "0"]
        steps.append(([*teach, *args.teach.split()], folder))
    for command, target in steps:
        if not (target / RESULTS_NAME).is_file():
            options = ["--seed", str(seed), "--output_dir", str(target), "--disable_tqdm", "true"]
            done = subprocess.run([*harness.CLI, *command, *options], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return folder


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: list[Conversation]) -> Answers:
    """Answers every conversation's question, and judges the greedy answer."""
    completions = generate_completions(
        model,
        tokenizer,
        [encode_chat_prompt(tokenizer, messages[:-1]) for messages in conversations],
        max_new_tokens=128,
        batch_size=32,
        progress=False,
        desc="",
        do_sample=False,
    )
    references = [messages[-1]["content"].strip() for messages in conversations]
    exact = [done.text.strip() == text for done, text in zip(completions, references, strict=True)]
    said = [abstains(done.text) for done in completions]
    return Answers(np.array(exact), np.array(said), judge(model, tokenizer, conversations, progress=False))


def measure(folder: Path, trained: list[Conversation], unseen: list[Conversation], keep: float, part: int) -> Any:
    """The figures of one model, and for all models together the arrays that they come from."""
    model, tokenizer = load_for_generation(folder), load_tokenizer(folder)
    shuffled = random.Random(1).sample(trained, min(len(trained), 3 * part))
    # The figures use none of the questions that choose the threshold.
    calibration, rest = shuffled[:part], shuffled[part:]
    found = choose_threshold(judge(model, tokenizer, calibration, progress=False), keep=keep)
    threshold = found.abstention.threshold
    known, other = answers(model, tokenizer, rest), answers(model, tokenizer, unseen)
    given, other_given = known.judged.confidence >= threshold, other.judged.confidence >= threshold
    arrays = {
        "trained: exact without": known.exact,
        "trained: exact": known.exact & given,
        "trained: declines by itself": known.abstains,
        "trained: withheld": ~given,
        "trained: invented": given & ~known.exact & ~known.abstains,
        "unseen: invented without": ~other.exact & ~other.abstains,
        "unseen: invented": other_given & ~other.exact & ~other.abstains,
        "unseen: exact": other_given & other.exact,
        "unseen: declines by itself": other.abstains,
        "unseen: withheld": ~other_given,
    }
    area = auroc(known.judged.confidence, other.judged.confidence)
    return threshold, arrays, area


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--models", type=Path, nargs="+", metavar="FOLDER", help="models that the quickstart made")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where models are trained, if none is named")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the models that are trained")
    parser.add_argument(
        "--keep", type=float, default=0.95, help="share of right answers to keep (default: %(default)s)"
    )
    parser.add_argument(
        "--part", type=int, default=300, help="trained questions that choose the threshold (default: %(default)s)"
    )
    parser.add_argument("--taught", action="store_true", help="then teach them with the recipe honest-quickstart")
    parser.add_argument("--teach", default="", help="further fields of that recipe, in one word")
    parser.add_argument("--questions", type=int, help="questions to train on; all if not given")
    parser.add_argument("--pretrain", default="", help="further fields of pretraining, in one word")
    parser.add_argument("--sft", default="", help="further fields of fine-tuning, in one word")
    args = parser.parse_args()
    if args.taught and args.questions is not None:
        parser.error("--taught teaches all questions: leave --questions out.")
    harness.prepare()
    trained, unseen = questions(args.questions)
    if args.models is None:
        if args.out is None:
            raise SystemExit("Name --models that the quickstart made, or the folder to train some in with --out.")
        args.out.mkdir(parents=True, exist_ok=True)
        args.models = [train(args, seed, trained) for seed in args.seeds]

    results = {str(folder): measure(folder, trained, unseen, args.keep, args.part) for folder in args.models}
    together = {
        # One number per question, so that the interval is over questions.
        name: np.mean([arrays[name] for _, arrays, _ in results.values()], axis=0)
        for name in next(iter(results.values()))[1]
    }
    table = harness.rich_table(
        "figure", *(Path(name).name for name in results), "all", "95 % interval", left=("figure",)
    )
    figures: dict[str, Figure] = {name: share(values) for name, values in together.items()}
    for name, figure in figures.items():
        each = (f"{arrays[name].mean():.3f}" for _, arrays, _ in results.values())
        table.add_row(name, *each, figure.shown(".3f"), figure.interval())
    areas = [area for _, _, area in results.values()]
    table.add_row("AUROC, trained against unseen", *(area.shown(".3f") for area in areas), "", areas[0].interval())
    table.add_row("threshold", *(f"{threshold:.3f}" for threshold, _, _ in results.values()), "", "")
    harness.show(table, width=150)
    least = 1 / len(together["unseen: invented"])
    ratios = {
        "trained questions exact, with/without a threshold": figures["trained: exact"].value
        / figures["trained: exact without"].value,
        "unseen questions invented, without/with a threshold": figures["unseen: invented without"].value
        / max(figures["unseen: invented"].value, least),
    }
    harness.write_json(
        args.json,
        ratios,
        all={name: list(figure) for name, figure in figures.items()},
        models={
            name: {
                "threshold": threshold,
                "auroc": list(area),
                **{title: list(share(values)) for title, values in arrays.items()},
            }
            for name, (threshold, arrays, area) in results.items()
        },
    )


if __name__ == "__main__":
    main()
