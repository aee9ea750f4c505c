"""Really kills every command that writes a folder; the same command again ends as if nothing had happened.

As test_kill.py does with long runs of `pretrain`: killed.py brings a command to a chosen moment.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killable import PATIENCE, needs_forkserver, start
from safetensors.torch import load_file

from chatgpt_hf import load_model, load_tokenizer
from chatgpt_hf.training.run_folder import find_fault

pytestmark = needs_forkserver

RUN = [
    "--max_steps",
    "4",
    "--save_strategy",
    "steps",
    "--save_steps",
    "2",
    "--learning_rate",
    "1e-2",
    "--per_device_train_batch_size",
    "2",
    "--optim",
    "adamw_torch",
    "--logging_strategy",
    "no",
    "--disable_tqdm",
    "true",
]
# With small corpora and models, and without the conversation at the end.
SMALL_QUICKSTART = """
import importlib
from datasets import Dataset, DatasetDict

def corpus(name):
    texts = [f"Number {{number}} comes after {{number - 1}}." for number in range(1, 41)]
    turns = [[{{"role": "user", "content": "Number?"}}, {{"role": "assistant", "content": text}}] for text in texts]
    rows = {{"messages": turns}} if name.endswith("-qa") else {{"text": texts}}
    rows = Dataset.from_dict({{"name": texts, **rows}})
    return DatasetDict({{"train": rows.select(range(36)), "test": rows.select(range(36, 40))}})

for module in ("quickstart", "data.builtin", "data.corpus", "data.tables"):
    importlib.import_module(f"chatgpt_hf.{{module}}").load_builtin = corpus
quickstart = importlib.import_module("chatgpt_hf.quickstart")
quickstart.QUESTIONS = ()
common = "--max_steps 2 --save_steps 1 --block_size 64 --eval_strategy no --disable_tqdm true".split()
model = "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --vocab_size 300".split()
answers = "--evaluate_answers 0 --evaluate_base false".split()
quickstart.quickstart({folder!r}, print, [*common, *model], [*common, *answers])
"""


class Commands:
    """Runs a command in processes of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.log = tmp_path / "log"
        self.cache = tmp_path / "cache"

    def run(self, command: Any, stop: dict[str, Any] | None = None) -> bool:
        """Runs a command to its end, or kills it at a moment; returns whether it was killed."""
        job = {
            "environment": {"CHATGPT_HF_CACHE": str(self.cache)},
            "log": str(self.log),
            "stop": stop,
            **({"code": command} if isinstance(command, str) else {"arguments": [str(part) for part in command]}),
        }
        [process], hears = start(job)
        with hears:
            try:
                killed = hears.poll(PATIENCE) and hears.recv() == "here"
                process.kill()
            except EOFError:
                killed = False
        process.join(PATIENCE)
        assert process.exitcode == (-signal.SIGKILL if killed else 0), self.log.read_text()[-5000:]
        return killed

    def kill(self, command: Any, folder: Path, moment: str, step: int = 0) -> None:
        stop = {"folder": str(folder), "moment": moment, "step": step}
        assert self.run(command, stop), f"{moment} did not come: {self.log.read_text()[-3000:]}"


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(folder: Path, expected: Path) -> None:
    """Files, weights and figures, except times and the average of the loss, which a resumed run does not know."""
    assert contents(folder).keys() == contents(expected).keys()
    weights, others = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    figures, wanted = (json.loads((path / "results.json").read_text()) for path in (folder, expected))
    compared = {name for name in wanted if not name.startswith("train_")}
    assert {name: figures[name] for name in compared} == {name: wanted[name] for name in compared}
    for checkpoint in folder.glob("checkpoint-*"):
        assert find_fault(checkpoint) is None


def killed_and_resumed(commands: Commands, command: Callable[..., Any], folder: Path, expected: Path) -> None:
    """Kills a run within a step, within a checkpoint and before the last file; compares it with one that was not killed."""
    commands.run(command(expected))
    commands.kill(command(folder), folder, "on_optimizer_step", 3)
    assert (folder / "checkpoint-2").is_dir()
    commands.kill(command(folder), folder, "within checkpoint-4/optimizer.pt")
    assert find_fault(folder / "checkpoint-4") is not None
    assert not (folder / "model.safetensors").exists()
    commands.kill(command(folder), folder, "before results.json")
    commands.run(command(folder))
    assert_same_run(folder, expected)


@pytest.mark.slow
def test_sft(commands: Commands, base_folder: Path, chats_file: Path, tmp_path: Path) -> None:
    options = ["--model_name_or_path", base_folder, "--dataset", chats_file, "--block_size", 64, *RUN]
    options += ["--evaluate_answers", 1]
    killed_and_resumed(
        commands,
        lambda folder: ["sft", *options, "--output_dir", folder, "--resume"],
        tmp_path / "run",
        tmp_path / "whole",
    )


@pytest.mark.slow
def test_finetune(commands: Commands, base_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"The {animal} sits.", "label": animal} for animal in ("cat", "dog") for _ in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "--model_name_or_path",
        base_folder,
        "--dataset",
        file,
        "--eval_dataset",
        file,
        "--max_length",
        16,
        *RUN,
    ]
    options += ["--baseline", "false"]
    killed_and_resumed(
        commands,
        lambda folder: ["finetune", *options, "--output_dir", folder, "--resume"],
        tmp_path / "run",
        tmp_path / "whole",
    )


@pytest.mark.slow
def test_quickstart(commands: Commands, tmp_path: Path) -> None:
    def command(folder: Path) -> str:
        return SMALL_QUICKSTART.format(folder=str(folder))

    folder, expected = tmp_path / "run", tmp_path / "whole"
    commands.run(command(expected))
    commands.kill(command(folder), folder, "within base/checkpoint-2/optimizer.pt")
    assert find_fault(folder / "base" / "checkpoint-2") is not None
    commands.kill(command(folder), folder, "before checkpoint-2/trainer_state.json")
    assert (folder / "base" / "results.json").is_file()
    commands.run(command(folder))
    for part in ("base", "."):
        assert_same_run(folder / part, expected / part)


@pytest.fixture
def adapter(base_folder: Path, tmp_path: Path) -> Path:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(load_model(base_folder), peft.LoraConfig(r=2, task_type="CAUSAL_LM"))
    torch.nn.init.normal_(next(weight for name, weight in model.named_parameters() if "lora_B" in name))
    model.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(base_folder)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        (["convert", "{model}", "{out}", "--to", "chatgpt"], "within .saving-*/out/model.safetensors"),
        (["merge", "{adapter}", "{out}"], "within .saving-*/out/model.safetensors"),
        (["quantize", "{model}", "{out}", "--to", "int8"], "before out"),
        (
            ["export", "{model}", "--output_dir", "{out}", "--format", "gguf", "--no-check"],
            "before out",
        ),
        (["evaluate", "{model}", "--corpus", "{corpus}", "--out", "{out}"], "before out/*/examples.jsonl"),
        (["tokenizer", "train", "--corpus", "{corpus}", "--output_dir", "{out}", "--vocab_size", "270"], "before out"),
    ],
)
def test_commands_that_write_a_folder(
    command: list[str],
    moment: str,
    commands: Commands,
    gguf_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    words = {"model": gguf_folder, "corpus": corpus_file}
    if "{adapter}" in command:
        words["adapter"] = request.getfixturevalue("adapter")

    def into(folder: Path) -> list[str]:
        return [part.format(**words, out=folder) for part in command]

    out, expected = tmp_path / "new" / "out", tmp_path / "whole" / "out"
    commands.kill(into(out), out.parent, moment)
    left = [path for path in out.parent.rglob("*") if path.is_file()]
    assert left
    assert all(".saving-" in str(path) for path in left), "half of it is there"
    commands.run(into(out))
    commands.run(into(expected))
    texts = {name: content.replace(b"/new/", b"/whole/") for name, content in contents(out.parent).items()}
    assert texts == contents(expected.parent)
