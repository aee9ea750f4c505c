"""What a resumed run of `sft` and `finetune` refuses, what it obeys, and that it says so."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import RepeatSampler

from chatgpt_hf import load_tokenizer, train_tokenizer
from chatgpt_hf.errors import ChatGPTError, CheckpointError, OutputError
from chatgpt_hf.training.arguments import parse_recipe
from chatgpt_hf.training.resuming import EpochSampler, rows_fingerprint

from .trainings import COMMANDS

Options = list[str]


def run(command: str, options: Options, folder: Path, *more: object) -> dict[str, Any]:
    types, function = COMMANDS[command]
    return function(*parse_recipe(types, None, [*options, "--output_dir", str(folder), *map(str, more)]))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logged(folder: Path, figure: str) -> dict[int, float]:
    """A figure of each step, from the newest checkpoint."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[figure] for entry in history if figure in entry}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def chats(texts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in texts
    ]


CHATS = [(f"Where is the cat number {number}?", f"It sits in house {number}.") for number in range(12)]
LABELS = ("cat", "dog", "bird")
ROWS = [
    {
        "text": f"{'Long words and ' * (number % 3)}the {LABELS[number % 3]} number {number}.",
        "label": LABELS[number % 3],
        "other": LABELS[number * 2 % 3],
    }
    for number in range(24)
]
COMMON = (
    "--learning_rate 1e-2 --logging_steps 1 --disable_tqdm true --save_strategy steps --save_steps 2 --max_steps 4"
)


@pytest.fixture(scope="module")
def options(
    base_folder: Path, pretrain_options: Options, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Options]:
    """The arguments of a short run of each command, whose data may be edited."""
    folder = tmp_path_factory.mktemp("data")
    conversations = write(folder / "chats.jsonl", chats(CHATS))
    rows = write(folder / "rows.jsonl", ROWS)
    held_out = write(folder / "held_out.jsonl", ROWS[:6])
    start = ["--model_name_or_path", str(base_folder), *COMMON.split(), "--per_device_train_batch_size", "4"]
    return {
        "pretrain": [*pretrain_options, "--save_strategy", "steps", "--save_steps", "2"],
        "sft": [*start, "--dataset", str(conversations), "--block_size", "64"],
        "finetune": [
            *start,
            *("--dataset", str(rows), "--eval_dataset", str(held_out), "--max_length", "48", "--baseline", "false"),
            *("--eval_strategy", "no"),
        ],
    }


@pytest.fixture(scope="module")
def finished(options: dict[str, Options], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs with the checkpoints 2 and 4. Tests that change one copy it first."""
    folders = {command: tmp_path_factory.mktemp("runs") / command for command in COMMANDS}
    for command, folder in folders.items():
        run(command, options[command], folder)
    return folders


def stopped(folder: Path, copy: Path) -> Path:
    """A copy of a finished run as it was after step 2."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoint-4")
    for name in ("model.safetensors", "results.json"):
        (copy / name).unlink()
    return copy


# Refused


def template_of(base: Path, folder: Path) -> list[object]:
    shutil.copytree(base, folder)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("'\\n'", "' '"), encoding="utf-8")
    return ["--model_name_or_path", folder]


def tokenizer_of(base: Path, folder: Path) -> list[object]:
    """Another tokenizer of the same size."""
    shutil.copytree(base, folder)
    size = len(load_tokenizer(base))
    train_tokenizer([f"zebra {number} quick" for number in range(200)] * 3, size, show_progress=False).save_pretrained(
        folder
    )
    return ["--model_name_or_path", folder]


CHANGED_CHATS = {
    "a word": [*CHATS[:5], ("Where is the dog number 5?", "It sits in house 5."), *CHATS[6:]],
    "the order": CHATS[::-1],
    "a row less": CHATS[:-1],
    "a row more": [*CHATS, ("And now?", "No.")],
}
CHANGED_ROWS = {
    "a word": [{**ROWS[0], "text": "the cow"}, *ROWS[1:]],
    "a label": [{**ROWS[0], "label": "dog"}, *ROWS[1:]],
    "the order": ROWS[::-1],
    "a row less": ROWS[:-1],
    "the names of labels": [{**row, "label": row["label"].title()} for row in ROWS],
}


@pytest.mark.parametrize("change", CHANGED_CHATS)
def test_other_conversations(
    change: str, options: dict[str, Options], finished: dict[str, Path], tmp_path: Path
) -> None:
    other = write(tmp_path / "other.jsonl", chats(CHANGED_CHATS[change]))
    before = contents(finished["sft"])
    with pytest.raises(
        CheckpointError, match=r"checkpoint-4 was trained on other data: .*the data was [0-9a-f]{32} and is"
    ):
        run("sft", options["sft"], finished["sft"], "--dataset", other, "--resume_from_checkpoint", "true")
    assert contents(finished["sft"]) == before


@pytest.mark.parametrize("change", CHANGED_ROWS)
def test_other_rows(change: str, options: dict[str, Options], finished: dict[str, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", CHANGED_ROWS[change])
    before = contents(finished["finetune"])
    changes, named = ["--dataset", other], "the data was [0-9a-f]{32} and is"
    if change == "the names of labels":
        # They are no part of the tokenized rows.
        changes, named = [*changes, "--eval_dataset", other], "the list of labels was .*'Cat'"
    with pytest.raises(CheckpointError, match=f"checkpoint-4 was trained on other data: .*{named}"):
        run("finetune", options["finetune"], finished["finetune"], *changes, "--resume_from_checkpoint", "true")
    assert contents(finished["finetune"]) == before


def test_a_moved_file_is_the_same_data(options: dict[str, Options], finished: dict[str, Path], tmp_path: Path) -> None:
    for command, rows in (("sft", chats(CHATS)), ("finetune", ROWS)):
        folder = stopped(finished[command], tmp_path / command)
        other = write(tmp_path / f"{command}.jsonl", rows)
        run(command, options[command], folder, "--dataset", other, "--resume_from_checkpoint", "true")
        assert logged(folder, "loss") == logged(finished[command], "loss")


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("sft", ["--seed", "7"], "other data: .*--seed was 42 and is 7"),
        ("sft", ["--block_size", "48"], "--block_size was 64 and is 48"),
        ("sft", ["--long_conversations", "drop"], "--long_conversations was cut and is drop"),
        ("sft", ["--test_fraction", "0.3"], "--test_fraction was 0.0 and is 0.3"),
        ("sft", template_of, "the chat template was [0-9a-f]{32} and is"),
        ("sft", tokenizer_of, "the tokenizer was [0-9a-f]{32} and is"),
        ("sft", ["--use_peft", "true"], "--use_peft was False and is True"),
        ("sft", ["--train_sampling_strategy", "sequential"], "--train_sampling_strategy was random and is sequential"),
        ("finetune", ["--seed", "7"], "other data: .*--seed was 42 and is 7"),
        ("finetune", ["--max_length", "6"], "--max_length was 48 and is 6"),
        ("finetune", tokenizer_of, "the tokenizer was [0-9a-f]{32} and is"),
        ("finetune", ["--label_column", "other"], "--label_column was None and is other"),
        ("finetune", ["--freeze_base", "true"], "--freeze_base was False and is True"),
        ("finetune", ["--dropout", "0.3"], "--dropout was None and is 0.3"),
        ("finetune", ["--class_weights", "true"], "--class_weights was False and is True"),
        ("finetune", ["--adapt_epochs", "1"], "--adapt_epochs was 0.0 and is 1.0"),
        ("finetune", ["--data_seed", "3"], "--data_seed was 42 and is 3"),
        *(
            (
                command,
                ["--per_device_train_batch_size", "2"],
                r"4 rows per step \(batch 4 x accumulation 1\) and this run would take 2 rows per step \(batch 2 x.*"
                "Give --gradient_accumulation_steps 2, which keeps the 4 rows per step",
            )
            for command in COMMANDS
        ),
        ("finetune", ["--gradient_accumulation_steps", "2"], r"4 rows per step .* would take 8 rows per step"),
        (
            "sft",
            [
                "--per_device_train_batch_size",
                "2",
                "--auto_find_batch_size",
                "true",
                "--gradient_accumulation_steps",
                "2",
            ],
            r"would take 8 rows per step \(batch 4 x accumulation 2\)",
        ),
        *(
            (command, ["--max_steps", "3"], r"checkpoint-4 is at step 4 .*, beyond --max_steps 3")
            for command in COMMANDS
        ),
        ("finetune", ["--max_steps", "-1", "--num_train_epochs", "0.5"], "beyond --num_train_epochs 0.5"),
        (
            "finetune",
            ["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "steps", "--eval_steps", "2"],
            "with --lr_scheduler_type linear, whose state reduce_lr_on_plateau cannot use",
        ),
    ],
)
def test_other_settings(
    command: str,
    changes: Any,
    message: str,
    options: dict[str, Options],
    finished: dict[str, Path],
    base_folder: Path,
    tmp_path: Path,
) -> None:
    more = changes(base_folder, tmp_path / "other") if callable(changes) else changes
    before = contents(finished[command])
    with pytest.raises(CheckpointError, match=message):
        run(command, options[command], finished[command], *more, "--resume_from_checkpoint", "true")
    assert contents(finished[command]) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--lora_r", "4"], "--lora_r was 2 and is 4"),
        (["--lora_alpha", "4"], "--lora_alpha was 32 and is 4"),
        (["--lora_target_modules", "down_proj"], "--lora_target_modules was None and is .'down_proj'."),
        (["--use_peft", "false"], "--use_peft was True and is False"),
        (["--model_name_or_path", "{other}"], "the base model was [0-9a-f]{32} and is"),
    ],
)
def test_other_adapters(
    changes: Options,
    message: str,
    options: dict[str, Options],
    adapters: Path,
    base_folder: Path,
    tmp_path: Path,
) -> None:
    other = shutil.copytree(base_folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: weight + 0.5 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    more = [change.format(other=other) for change in changes]
    with pytest.raises(CheckpointError, match=message):
        run("sft", [*options["sft"], *ADAPTERS], adapters, *more, "--resume_from_checkpoint", "true")


ADAPTERS = ["--use_peft", "true", "--lora_r", "2"]


@pytest.fixture(scope="module")
def adapters(options: dict[str, Options], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "run"
    run("sft", [*options["sft"], *ADAPTERS], folder)
    return folder


@pytest.mark.parametrize("command", ["sft", "finetune"])
def test_a_run_without_a_record(
    command: str,
    options: dict[str, Options],
    finished: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """As release 0.1 left it; only what its recipe and its checkpoint say can be compared."""
    folder = stopped(finished[command], tmp_path / "run")
    (folder / "data.json").unlink()
    with pytest.raises(CheckpointError, match=r"4 rows per step .* would take 12 rows per step"):
        run(command, options[command], folder, "--gradient_accumulation_steps", 3, "--resume_from_checkpoint", "true")
    with caplog.at_level(logging.INFO):
        run(command, options[command], folder, "--resume_from_checkpoint", "true")
    assert "has no record of its data; it is assumed to be the same" in caplog.text
    assert "The run continues at step 2 of 4; the learning rate continues from" in caplog.text
    assert logged(folder, "loss") == logged(finished[command], "loss")
    assert json.loads((folder / "data.json").read_text())["command"] == command


@pytest.mark.parametrize(
    ("command", "other"), [("sft", "finetune"), ("finetune", "sft"), ("pretrain", "sft"), ("sft", "pretrain")]
)
def test_the_folder_of_another_command(
    command: str, other: str, options: dict[str, Options], finished: dict[str, Path], tmp_path: Path
) -> None:
    message = f"contains a run of `chatgpt-hf {other}`, which `chatgpt-hf {command}` cannot continue"
    with pytest.raises(CheckpointError, match=message):
        run(command, options[command], finished[other], "--resume_from_checkpoint", "true")
    named = finished[other] / "checkpoint-2"
    with pytest.raises(CheckpointError, match=message):
        run(command, options[command], tmp_path / "new", "--resume_from_checkpoint", named)
    assert not (tmp_path / "new").exists()
    # Also before its first checkpoint.
    shutil.copytree(finished[other], tmp_path / "begun", ignore=shutil.ignore_patterns("checkpoint-*"))
    before = contents(tmp_path / "begun")
    with pytest.raises(CheckpointError, match=message):
        run(command, options[command], tmp_path / "begun", "--resume_from_checkpoint", "true")
    assert contents(tmp_path / "begun") == before


def test_a_checkpoint_of_another_run(options: dict[str, Options], finished: dict[str, Path], tmp_path: Path) -> None:
    """It may begin a new folder, but not be mixed into the folder of a run."""
    other = finished["sft"] / "checkpoint-2"
    run("sft", options["sft"], tmp_path / "branch", "--resume_from_checkpoint", other)
    assert logged(tmp_path / "branch", "loss") == logged(finished["sft"], "loss")
    before = contents(tmp_path / "branch")
    with pytest.raises(
        OutputError, match=r"checkpoint-2 belongs to another run than the one that --output_dir .*branch"
    ):
        run("sft", options["sft"], tmp_path / "branch", "--resume_from_checkpoint", other)
    assert contents(tmp_path / "branch") == before


# Obeyed


@pytest.mark.parametrize("command", ["sft", "finetune"])
def test_a_step_that_is_split_otherwise(
    command: str,
    options: dict[str, Options],
    finished: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """4 rows as 4 x 1, 2 x 2 and 1 x 4: the same rows in every step, also in the next epoch."""
    whole = tmp_path / "whole"
    run(command, options[command], whole, "--max_steps", 8)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("checkpoint-[468]", "results.json", "*.safetensors"))
    shutil.copytree(whole / "checkpoint-2", folder / "checkpoint-2", dirs_exist_ok=True)
    split = ["--max_steps", 8, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    run(command, options[command], folder, *split, "--resume_from_checkpoint", "true")
    assert "A step was 4 rows per step (batch 4 x accumulation 1) and is 4 rows per step (batch 2 x acc" in caplog.text
    expected = logged(whole, "loss")
    assert logged(folder, "loss") == {step: pytest.approx(loss, rel=1e-4) for step, loss in expected.items()}
    for number in (4, 6, 8):
        state = json.loads((folder / f"checkpoint-{number}" / "trainer_state.json").read_text())
        assert state["train_batch_size"] == 2
    # And once more.
    shutil.rmtree(folder / "checkpoint-8")
    split = ["--max_steps", 8, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 4]
    run(command, options[command], folder, *split, "--resume_from_checkpoint", "true")
    assert logged(folder, "loss") == {step: pytest.approx(loss, rel=1e-4) for step, loss in expected.items()}


def test_a_batch_that_no_longer_fits_into_memory(
    options: dict[str, Options], finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`auto_find_batch_size` tries smaller batches, with which the run would continue at another place in the data."""
    folder = stopped(finished["sft"], tmp_path / "run")
    step = Trainer.training_step

    def with_less_memory(self: Trainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(inputs["input_ids"]) > most:
            raise RuntimeError("CUDA out of memory.")
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", with_less_memory)
    finding = ["--auto_find_batch_size", "true", "--resume_from_checkpoint", "true"]
    most = 2
    with pytest.raises(
        CheckpointError, match="was trained with batches of 4 rows, which no longer fit into memory; with 3"
    ):
        run("sft", options["sft"], folder, *finding)
    assert not (folder / "checkpoint-4").exists()
    most = 4
    # The batch of the checkpoint is taken, whatever the arguments say.
    run("sft", options["sft"], folder, *finding, "--per_device_train_batch_size", 64)
    assert logged(folder, "loss") == logged(finished["sft"], "loss")


def test_a_split_that_moves_the_place_in_the_data(options: dict[str, Options], tmp_path: Path) -> None:
    """What is left out at the end of an epoch depends on the size of a batch."""
    dropping = [*options["finetune"], "--dataloader_drop_last", "true"]
    run("finetune", dropping, tmp_path / "run")
    split = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    with pytest.raises(
        CheckpointError, match="with --dataloader_drop_last the place in the data depends on how a step"
    ):
        run("finetune", dropping, tmp_path / "run", *split, "--resume_from_checkpoint", "true")


@pytest.mark.parametrize(
    ("command", "optim", "schedule"),
    [
        ("pretrain", "muon", "warmup_stable_decay"),
        ("sft", "adamw_torch", "linear"),
        ("finetune", "muon", "cosine"),
    ],
)
def test_more_steps(
    command: str,
    optim: str,
    schedule: str,
    options: dict[str, Options],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """A finished run, whose last rate was near 0, goes on as the run of the new length would."""
    kind = ["--optim", optim, "--lr_scheduler_type", schedule, "--warmup_steps", 0]
    run(command, options[command], tmp_path / "run", *kind)
    ended = torch.load(tmp_path / "run" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert ended["param_groups"][0]["lr"] < 1e-9
    caplog.clear()
    run(command, options[command], tmp_path / "run", *kind, "--max_steps", 10, "--resume_from_checkpoint", "true")
    run(command, options[command], tmp_path / "whole", *kind, "--max_steps", 10)
    rates, expected = (logged(tmp_path / name, "learning_rate") for name in ("run", "whole"))
    assert {step: rates[step] for step in range(5, 11)} == {step: expected[step] for step in range(5, 11)}
    assert min(rates.values()) > 0
    assert (
        f"The run continues at step 4 of 10 (was 4); the learning rate continues from {expected[5]:.3g}."
        in caplog.text
    )


def test_more_epochs(options: dict[str, Options], caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    by_epoch = ["--max_steps", -1, "--save_strategy", "epoch", "--logging_steps", 1]
    run("finetune", options["finetune"], tmp_path / "run", *by_epoch, "--num_train_epochs", 1)
    run(
        "finetune",
        options["finetune"],
        tmp_path / "run",
        *by_epoch,
        "--num_train_epochs",
        2,
        "--resume_from_checkpoint",
        "true",
    )
    assert "The run continues at step 6 of 12 (was 6); the learning rate continues from 0.00" in caplog.text
    rates = logged(tmp_path / "run", "learning_rate")
    assert set(rates) == set(range(1, 13))
    assert all(rates[step] > rates[step + 1] > 0 for step in range(7, 12))


def test_a_finished_run_with_the_same_steps_takes_no_further_step(
    options: dict[str, Options], finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished["finetune"], tmp_path / "run")
    (folder / "model.safetensors").unlink()
    run("finetune", options["finetune"], folder, "--resume_from_checkpoint", "true")
    assert not (folder / "checkpoint-5").exists()
    weights, others = (load_file(path / "model.safetensors") for path in (folder, finished["finetune"]))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.parametrize("optim", ["muon", "adamw_torch"])
def test_other_settings_of_the_optimizer_hold(
    optim: str, options: dict[str, Options], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The message about divergence advises to resume with a smaller rate."""
    first = [
        "--optim",
        optim,
        "--warmup_steps",
        0,
        "--lr_scheduler_type",
        "constant",
        "--max_steps",
        4,
        "--save_steps",
        2,
    ]
    run("finetune", options["finetune"], tmp_path / "run", *first)
    changed = [
        "--optim",
        optim,
        "--max_steps",
        8,
        "--learning_rate",
        0.003,
        "--weight_decay",
        0.25,
        "--adam_beta2",
        0.9,
    ]
    changed += ["--lr_scheduler_type", "linear", "--warmup_steps", 0]
    run("finetune", options["finetune"], tmp_path / "run", *changed, "--resume_from_checkpoint", "true")
    rates = logged(tmp_path / "run", "learning_rate")
    assert [rates[step] for step in range(5, 9)] == pytest.approx([0.003 * left / 8 for left in (4, 3, 2, 1)])
    groups = torch.load(tmp_path / "run" / "checkpoint-8" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.9)}
    assert {group["initial_lr"] for group in groups} == {0.003}
    assert "--learning_rate was 0.01 and is 0.003; --weight_decay was 0.0 and is 0.25; " in caplog.text
    assert "--lr_scheduler_type was constant and is linear" in caplog.text


# Adaptation


class Killed(BaseException):
    """Stands for the death of the process."""


ADAPTED = ["--adapt_epochs", "1", "--save_steps", "4"]


@pytest.fixture(scope="module")
def killed_after_adapting(options: dict[str, Options], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "run"
    step = Trainer.training_step

    def dying(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if Path(self.args.output_dir) == folder and self.state.global_step == 2:
            raise Killed
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", dying)
        with pytest.raises(Killed):
            run("finetune", options["finetune"], folder, *ADAPTED)
    assert (folder / "adapted" / "results.json").is_file()
    assert not list(folder.glob("checkpoint-*"))
    return folder


def test_a_run_that_was_killed_after_its_adaptation(
    options: dict[str, Options], killed_after_adapting: Path, tmp_path: Path
) -> None:
    run("finetune", options["finetune"], tmp_path / "whole", *ADAPTED)
    folder = shutil.copytree(killed_after_adapting, tmp_path / "run")
    run("finetune", options["finetune"], folder, *ADAPTED, "--resume_from_checkpoint", "true")
    assert logged(folder, "loss") == logged(tmp_path / "whole", "loss")
    weights, others = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "whole"))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    # Another folder finds the adaptation beside the checkpoint.
    named = folder / "checkpoint-4"
    more = ["--max_steps", 6, "--resume_from_checkpoint", named]
    run("finetune", options["finetune"], tmp_path / "branch", *ADAPTED, *more)
    assert not (tmp_path / "branch" / "adapted").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--dataset", "{other}"],
            r"adapted was adapted to other data: the file of held-out texts was \w+.jsonl and is",
        ),
        (["--adapt_epochs", "2"], "--adapt_epochs was 1.0 and is 2.0"),
        (["--adapt_learning_rate", "0.1"], "--adapt_learning_rate was 0.003 and is 0.1"),
        (["--seed", "5"], "--seed was 42 and is 5"),
    ],
)
def test_an_adaptation_to_other_texts(
    changes: Options, message: str, options: dict[str, Options], killed_after_adapting: Path, tmp_path: Path
) -> None:
    """Without a checkpoint of the task, only the adaptation has seen the data."""
    other = write(tmp_path / "other.jsonl", CHANGED_ROWS["a word"])
    before = contents(killed_after_adapting)
    more = [change.format(other=other) for change in changes]
    with pytest.raises(ChatGPTError, match=message):
        run(
            "finetune", options["finetune"], killed_after_adapting, *ADAPTED, *more, "--resume_from_checkpoint", "true"
        )
    assert contents(killed_after_adapting) == before


def test_a_fingerprint_of_rows() -> None:
    """It knows every value and the order, and not how the rows are stored."""
    rows = [
        {"ids": [1, 2, 3], "labels": 0.5, "text": "a", "choices": [[1], [2, 3]], "none": None},
        {"ids": [4], "labels": 1.5, "text": "b", "choices": [[], [4]], "none": "x"},
    ]
    data = Dataset.from_list(rows)
    assert rows_fingerprint(data) == rows_fingerprint(Dataset.from_list(rows[::-1]).select([1, 0]))
    narrow = data.cast_column("ids", data.features["ids"].__class__(data.features["ids"].feature.__class__("int32")))
    assert rows_fingerprint(narrow) == rows_fingerprint(data)
    others = [
        rows[::-1],
        rows[:1],
        [{**rows[0], "ids": [1, 2]}, {**rows[1], "ids": [3, 4]}],
        [{**rows[0], "choices": [[1, 2], [3]]}, rows[1]],
        [{**rows[0], "labels": 0.25}, rows[1]],
        [{**rows[0], "text": "c"}, rows[1]],
        [{**rows[0], "none": ""}, rows[1]],
    ]
    assert len({rows_fingerprint(Dataset.from_list(other)) for other in [rows, *others]}) == len(others) + 1


@pytest.mark.parametrize("data_seed", [None, 5])
def test_the_order_of_an_epoch_depends_on_no_other(data_seed: int | None, tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), seed=3, data_seed=data_seed, use_cpu=True)

    def order(*epochs: int) -> list[int]:
        sampler = EpochSampler(RepeatSampler(range(20), mini_repeat_count=2, batch_size=3, seed=3), arguments)
        for epoch in epochs:
            sampler.set_epoch(epoch)
            rows = list(sampler)
        assert len(rows) == len(sampler) == 36
        return rows

    assert order(0, 1, 2) == order(2) != order(1)
    # The first one is TRL's own.
    seed = 3 if data_seed is None else data_seed
    assert order(0) == list(RepeatSampler(range(20), mini_repeat_count=2, batch_size=3, seed=seed))
