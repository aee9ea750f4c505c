"""A ChatGPT from scratch while you watch: tokenizer, pretraining, chat fine-tuning, evaluation, a conversation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .data.builtin import load_builtin
from .evaluation.language_modeling import xz_bits_per_byte
from .inference.session import ChatSession
from .training.arguments import (
    ArchitectureArguments,
    ChatModelArguments,
    ChatSFTArguments,
    ConversationArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from .training.pretrain import pretrain
from .training.run_folder import RECIPE_NAME, RESULTS_NAME, check_output_dir
from .training.sft import sft

# The last one is held out: the model has to make up its answer.
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What does str.join do?",
    "What does os.listdir do?",
    "How do I call list.append?",
    "What is random.shuffle for?",
)


def quickstart(
    output_dir: str | Path = "runs/quickstart",
    say: Callable[[str], object] = print,
    pretrain_overrides: Sequence[str] = (),
    sft_overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs all stages into `output_dir`. Finished stages are kept; an unfinished one is resumed.

    Args:
        output_dir: Becomes the chat model's folder, with the base model in `base/`.
        say: Called with one plain sentence per stage.
        pretrain_overrides: Changes to the recipe pretrain-quickstart, as on the command line.
        sft_overrides: Changes to the recipe sft-quickstart.

    Returns:
        `{"pretrain": ..., "sft": ..., "xz_bits_per_byte": ...}`, the figures of both runs.
    """
    # Check it now: the first stage uses a different folder and takes minutes.
    folder = check_output_dir(output_dir, resume=True)
    docs = load_builtin("builtin:python-docs")
    say(
        f"[1/4] The corpus: {len(docs['train'])} documents from this Python's own documentation; {len(docs['test'])} more "
        "are held out for evaluation."
    )
    say(
        "[2/4] Tokenizer and pretraining: a small GPT learns to predict the next token of the documents, and with it "
        "English, Python's vocabulary, and some facts about Python."
    )
    base = _stage(
        folder / "base",
        "pretrain-quickstart",
        (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments),
        pretrain,
        pretrain_overrides,
    )
    say("[3/4] Chat fine-tuning: the same model learns to answer questions, from the assistant's words only.")
    chat = _stage(
        folder,
        "sft-quickstart",
        (ChatModelArguments, ConversationArguments, ChatSFTArguments),
        sft,
        ["--model_name_or_path", str(folder / "base"), *sft_overrides],
    )
    say("[4/4] Results, on documents and questions that it never saw, and on questions that it was trained on:")
    results = {
        "pretrain": base,
        "sft": chat,
        "xz_bits_per_byte": xz_bits_per_byte(docs["train"]["text"], docs["test"]["text"]),
    }
    say(summary(results))
    session = ChatSession.from_pretrained(folder)
    for question in QUESTIONS:
        session.reset()
        say(f"\nyou> {question}\ngpt> {session.reply(question)}")
    say(f"\nTalk to it yourself: chatgpt-hf chat {folder}\nThe report: {folder / 'report' / 'report.md'}")
    return results


def summary(results: dict[str, Any]) -> str:
    """Summarizes the figures in a few lines."""
    base, chat = results["pretrain"], results["sft"]
    lines = [
        f"  held-out text: {base['held_out_bits_per_byte']:.3f} bits per byte with {base['parameters']:,} parameters "
        f"(xz -9e after reading the same training text: {results['xz_bits_per_byte']:.3f})"
    ]
    for part, title in (("trained", "questions it was trained on"), ("held_out", "questions it never saw")):
        # With the user's own conversations, nothing may be held out.
        if f"{part}_exact_match" not in chat:
            continue
        lines.append(
            f"  {title}: {chat[part + '_exact_match']:.1%} answered exactly, ROUGE-L {chat[part + '_rouge_l']:.3f}, "
            f"{chat[part + '_well_formed']:.1%} well-formed and ended by themselves"
        )
        if f"base_{part}_exact_match" in chat:
            lines.append(
                f"    the base model: {chat[f'base_{part}_exact_match']:.1%}, ROUGE-L {chat[f'base_{part}_rouge_l']:.3f}, "
                f"{chat[f'base_{part}_well_formed']:.1%}"
            )
    return "\n".join(lines)


def _stage(
    folder: Path, recipe: str, types: tuple[type, ...], run: Callable[..., dict[str, Any]], overrides: Sequence[str]
) -> dict[str, Any]:
    """Runs a recipe into `folder` unless it is finished there; resumes an unfinished run."""
    finished = folder / RESULTS_NAME
    if finished.is_file():
        return json.loads(finished.read_text(encoding="utf-8"))
    begun = (folder / RECIPE_NAME).is_file()
    arguments = ["--output_dir", str(folder), *overrides, *(["--resume_from_checkpoint", "true"] if begun else [])]
    return run(*parse_recipe(types, recipe, arguments))
