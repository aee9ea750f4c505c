"""A tiny quickstart: from the builtin documents to a folder that answers questions."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from chatgpt_hf import ChatSession
from chatgpt_hf.data.builtin import load_builtin
from chatgpt_hf.errors import CheckpointError
from chatgpt_hf.quickstart import QUESTIONS, _chat_command, calibrate_chat, quickstart
from chatgpt_hf.training import sft

ROOT = Path(__file__).parents[1]
PRETRAIN = [
    "--vocab_size",
    "400",
    "--block_size",
    "192",
    "--hidden_size",
    "32",
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--per_device_train_batch_size",
    "2",
    "--max_steps",
    "4",
    "--warmup_steps",
    "1",
    "--eval_strategy",
    "no",
    "--save_steps",
    "2",
    "--logging_steps",
    "1",
    "--disable_tqdm",
    "true",
]
SFT = [
    # Untrained models never end their answers, so evaluation is slow.
    "--evaluate_answers",
    "4",
    "--block_size",
    "192",
    "--max_steps",
    "6",
    "--warmup_steps",
    "1",
    "--per_device_train_batch_size",
    "2",
    "--save_steps",
    "2",
    "--logging_steps",
    "1",
    "--disable_tqdm",
    "true",
]
STAGES = [f"[{number}/5]" for number in range(1, 6)]
FIGURES = {"parameters", "train_tokens", "held_out_bits_per_byte", "held_out_perplexity"}


class Killed(BaseException):
    """Stands for the death of the process in the middle of a step."""


@pytest.fixture
def small_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the builtin corpora by their first documents and questions."""

    def first(name: str) -> DatasetDict:
        return DatasetDict(
            {part: rows.select(range(120 if part == "train" else 12)) for part, rows in load_builtin(name).items()}
        )

    for module in ("quickstart", "data.builtin", "data.corpus"):
        monkeypatch.setattr(importlib.import_module(f"chatgpt_hf.{module}"), "load_builtin", first)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the training steps."""
    taken: list[int] = []
    step = Trainer.training_step

    def counted(self: Trainer, *arguments: Any, **kwargs: Any) -> torch.Tensor:
        taken.append(self.state.global_step)
        return step(self, *arguments, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)
    return taken


def run(folder: Path) -> tuple[list[str], dict[str, Any]]:
    said: list[str] = []
    return said, quickstart(folder, say=said.append, pretrain_overrides=PRETRAIN, sft_overrides=SFT)


@pytest.mark.slow
@pytest.mark.usefixtures("small_corpora")
def test_quickstart(steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "quickstart"
    make_trainer = sft.SFTRun.make_trainer

    def dying(run: sft.SFTRun) -> Trainer:
        trainer = make_trainer(run)
        step = trainer.training_step

        def until(*args: Any, **kwargs: Any) -> torch.Tensor:
            if trainer.state.global_step == 5:
                raise Killed
            return step(*args, **kwargs)

        trainer.training_step = until
        return trainer

    # Killed in the sixth step of the second stage.
    with monkeypatch.context() as patch:
        patch.setattr(sft.SFTRun, "make_trainer", dying)
        with pytest.raises(Killed):
            run(folder)
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    base_weights = (folder / "base" / "model.safetensors").read_bytes()

    # It resumes from the second stage's last checkpoint.
    steps.clear()
    said, results = run(folder)
    assert steps == [4, 5]
    assert (folder / "base" / "model.safetensors").read_bytes() == base_weights

    # One sentence per stage, then the figures and a conversation.
    assert [line.strip()[:5] for line in said if line.strip().startswith("[")] == STAGES
    assert "bits per byte" in said[4]
    assert "questions it never saw" in said[4]
    assert [line.split("\n")[1] for line in said[5:-3]] == [f"you> {question}" for question in QUESTIONS]
    # A model that knows nothing has no right answers to keep.
    assert said[-2].startswith("  Skipped: it answers only 0.0% of its trained questions exactly")
    assert not (folder / "abstention.json").exists()
    assert f"chatgpt-hf chat {folder}" in said[-1].splitlines()[-1]
    assert set(results) == {"pretrain", "sft", "xz_bits_per_byte", "abstention"}
    assert results["abstention"] is None
    assert set(results["pretrain"]) >= FIGURES
    assert 0.5 < results["xz_bits_per_byte"] < 4

    # The result: two plain model folders.
    for path in (folder, folder / "base"):
        names = {file.name for file in path.iterdir()}
        assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
        assert names >= {"recipe.yaml", "results.json"}
        assert {file.name for file in (path / "report").iterdir()} >= {
            "report.md",
            "report.json",
            "loss.png",
            "samples.md",
        }
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        assert model.config.vocab_size == len(tokenizer) == 400
    assert json.loads((folder / "results.json").read_text()) == results["sft"]
    assert json.loads((folder / "base" / "results.json").read_text()) == results["pretrain"]
    session = ChatSession.from_pretrained(folder, max_new_tokens=5)
    assert session.generation_config.eos_token_id == session.tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|endoftext|>"]
    )

    # Run again: no training, and the same output.
    steps.clear()
    weights = load_file(folder / "model.safetensors")
    again, same = run(folder)
    assert steps == []
    assert (again, same) == (said, results)
    assert all(torch.equal(weights[name], weight) for name, weight in load_file(folder / "model.safetensors").items())


@pytest.mark.slow
@pytest.mark.e2e
def test_the_two_commands_of_the_readme_in_a_clean_clone(tmp_path: Path) -> None:
    """Runs the README's commands word for word in a clone, with two simplifications.

    The installation is skipped, because it takes minutes and a network: the clone's .venv uses the packages of the
    test environment, the clone's own code as in an editable install, and make's stamp. `make .venv/.dev`, the same
    rule with more packages, created the test environment, so the rule is tested anyway. And the clone's recipes take
    only a few steps.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout: there is no .git to clone")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    blocks = re.findall(r"```bash\n(.*?)```", (clone / "README.md").read_text(), flags=re.DOTALL)
    first, second = blocks[0].splitlines()[1], blocks[1].splitlines()[0]
    assert (first, second) == ("make quickstart", ".venv/bin/chatgpt-hf chat runs/quickstart")

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    library = clone / ".venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (library / "clone.pth").write_text(f"{clone / 'src'}\n{sysconfig.get_path('purelib')}\n")
    script = clone / ".venv" / "bin" / "chatgpt-hf"
    # As pip writes it where a path is long or has spaces, which `#!` cannot express: both a shell's and Python's.
    python = clone / ".venv" / "bin" / "python"
    script.write_text(
        f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nfrom chatgpt_hf_cli import main\nmain()\n"
    )
    script.chmod(0o755)
    (clone / ".venv" / ".runtime").touch()
    small = {"pretrain": (PRETRAIN, {}), "sft": (SFT, {"evaluate_base": False})}
    for stage, (options, others) in small.items():
        recipe = clone / "recipes" / f"{stage}-quickstart.yaml"
        fields = {name[2:]: yaml.safe_load(value) for name, value in zip(options[::2], options[1::2], strict=True)}
        fields |= {
            "num_train_epochs": 1,
            "eval_strategy": "no",
            "lr_scheduler_type": "linear",
            "lr_scheduler_kwargs": None,
        }
        recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **fields, **others}))

    # Like a reader's shell: without the variables of a make that runs this test, and without another copy of the
    # package.
    inherited = ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    made = subprocess.run(first.split(), cwd=clone, capture_output=True, text=True, env=environment)
    assert made.returncode == 0, made.stderr[-2000:]
    assert [line[:5] for line in made.stdout.splitlines() if line.startswith("[")] == STAGES
    # Its last line is the command that a reader types next.
    assert made.stdout.splitlines()[-1] == second
    chat = subprocess.run(
        second.split(), cwd=clone, capture_output=True, text=True, env=environment, input="Who are you?\n/quit\n"
    )
    assert chat.returncode == 0, chat.stderr[-2000:]
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    # Git sees no changes except the recipes that were shortened above.
    assert {line[3:].split("/")[0] for line in status.stdout.splitlines()} == {"recipes"}


@pytest.fixture
def knowing(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chat model that knows the first part of the built-in questions and nothing of the second."""
    known = {"Hello!": "Hi! How are you?", "Count to five.": "1, 2, 3, 4, 5."}
    unknown = dict.fromkeys(("Is the river red?", "How many horses run?", "What is under the bed?"), "Nobody knows.")

    def questions(name: str) -> DatasetDict:
        parts = {"train": list(known.items()) * 12, "test": list(unknown.items())}
        roles = ("user", "assistant")
        rows = {
            part: [[{"role": role, "content": text} for role, text in zip(roles, pair, strict=True)] for pair in pairs]
            for part, pairs in parts.items()
        }
        return DatasetDict({part: Dataset.from_dict({"messages": messages}) for part, messages in rows.items()})

    monkeypatch.setattr("chatgpt_hf.data.tables.load_builtin", questions)
    folder = Path(shutil.copytree(chat_folder, tmp_path / "model"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"dataset": ["builtin:python-qa"]}))
    return folder


def test_the_model_says_what_it_does_not_know(knowing: Path) -> None:
    said: list[str] = []
    found = calibrate_chat(knowing, {"trained_exact_match": 1.0}, said.append)
    assert found is not None
    assert (found.counts["right"], found.counts["unknown_questions"]) == (24, 3)
    assert found.figures["invented_given"].value == 0
    kept, invented, cost = said
    # 5 % of 24 are less than two, and the answers to one question are withheld together or not at all.
    assert "of 24 right answers to questions it was trained on, 100.0% are still given" in kept
    assert "to questions it never saw, 0.0% are still given (95 % interval 0.0% to 0.0%)" in invented
    assert re.fullmatch(r"  Calibrated in \d+ s\. With the threshold, an answer takes about twice as long\.", cost)
    session = ChatSession.from_pretrained(knowing, abstain=True, do_sample=False)
    assert session.reply("Count to five.") == "1, 2, 3, 4, 5."
    session.reset()
    assert session.reply("Is the river red?") == "I don't know that function."

    # The next run reads what this one found.
    again: list[str] = []
    stored = (knowing / "abstention.json").read_bytes()
    assert calibrate_chat(knowing, {"trained_exact_match": 1.0}, again.append) == found
    assert again == [
        kept,
        invented,
        "  Calibrated by an earlier run. With the threshold, an answer takes about twice as long.",
    ]
    assert (knowing / "abstention.json").read_bytes() == stored
    # Of other weights, it is found anew.
    content = json.loads(stored)
    (knowing / "abstention.json").write_text(json.dumps(content | {"weights": "others", "threshold": -900}))
    assert calibrate_chat(knowing, {"trained_exact_match": 1.0}, again.append) == found
    for broken in (None, {}, {"figures": {"right_given": ["a"]}, "right": 24}, {"figures": {}, "right": 24}):
        (knowing / "abstention.json").write_text(json.dumps(content | {"calibration": broken}))
        with pytest.raises(CheckpointError, match=r"does not hold the figures that `chatgpt-hf calibrate` writes"):
            calibrate_chat(knowing, {"trained_exact_match": 1.0}, again.append)


def test_what_is_not_calibrated(chat_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert calibrate_chat(chat_folder, {"trained_exact_match": 1.0}, said.append) is None
    assert said == [
        f"  Skipped, because it learned other conversations: chatgpt-hf calibrate {chat_folder} --known CHATS"
    ]
    # Neither model is loaded: the folder has none.
    for figures, reason in (
        ({}, "its answers were not measured"),
        ({"trained_exact_match": 0.49}, "it answers only 49.0% of its trained questions exactly"),
    ):
        assert calibrate_chat(tmp_path, figures, said.append) is None
        assert said[-1] == f"  Skipped: {reason}, and a threshold keeps a share of the right answers."


def test_the_last_line_is_a_command_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "my env" / "bin" / "chatgpt-hf"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "quickstart"])
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    assert _chat_command(Path("runs/x")) == "'my env/bin/chatgpt-hf' chat runs/x"
    # If it was called from Python, the script is found next to the interpreter.
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    assert _chat_command(Path("runs/x")) == "'my env/bin/chatgpt-hf' chat runs/x"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert _chat_command(Path("runs/x")) == f"'{script}' chat runs/x"
    # The plain name is enough only if PATH leads to this installation.
    monkeypatch.setenv("PATH", str(script.parent))
    assert _chat_command(Path("runs/my model")) == "chatgpt-hf chat 'runs/my model'"
    other = tmp_path / "elsewhere" / "chatgpt-hf"
    shutil.copy(script, other)
    monkeypatch.setenv("PATH", str(other.parent))
    assert _chat_command(Path("runs/x")) == f"'{script}' chat runs/x"


def test_somebody_elses_folder_is_left_alone(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    message = refused("quickstart", "--output_dir", tmp_path)
    assert "is not empty and not a run of ours" in message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
