"""A full disk: the message says so, and earlier files stay intact.

The operating system really refuses the writes, because file sizes are limited.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import ForkServer
from safetensors.torch import load_file
from transformers import Trainer

from chatgpt_hf import load_model
from chatgpt_hf.training.run_folder import last_whole_checkpoint

resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX's")

# The weights take 275 kB, AdamW's state twice as much, and everything else less than 60 kB.
ROOM_FOR_NEITHER, ROOM_FOR_WEIGHTS = 100_000, 400_000
REMEDY = "Existing files are intact; free some space"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Limits the size of files; Python ignores SIGXFSZ, so a write beyond the limit fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, except the lock that a run has while it runs."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def options(sft_options: list[str]) -> list[str]:
    return [*sft_options, "--optim", "adamw_torch", "--save_strategy", "steps", "--save_steps", "2"]


@pytest.mark.parametrize("room", [ROOM_FOR_NEITHER, ROOM_FOR_WEIGHTS])
def test_full_while_a_checkpoint_is_saved(
    room: int,
    options: list[str],
    cli: Callable[..., Any],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    save = Trainer._save_checkpoint
    before: dict[str, bytes] = {}

    def save_on_a_full_disk(self: Trainer, *arguments: Any) -> None:
        if self.state.global_step == 2:
            return save(self, *arguments)
        before.update(contents(folder))
        with files_no_larger_than(room):
            return save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_on_a_full_disk)
        message = refused("sft", *options, "--output_dir", folder)
    assert f"Could not write to {folder}" in message
    assert REMEDY in message
    assert "with --resume if it is a training run" in message
    assert "unexpected pos" not in message, "torch's own words say nothing of the disk"
    assert (folder / "checkpoint-4").is_dir(), "nothing was begun, so nothing was tested"
    assert last_whole_checkpoint(folder) == folder / "checkpoint-2"
    after = contents(folder)
    card = "README.md"  # TRL writes its card into the run's folder with each checkpoint
    assert {name: after[name] for name in before if name != card} == {n: c for n, c in before.items() if n != card}

    assert cli("sft", *options, "--output_dir", folder, "--resume_from_checkpoint", "true").code == 0
    assert cli("sft", *options, "--output_dir", tmp_path / "other").code == 0
    weights, others = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "other"))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_full_while_the_model_is_saved(
    options: list[str],
    cli: Callable[..., Any],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The folder contains an older model that the resumed run would have replaced."""
    folder = tmp_path / "run"
    assert cli("sft", *options, "--output_dir", folder).code == 0
    before = contents(folder)
    more = [*options, "--max_steps", "6", "--save_strategy", "no", "--output_dir", folder]
    with files_no_larger_than(ROOM_FOR_NEITHER):
        message = refused("sft", *more, "--resume_from_checkpoint", "true")
    assert f"Could not write to {folder}" in message
    assert REMEDY in message
    after = contents(folder)
    assert {name for name in before if after.get(name) != before[name]} == {"recipe.yaml"}
    assert set(after) == set(before)
    load_model(folder)
    assert cli("sft", *more, "--resume_from_checkpoint", "true").code == 0


@pytest.mark.parametrize(
    ("command", "room"),
    [
        (["convert", "{model}", "{out}", "--to", "chatgpt"], ROOM_FOR_NEITHER),
        (["quantize", "{model}", "{out}"], 50_000),
        (["export", "{model}", "--output_dir", "{out}", "--format", "gguf", "--no-check"], ROOM_FOR_NEITHER),
        (["evaluate", "{model}", "--corpus", "{corpus}", "--out", "{out}"], 1_000),
    ],
)
def test_full_while_a_folder_is_written(
    command: list[str],
    room: int,
    gguf_folder: Path,
    corpus_file: Path,
    cli: Callable[..., Any],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    def into(name: str) -> list[str]:
        return [part.format(model=gguf_folder, corpus=corpus_file, out=tmp_path / name / "out") for part in command]

    # Also fills the caches, which have their own messages.
    assert cli(*into("before")).code == 0
    with files_no_larger_than(room):
        message = refused(*into("run"))
    assert f"Could not write to {tmp_path / 'run' / 'out'}" in message
    assert REMEDY in message
    assert contents(tmp_path / "run") == {}
    assert cli(*into("run")).code == 0
    assert contents(tmp_path / "run").keys() == contents(tmp_path / "before").keys()


@pytest.mark.e2e
@pytest.mark.slow
def test_full_in_a_process_of_its_own(sft_options: list[str], fork_server: ForkServer, tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200 * 1024, 200 * 1024))"
    arguments = ["sft", *sft_options, "--output_dir", str(tmp_path / "run")]
    result = fork_server.run(tmp_path, code=limited, arguments=arguments)
    assert result.returncode == 2, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    assert REMEDY in result.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data.json", "recipe.yaml"]
