"""Really kills runs in separate processes: each resumed run is bit-identical to an uninterrupted one.

The moment of the kill does not depend on speed: killed.py brings the run to a chosen moment, where it waits to be killed.
"""

import json
import multiprocessing
import random
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from killable import PATIENCE, needs_forkserver, start
from safetensors.torch import load_file

from chatgpt_hf.training.run_folder import is_whole_checkpoint, last_whole_checkpoint

pytestmark = needs_forkserver

STEPS = 30

# `on_substep_end` comes in the middle of a step, but not in the last step of an epoch, which may have only one batch.
IN_A_STEP = ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
# In the order in which they are written. `STATE` comes last and makes the checkpoint complete.
FILES = ["model.safetensors", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
STREAM_FILES = ["data_state_0.json"]
STATE = "trainer_state.json"


def saving(verb: str, name: str) -> str:
    return f"{verb} checkpoint-{{step}}/{name}"


class Runner:
    """Starts and kills runs of one recipe."""

    def __init__(self, folder: Path, options: list[str], processes: int = 1) -> None:
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        self.arguments = ["pretrain", *options, "--output_dir", str(folder), "--resume"]
        self.processes = processes
        self.store: Any = None

    def start(self, stop: dict[str, Any] | None = None, rank: int = 0) -> tuple[list[BaseProcess], Connection]:
        """Starts or resumes the run; also returns the pipe on which a process reports that it reached its moment."""
        common = {"CHATGPT_HF_CACHE": str(self.folder.parent / "rows")}
        if self.processes > 1:
            # As in torchrun, the processes meet at a port that is opened before they start, so nobody else can take
            # it.
            self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            size = str(self.processes)
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
            common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        jobs = []
        for number in range(self.processes):
            own = {"RANK": str(number), "LOCAL_RANK": str(number)} if self.processes > 1 else {}
            jobs.append(
                {
                    "arguments": self.arguments,
                    "environment": common | own,
                    "log": str(self.log),
                    "stop": stop if number == rank else None,
                }
            )
        return start(*jobs, reports=rank)

    def finish(self) -> dict[str, torch.Tensor]:
        """Lets the run finish; returns its final weights."""
        assert self.wait(self.start()[0]) == {0}, self.log.read_text()[-5000:]
        return load_file(self.folder / "model.safetensors")

    def refused(self) -> set[int | None]:
        """Starts the run, and returns the exit codes with which it ends at once."""
        return self.wait(self.start()[0])

    def wait(self, started: list[BaseProcess]) -> set[int | None]:
        for process in started:
            process.join(PATIENCE)
        return {process.exitcode for process in started}

    def kill_at(self, moment: str, step: int = 0, *, rank: int = 0, count: int = 0, share: float = 0.5) -> None:
        """Resumes the run and kills all its processes at a moment of one of them."""
        stop = {"folder": str(self.folder), "moment": moment, "step": step, "count": count, "share": share}
        started, pipe = self.start(stop, rank)
        with pipe:
            assert pipe.poll(PATIENCE), f"{moment} did not come"
            try:
                assert pipe.recv() == "here"
            except EOFError:
                pytest.fail(f"the run ended before {moment} of step {step}: {self.log.read_text()[-5000:]}")
            for process in started:
                process.kill()
        assert self.wait(started) == {-signal.SIGKILL}

    def terminate_at(self, moment: str, step: int, *, rank: int = 0) -> None:
        """Resumes the run and sends SIGTERM to one of its processes at a moment."""
        stop = {"folder": str(self.folder), "moment": moment, "step": step, "sigterm": True}
        started, pipe = self.start(stop, rank)
        assert self.wait(started) == {143}, self.log.read_text()[-5000:]
        pipe.close()


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


@pytest.fixture
def options(corpus_file: Path, base_folder: Path) -> list[str]:
    """Dropout draws random numbers in every step, a step takes two batches, and every step is saved."""
    text = f"""--block_size 32 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --residual_dropout 0.1
        --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --max_steps {STEPS} --save_steps 1
        --save_total_limit 3 --logging_strategy no --disable_tqdm true"""
    return ["--corpus", str(corpus_file), "--tokenizer", str(base_folder), *text.split()]


STREAMING = ["--streaming", "true", "--eval_documents", "4"]
GLOO = ["--ddp_backend", "gloo", "--use_cpu", "true"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["finite", "streaming"])
def test_sigkill_at_ten_random_moments(source: str, options: list[str], tmp_path: Path) -> None:
    options += STREAMING if source == "streaming" else []
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "killed", options)
    draw = random.Random(source)
    files = FILES + (STREAM_FILES if source == "streaming" else [])
    # At least one file of each writer is truncated: Python, torch and safetensors.
    cut = ["model.safetensors", draw.choice([name for name in files if name.endswith((".bin", ".pt", ".pth"))]), STATE]
    moments = [saving("within", name) for name in cut]
    moments += [saving("before", "config.json"), saving("before", STATE), "removing checkpoint-{step}"]
    moments += [saving("within", STREAM_FILES[0])] if source == "streaming" else []
    moments += draw.sample(IN_A_STEP, 10 - len(moments))
    draw.shuffle(moments)
    # From the fourth checkpoint, old ones are removed.
    for step, moment in zip(sorted(draw.sample(range(4, STEPS), 10)), moments, strict=True):
        run.kill_at(moment, step, count=draw.randrange(10), share=draw.random())
        checkpoint = run.folder / f"checkpoint-{step}"
        if moment in IN_A_STEP:
            assert not checkpoint.exists()
        else:
            assert checkpoint.is_dir()
            assert is_whole_checkpoint(checkpoint) == moment.startswith("removing"), moment
        assert not (run.folder / "model.safetensors").exists()
    assert_same(run.finish(), expected)


@pytest.mark.slow
def test_sigkill_before_anything_is_saved(options: list[str], tmp_path: Path) -> None:
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "killed", options)
    for moment, left in (("before recipe.yaml", []), ("before data.json", ["recipe.yaml"])):
        run.kill_at(moment)
        # A killed run also leaves the file of its lock, which the operating system has released.
        assert sorted(path.name for path in run.folder.iterdir() if path.is_file()) == [".lock", *left]
    run.kill_at("on_step_begin", 1)
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "data.json", "recipe.yaml"]
    assert_same(run.finish(), expected)


@pytest.mark.slow
def test_sigkill_after_the_last_step(options: list[str], tmp_path: Path) -> None:
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "killed", options)
    for file in ("model.safetensors", "results.json"):
        run.kill_at(f"before {file}")
        assert is_whole_checkpoint(run.folder / f"checkpoint-{STEPS}")
        assert not (run.folder / file).exists()
    assert_same(run.finish(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["finite", "streaming"])
def test_sigterm_saves_first(source: str, options: list[str], tmp_path: Path) -> None:
    options += ["--save_steps", "4", *(STREAMING if source == "streaming" else [])]
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "stopped", options)
    # In the middle of a step, and while a checkpoint is written, when the next step is the last.
    for moment, step, last in (("on_substep_end", 6, 6), (saving("before", STATE), 12, 13)):
        run.terminate_at(moment, step)
        newest = last_whole_checkpoint(run.folder)
        assert newest is not None
        assert newest.name == f"checkpoint-{last}"
        assert f"stopped: SIGTERM at step {last}; {newest} is complete" in run.log.read_text()
        assert not (run.folder / "model.safetensors").exists()
        assert not (run.folder / "results.json").exists()
    assert_same(run.finish(), expected)


@pytest.mark.slow
def test_two_data_loader_workers(options: list[str], tmp_path: Path) -> None:
    options += [*STREAMING, "--dataloader_num_workers", "2"]
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "killed", options)
    run.kill_at(saving("within", STREAM_FILES[0]), 7)
    run.kill_at("on_substep_end", 20)
    assert_same(run.finish(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["finite", "streaming"])
def test_two_processes(source: str, options: list[str], tmp_path: Path) -> None:
    options += [*GLOO, *(STREAMING if source == "streaming" else [])]
    expected = Runner(tmp_path / "whole", options, processes=2).finish()
    run = Runner(tmp_path / "killed", options, processes=2)
    run.kill_at(saving("within", "optimizer.pt"), 9)
    # A complete checkpoint needs the files of the second process.
    run.kill_at(saving("within", "data_state_1.json" if source == "streaming" else "rng_state_1.pth"), 11, rank=1)
    assert not is_whole_checkpoint(run.folder / "checkpoint-11")
    # One process gets SIGTERM, and both stop at the same step.
    run.terminate_at("on_optimizer_step", 15, rank=1)
    assert is_whole_checkpoint(run.folder / "checkpoint-15")
    assert not (run.folder / "checkpoint-16").exists()
    assert_same(run.finish(), expected)


def losses(folder: Path) -> list[float]:
    """The losses of all steps."""
    state = json.loads((folder / f"checkpoint-{STEPS}" / STATE).read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


@pytest.mark.slow
def test_a_stream_in_shards_resumes_on_another_number_of_processes(options: list[str], tmp_path: Path) -> None:
    """A step takes the same rows on one process as on two; only sums are rounded differently, so dropout is off."""
    files = tmp_path / "texts"
    files.mkdir()
    for number in range(4):
        lines = [json.dumps({"text": f"File {number} has a line number {line}."}) + "\n" for line in range(40)]
        (files / f"{number}.jsonl").write_text("".join(lines))
    one = [*options, "--corpus", str(files), *STREAMING, "--residual_dropout", "0", "--stream_shards", "4"]
    one += ["--logging_strategy", "steps", "--logging_steps", "1"]
    two = [*one, *GLOO, "--gradient_accumulation_steps", "1"]
    Runner(tmp_path / "whole", one).finish()
    Runner(tmp_path / "moved", two, processes=2).terminate_at("on_optimizer_step", 6, rank=1)
    assert is_whole_checkpoint(tmp_path / "moved" / "checkpoint-6")
    Runner(tmp_path / "moved", one).terminate_at("on_optimizer_step", 12)
    Runner(tmp_path / "moved", two, processes=2).finish()
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert len(expected) == STEPS
    assert found == pytest.approx(expected, abs=1e-5)
    # What decides is in the record, and is not changed by a process more.
    assert json.loads((tmp_path / "moved" / "data.json").read_text())["stream"] == {"shards": 4}
    assert Runner(tmp_path / "moved", [*one, "--stream_shards", "2"]).refused() == {2}


@pytest.mark.slow
def test_two_processes_prepare_the_corpus_together(options: list[str], tmp_path: Path) -> None:
    # Less than an epoch: at its end, two processes repeat rows to have equally many.
    options += ["--residual_dropout", "0", "--max_steps", "20"]
    one = Runner(tmp_path / "alone", options).finish()
    two = Runner(tmp_path / "together", [*options, *GLOO, "--gradient_accumulation_steps", "1"], processes=2).finish()
    for name, weight in one.items():
        assert (weight - two[name]).abs().max() < 1e-5, name
    assert len(list((tmp_path / "rows" / "prepared").glob("*/prepared.json"))) == 1


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
