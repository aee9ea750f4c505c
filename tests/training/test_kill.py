"""Runs in processes of their own that are really killed: each that goes on ends, to the bit, as one that was not.

The processes are forked from a server that has imported everything heavy already, so that a start takes a second.
"""

import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatgpt_hf.checkpoints import is_whole_checkpoint, last_whole_checkpoint

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="processes are forked from a server"
)

STEPS = 30
# Builtins travel to the new process by name, the test's own functions would not: their module is no package's.
RUN = """
import multiprocessing, os, sys
# As in a process that was not forked from the server: workers of a data loader end with it.
multiprocessing.set_start_method("fork", force=True)
sys.stderr = open({log!r}, "a")
os.environ |= {environment!r}
sys.argv = ["chatgpt-hf", "pretrain", *{options!r}]
import torch
torch.set_num_threads(1)
from chatgpt_hf_cli import main
main()
"""
PRELOADED = [
    "chatgpt_hf_cli.pretrain",
    "chatgpt_hf.quickstart",
    "chatgpt_hf.training.pretrain",
    "matplotlib.figure",
    "torch.distributed",
    "transformers.models.auto.modeling_auto",
    "transformers.trainer",
    "trl",
]


class Runner:
    """Starts and kills runs of one recipe."""

    def __init__(self, folder: Path, options: list[str], processes: int = 1) -> None:
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        self.options = [*options, "--output_dir", str(folder)]
        self.processes = processes
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def start(self) -> list[BaseProcess]:
        """Begins the run, or goes on with it."""
        common = {"CHATGPT_HF_CACHE": str(self.folder.parent / "rows")}
        if self.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            size = str(self.processes)
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        started = []
        for rank in range(self.processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.processes > 1 else {}
            source = RUN.format(log=str(self.log), environment=common | own, options=[*self.options, "--resume"])
            started.append(self.context.Process(target=exec, args=(source,)))
            started[-1].start()
        return started

    def finish(self) -> dict[str, torch.Tensor]:
        """Lets the run come to its end; its final weights."""
        assert self.wait(self.start()) == {0}, self.log.read_text()[-5000:]
        return load_file(self.folder / "model.safetensors")

    def wait(self, started: list[BaseProcess]) -> set[int | None]:
        for process in started:
            process.join(300)
        return {process.exitcode for process in started}

    def wait_for(self, path: Path, started: list[BaseProcess]) -> None:
        """Until something is there; fails where the run ends before."""
        while not path.exists():
            assert all(process.is_alive() for process in started), self.log.read_text()[-5000:]
            time.sleep(0.0005)

    def kill_after(self, step: int, seconds: float) -> None:
        """Goes on with the run and kills it some time after it began to save the checkpoint of a step."""
        started = self.start()
        self.wait_for(self.folder / f"checkpoint-{step}", started)
        time.sleep(seconds)
        for process in started:
            process.kill()
        assert self.wait(started) == {-signal.SIGKILL}


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


@pytest.fixture
def options(corpus_file: Path, base_folder: Path) -> list[str]:
    """Dropout draws from the generator in every step, a step takes two batches, and every step is saved."""
    text = f"""--corpus {corpus_file} --tokenizer {base_folder} --block_size 32 --hidden_size 16 --num_hidden_layers 1
        --num_attention_heads 2 --residual_dropout 0.1 --per_device_train_batch_size 2 --gradient_accumulation_steps 2
        --max_steps {STEPS} --save_steps 1 --save_total_limit 3 --logging_strategy no --disable_tqdm true"""
    return text.split()


STREAMING = ["--streaming", "true", "--eval_documents", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["finite", "streaming"])
def test_sigkill_at_ten_random_moments(source: str, options: list[str], tmp_path: Path) -> None:
    options += STREAMING if source == "streaming" else []
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "killed", options)
    draw = random.Random(0)
    cut_short = 0
    for index, step in enumerate(sorted(draw.sample(range(1, STEPS), 10))):
        # Every second one while the checkpoint is written, which takes longer than that.
        run.kill_after(step, draw.uniform(0, 0.15) if index % 2 else draw.uniform(0, 0.004))
        cut_short += not is_whole_checkpoint(run.folder / f"checkpoint-{step}")
        assert not (run.folder / "model.safetensors").exists()
    assert cut_short > 0, "no kill came while a checkpoint was written"
    assert_same(run.finish(), expected)


@pytest.mark.slow
def test_sigkill_before_anything_is_saved(options: list[str], tmp_path: Path) -> None:
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "killed", options)
    for awaited in ("", "recipe.yaml"):
        started = run.start()
        run.wait_for(run.folder / awaited, started)
        started[0].kill()
        assert run.wait(started) == {-signal.SIGKILL}
    assert_same(run.finish(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["finite", "streaming"])
def test_sigterm_saves_first(source: str, options: list[str], tmp_path: Path) -> None:
    options += ["--save_steps", "4", *(STREAMING if source == "streaming" else [])]
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "stopped", options)
    started = run.start()
    run.wait_for(run.folder / "checkpoint-4" / "trainer_state.json", started)
    os.kill(started[0].pid or 0, signal.SIGTERM)
    assert run.wait(started) == {143}
    newest = last_whole_checkpoint(run.folder)
    assert newest is not None
    assert f"stopped: SIGTERM at step {newest.name.rpartition('-')[2]}; {newest} is whole" in run.log.read_text()
    assert not (run.folder / "model.safetensors").exists()
    assert not (run.folder / "results.json").exists()
    assert_same(run.finish(), expected)


@pytest.mark.slow
def test_two_data_loader_workers(options: list[str], tmp_path: Path) -> None:
    options += [*STREAMING, "--dataloader_num_workers", "2"]
    expected = Runner(tmp_path / "whole", options).finish()
    run = Runner(tmp_path / "killed", options)
    for step in (7, 20):
        run.kill_after(step, 0.05)
    assert_same(run.finish(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["finite", "streaming"])
def test_two_processes(source: str, options: list[str], tmp_path: Path) -> None:
    options += ["--ddp_backend", "gloo", "--use_cpu", "true", *(STREAMING if source == "streaming" else [])]
    expected = Runner(tmp_path / "whole", options, processes=2).finish()
    run = Runner(tmp_path / "killed", options, processes=2)
    run.kill_after(9, 0.05)
    started = run.start()
    run.wait_for(run.folder / "checkpoint-15" / "trainer_state.json", started)
    # One is told, and both stop at the same step.
    os.kill(started[1].pid or 0, signal.SIGTERM)
    assert run.wait(started) == {143}
    assert_same(run.finish(), expected)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    for process in multiprocessing.active_children():
        process.kill()
