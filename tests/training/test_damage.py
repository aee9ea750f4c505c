"""Damaged checkpoints are named and not trained on; power cuts, jumping clocks and second runs do no damage.

All files of a checkpoint are damaged in every way; the process really trains for the few cases that need it.
"""

import errno
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from power_cut import PowerCuts, write
from safetensors.torch import load_file
from transformers import TrainerState

from chatgpt_hf.errors import CheckpointError
from chatgpt_hf.training import resuming, run_folder
from chatgpt_hf.training.resuming import ResumableTrainer
from chatgpt_hf.training.run import correct_runtime
from chatgpt_hf.training.run_folder import (
    CHECKSUMS_NAME,
    LOCK_NAME,
    checkpoint_to_resume,
    find_fault,
    last_whole_checkpoint,
    only_run,
    remove_old_checkpoints,
    seal_checkpoint,
)

CHECKPOINTS = ["--save_strategy", "steps", "--save_steps", "2", "--max_steps", "6", "--residual_dropout", "0.1"]


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zero(content: bytes) -> bytes:
    return bytes(len(content))


def flip(content: bytes, place: int | None = None, bit: int = 1) -> bytes:
    place = len(content) // 2 if place is None else place
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def empty(content: bytes) -> bytes:
    return b""


def remove(content: bytes) -> None:
    return None


KINDS = [truncate, zero, flip, empty, remove]


def damage(file: Path, kind: Callable[[bytes], bytes | None]) -> None:
    content = kind(file.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)


@pytest.fixture(scope="module")
def whole(pretrain_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with three checkpoints; not to be changed."""
    from chatgpt_hf_cli import main

    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["pretrain", *pretrain_options, *CHECKPOINTS, "--output_dir", str(folder)]
        patch.setattr("sys.argv", ["chatgpt-hf", *arguments])
        main()
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """The run as a power cut left it, after its second checkpoint."""
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-6")
    for name in ("model.safetensors", "results.json"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def resume(pretrain_options: list[str]) -> Callable[..., list[str]]:
    return lambda folder, *more: [
        "pretrain",
        *pretrain_options,
        *CHECKPOINTS,
        "--output_dir",
        folder,
        *more,
        "--resume",
    ]


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return lines


def test_every_file_is_recorded(whole: Path) -> None:
    for checkpoint in whole.glob("checkpoint-*"):
        assert find_fault(checkpoint) is None
        record = json.loads((checkpoint / CHECKSUMS_NAME).read_text())["files"]
        names = {path.relative_to(checkpoint).as_posix() for path in files_of(checkpoint)}
        assert record.keys() == names - {CHECKSUMS_NAME}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_is_named(
    kind: Callable[[bytes], bytes | None], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest, before = run / "checkpoint-4", run / "checkpoint-2"
    for file in files_of(newest):
        content = file.read_bytes()
        damage(file, kind)
        assert checkpoint_to_resume(run) == before, file
        (line,) = said(caplog)
        assert line.startswith(str(file)), line
        assert line.endswith(f"The run continues from {before}, the newest complete checkpoint.")
        # The checksums are all that says that a checkpoint has any.
        if (file.name, kind) != (CHECKSUMS_NAME, remove):
            fault = find_fault(newest)
            assert fault is not None
            assert fault.damaged
            shutil.move(before, run / "aside")
            with pytest.raises(CheckpointError) as error:
                checkpoint_to_resume(run)
            assert str(error.value).startswith(str(file))
            assert "no complete checkpoint to continue from instead. Copy the file back, or name another" in str(
                error.value
            )
            assert "\n" not in str(error.value)
            shutil.move(run / "aside", before)
        file.write_bytes(content)
    assert checkpoint_to_resume(run) == newest
    assert said(caplog) == []


def test_any_flipped_bit_is_named(run: Path) -> None:
    draw, newest = random.Random(0), run / "checkpoint-4"
    for file in files_of(newest):
        content = file.read_bytes()
        for _ in range(12):
            file.write_bytes(flip(content, draw.randrange(len(content)), 1 << draw.randrange(8)))
            fault = find_fault(newest)
            assert fault is not None
            assert str(file) in fault.reason
        file.write_bytes(content)


def without_checksums(run: Path) -> None:
    for file in run.glob(f"*/{CHECKSUMS_NAME}"):
        file.unlink()


def test_checkpoints_of_earlier_versions(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    without_checksums(run)
    assert checkpoint_to_resume(run) == run / "checkpoint-4"
    (line,) = said(caplog)
    assert "checkpoint-4 has no checksums: it is of an earlier version" in line
    for name, kinds in {
        "model.safetensors": (truncate, zero, empty),
        "optimizer.pt": KINDS,
        "scheduler.pt": (truncate, zero, empty),
        "rng_state.pth": (truncate, zero, empty),
        "trainer_state.json": (truncate, zero, empty, remove),
    }.items():
        file = run / "checkpoint-4" / name
        content = file.read_bytes()
        for kind in kinds:
            damage(file, kind)
            assert checkpoint_to_resume(run) == run / "checkpoint-2", (name, kind)
            first, second = said(caplog)
            assert "checkpoint-2 has no checksums" in first
            assert name in second
            file.write_bytes(content)


def same_weights(folder: Path, other: Path) -> bool:
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(("name", "kind"), [("optimizer.pt", empty), ("model.safetensors", flip)])
def test_the_run_goes_on_from_the_checkpoint_before(
    name: str,
    kind: Callable[[bytes], bytes],
    run: Path,
    whole: Path,
    cli: Any,
    resume: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(run / "checkpoint-4" / name, kind)
    assert cli(*resume(run)).code == 0
    (line,) = [line for line in said(caplog) if "is damaged" in line]
    assert f"checkpoint-4/{name} is damaged" in line
    assert "The run continues from" in line
    assert same_weights(run, whole)
    assert find_fault(run / "checkpoint-4") is None, "it was written again"


@pytest.mark.parametrize("earlier", [False, True])
def test_without_another_checkpoint_the_run_is_refused(earlier: bool, run: Path, refused: Any, resume: Any) -> None:
    if earlier:
        without_checksums(run)
    for checkpoint in run.glob("checkpoint-*"):
        damage(checkpoint / "optimizer.pt", empty)
    message = refused(*resume(run))
    assert "checkpoint-4/optimizer.pt is damaged" in message
    assert message.rstrip().endswith("Copy the file back, or name another --output_dir to start again.")
    named = refused(*resume(run)[:-1], "--resume_from_checkpoint", run / "checkpoint-2")
    assert "is not a complete checkpoint" in named
    assert "checkpoint-2/optimizer.pt is damaged" in named


@pytest.mark.parametrize(("name", "kind"), [("recipe.yaml", empty), ("recipe.yaml", zero), ("data.json", empty)])
def test_damage_beside_the_checkpoints(name: str, kind: Any, run: Path, refused: Any, resume: Any) -> None:
    damage(run / name, kind)
    message = refused(*resume(run))
    assert str(run / name) in message


def test_a_card_may_be_edited(run: Path) -> None:
    checkpoint = run / "checkpoint-4"
    (checkpoint / "README.md").write_text("PEFT's")
    seal_checkpoint(checkpoint)
    (checkpoint / "README.md").write_text("mine")
    assert find_fault(checkpoint) is None


def test_a_file_system_without_locks(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.FileLock, "acquire", fail)
    with run_folder.only_run(run):
        assert "file system without locks" in caplog.text


def test_the_best_checkpoint_is_damaged(run: Path) -> None:
    """Its model would be taken at the end of the training, without being resumed from."""
    trainer = ResumableTrainer.__new__(ResumableTrainer)
    trainer.state = TrainerState(best_model_checkpoint=str(run / "checkpoint-2"))
    damage(run / "checkpoint-2" / "model.safetensors", flip)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is damaged: .* the best of this run. Copy the file back"
    ):
        trainer._load_best_model()


def test_a_second_run_is_kept_out(run: Path, refused: Any, resume: Any) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = contents()
    with only_run(run):
        for arguments in (resume(run), resume(run)[:-1]):
            message = refused(*arguments)
            assert f"Another run is writing into {run} (process {os.getpid()} on " in message
        assert contents().keys() == {*before, run / LOCK_NAME}
    assert contents() == before


def test_the_file_of_a_dead_process_locks_nothing(run: Path) -> None:
    (run / LOCK_NAME).write_text("process 1 on elsewhere")
    with only_run(run):
        assert str(os.getpid()) in (run / LOCK_NAME).read_text()


def test_the_clock_is_set_back(pretrain_options: list[str], cli: Any, tmp_path: Path, whole: Path) -> None:
    """By the times of the folders, each new checkpoint would be the oldest, and be removed."""
    folder = tmp_path / "run"
    save = ResumableTrainer._save_checkpoint
    jumps = 0

    def jump(self: ResumableTrainer, *arguments: Any) -> None:
        nonlocal jumps
        save(self, *arguments)
        jumps += 1
        for checkpoint in folder.glob("checkpoint-*"):
            os.utime(checkpoint, (4e9 - 1e9 * jumps, 4e9 - 1e9 * jumps))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableTrainer, "_save_checkpoint", jump)
        assert (
            cli("pretrain", *pretrain_options, *CHECKPOINTS, "--save_total_limit", "1", "--output_dir", folder).code
            == 0
        )
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]
    assert same_weights(folder, whole)


def test_the_time_of_a_run_whose_clock_was_set(caplog: pytest.LogCaptureFixture) -> None:
    right = {"train_runtime": 9.5, "train_samples_per_second": 20.0, "train_loss": 3.0}
    assert correct_runtime(right, 10.0) == right
    assert said(caplog) == []
    for counted in (-1e6, 1e6):
        wrong = {"train_runtime": counted, "train_samples_per_second": 200 / counted, "train_loss": 3.0}
        corrected = correct_runtime(wrong, 10.0)
        assert corrected == pytest.approx({"train_runtime": 10.0, "train_samples_per_second": 20.0, "train_loss": 3.0})
        assert "The clock was set during the training: it took 10 seconds" in said(caplog)[0]


def test_which_old_checkpoints_are_removed(tmp_path: Path) -> None:
    def left(newest: int, limit: int | None, best: int | None = None) -> list[int]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        for step in (5, 10, 20, 100):
            (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        path = str(tmp_path / "run" / f"checkpoint-{best}") if best else None
        remove_old_checkpoints(tmp_path / "run" / f"checkpoint-{newest}", limit, path)
        return sorted(int(path.name.rpartition("-")[2]) for path in (tmp_path / "run").iterdir())

    assert left(100, None) == left(100, 0) == left(100, 4) == [5, 10, 20, 100]
    assert left(100, 2) == [20, 100]
    assert left(100, 1) == [100]
    assert left(100, 1, best=5) == left(100, 2, best=5) == [5, 100]
    assert left(100, 3, best=5) == [5, 20, 100]
    # The run was continued from step 10; what had come later is not continued any more.
    assert left(20, 3) == [5, 10, 20]
    assert left(20, 1) == [20]


def test_a_power_cut_at_any_moment(
    pretrain_options: list[str], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint or run that counts as complete is complete; and there is always one to continue from."""
    disk_folder, folder = tmp_path / "disk", tmp_path / "disk" / "run"
    disk_folder.mkdir()
    sealed: dict[str, dict[str, bytes]] = {}
    began: dict[str, int] = {}
    seal = resuming.seal_checkpoint

    def remember(checkpoint: Path) -> None:
        sealed[checkpoint.name] = {path.name: path.read_bytes() for path in files_of(checkpoint)}
        seal(checkpoint)
        began[checkpoint.name] = len(disk.states)

    monkeypatch.setattr(resuming, "seal_checkpoint", remember)
    with PowerCuts(disk_folder, monkeypatch) as disk:
        options = [*CHECKPOINTS, "--save_total_limit", "1", "--output_dir", folder]
        assert cli("pretrain", *pretrain_options, *options).code == 0
        lazy = disk.lazy
    assert len(disk.states) > 100
    found = set()
    for number, state in enumerate(disk.states):
        left = write(state, tmp_path / f"left-{number}") / "run"
        newest = last_whole_checkpoint(left)
        if newest is None:
            assert number < began["checkpoint-2"]
        else:
            found.add(newest.name)
            for name, content in sealed[newest.name].items():
                assert name == CHECKSUMS_NAME or (newest / name).read_bytes() == content
        if (left / "results.json").exists():
            for name in ("results.json", "model.safetensors", "config.json", "tokenizer.json", "data.json"):
                assert (left / name).read_bytes() == (folder / name).read_bytes()
        shutil.rmtree(tmp_path / f"left-{number}", ignore_errors=True)
    assert found == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert "run/results.json" in lazy, "a finished run can still be lost"
