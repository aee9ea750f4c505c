"""Makes a small ChatGPT from nothing, step by step: tokenizer, pretraining, chat fine-tuning, evaluation, calibration."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .data.builtin import load_builtin
from .data.builtin.python_honest import UNKNOWN
from .errors import ConfigError
from .evaluation.language_modeling import xz_bits_per_byte
from .files import read_json, read_yaml
from .inference.calibration import Calibration, calibrate, load_calibration
from .inference.session import ChatSession
from .tokenization_chatgpt import load_tokenizer
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

# The last one is held out, so the model makes up its answer.
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What does str.join do?",
    "What does os.listdir do?",
    "How do I call list.append?",
    "What is random.shuffle for?",
)
# Of each kind, trained and held-out questions.
CALIBRATION_QUESTIONS = 300
# A model that answers fewer of its trained questions exactly has too few right answers to choose a threshold by.
LEAST_EXACT = 0.5
_DATASET = "builtin:python-qa"


def quickstart(
    output_dir: str | Path = "runs/quickstart",
    say: Callable[[str], object] = print,
    pretrain_overrides: Sequence[str] = (),
    sft_overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs all stages into `output_dir`. Finished stages are kept; an unfinished one is resumed.

    Args:
        output_dir: Becomes the chat model's folder, with the base model under `base/`.
        say: Receives one plain sentence per stage.
        pretrain_overrides: Changes to the recipe pretrain-quickstart, as on the command line.
        sft_overrides: Changes to the recipe sft-quickstart.

    Returns:
        `{"pretrain": ..., "sft": ..., "xz_bits_per_byte": ..., "abstention": ...}`: the figures of both runs, and of the
        calibration (None if there is none).
    """
    # Checked before the first stage, which takes minutes and has its own folder.
    folder = check_output_dir(output_dir, resume=True)
    docs = load_builtin("builtin:python-docs")
    say(
        f"[1/5] The corpus: {len(docs['train'])} documents of this Python's own documentation; {len(docs['test'])} more "
        "are held out for evaluation."
    )
    say(
        "[2/5] Tokenizer and pretraining: a small GPT learns to predict the next token of the documents, and so learns "
        "English, Python's vocabulary and some facts."
    )
    base = _stage(
        folder / "base",
        "pretrain-quickstart",
        (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments),
        pretrain,
        pretrain_overrides,
    )
    say("[3/5] Chat fine-tuning: the same model learns to answer questions, only from the assistant's words.")
    chat = _stage(
        folder,
        "sft-quickstart",
        (ChatModelArguments, ConversationArguments, ChatSFTArguments),
        sft,
        ["--model_name_or_path", str(folder / "base"), *sft_overrides],
    )
    say("[4/5] Results on documents and questions it never saw, and on questions it was trained on:")
    results = {
        "pretrain": base,
        "sft": chat,
        "xz_bits_per_byte": xz_bits_per_byte(docs["train"]["text"], docs["test"]["text"]),
    }
    say(summary(results))
    _converse(ChatSession.from_pretrained(folder), QUESTIONS, say)
    say(
        "\n[5/5] Calibration: the model finds answers that it learned more likely than answers that it makes up. Below a "
        "threshold, it says that it does not know:"
    )
    found = calibrate_chat(folder, chat, say)
    results["abstention"] = None if found is None else {name: figure.value for name, figure in found.figures.items()}
    if found is not None:
        _converse(ChatSession.from_pretrained(folder, abstain=True), QUESTIONS[-2:], say)
    option = "" if found is None else " (with --abstain, it says when it does not know)"
    say(f"\nThe report: {folder / 'report' / 'report.md'}\nTalk to it yourself{option}:\n{_chat_command(folder)}")
    return results


def _converse(session: ChatSession, questions: Sequence[str], say: Callable[[str], object]) -> None:
    for question in questions:
        session.reset()
        say(f"\nyou> {question}\ngpt> {session.reply(question)}")


def _chat_command(folder: Path) -> str:
    """The command that opens the chat, as it can be typed in the current directory.

    The plain name only if it is on PATH and is this installation's script; otherwise its path, such as
    `.venv/bin/chatgpt-hf`.
    """
    started = Path(sys.argv[0])
    # From Python there is no script in argv; pip installs one next to the interpreter.
    script = started if started.stem == "chatgpt-hf" else Path(sys.executable).with_name("chatgpt-hf")
    on_path = shutil.which("chatgpt-hf")
    if not script.exists() or (on_path is not None and Path(on_path).samefile(script)):
        typed = "chatgpt-hf"
    else:
        absolute = os.path.abspath(script)  # does not follow links: .venv/bin may hold one
        below = Path(absolute).is_relative_to(Path.cwd())
        typed = os.path.relpath(absolute) if below else absolute
    return shlex.join([typed, "chat", str(folder)])


def calibrate_chat(folder: Path, chat: dict[str, Any], say: Callable[[str], object]) -> Calibration | None:
    """Finds the model's threshold of abstention, unless the folder has it, and says what it costs.

    Args:
        folder: The chat model's run folder.
        chat: Figures of the fine-tuning.
        say: Receives the sentences.

    Returns:
        None if there is nothing to choose a threshold by.
    """
    # A recipe that takes the default does not name it.
    if read_yaml(folder / RECIPE_NAME).get("dataset", [_DATASET]) not in (_DATASET, [_DATASET]):
        say(f"  Skipped, because it learned other conversations: chatgpt-hf calibrate {folder} --known CHATS")
        return None
    exact = chat.get("trained_exact_match")
    if exact is None or exact < LEAST_EXACT:
        few = (
            "its answers were not measured"
            if exact is None
            else f"it answers only {exact:.1%} of its trained questions exactly"
        )
        say(f"  Skipped: {few}, and a threshold keeps a share of the right answers.")
        return None
    try:
        found = load_calibration(folder, load_tokenizer(folder))
        took = "Calibrated by an earlier run."
    except ConfigError:
        # There is none, or it was made for other weights.
        begin = time.perf_counter()
        found = calibrate(folder, _DATASET, _DATASET, text=UNKNOWN, limit=CALIBRATION_QUESTIONS)
        took = f"Calibrated in {time.perf_counter() - begin:.0f} s."
    kept, invented = found.figures["right_given"], found.figures.get("invented_given")
    say(
        f"  of {found.counts['right']} right answers to questions it was trained on, {kept.value:.1%} are still given; the rest is "
        "the cost"
    )
    if invented is not None:
        say(
            f"  of the answers that it makes up to questions it never saw, {invented.value:.1%} are still given (95 % interval "
            f"{invented.low:.1%} to {invented.high:.1%})"
        )
    say(f"  {took} With the threshold, an answer takes about twice as long.")
    return found


def summary(results: dict[str, Any]) -> str:
    """The figures in a few lines."""
    base, chat = results["pretrain"], results["sft"]
    lines = [
        f"  held-out text: {base['held_out_bits_per_byte']:.3f} bits per byte with {base['parameters']:,} parameters "
        f"(xz -9e, having seen the same training text: {results['xz_bits_per_byte']:.3f})"
    ]
    for part, title in (("trained", "questions it was trained on"), ("held_out", "questions it never saw")):
        # The user's own conversations may have no held-out part.
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
    """Runs a recipe into `folder`, unless it is finished there; resumes it if it was started."""
    finished = folder / RESULTS_NAME
    if finished.is_file():
        return read_json(finished)
    begun = (folder / RECIPE_NAME).is_file()
    arguments = ["--output_dir", str(folder), *overrides, *(["--resume_from_checkpoint", "true"] if begun else [])]
    return run(*parse_recipe(types, recipe, arguments))
