"""Several processes as one run: they meet, the first one decides, and where one fails, all end with one message."""

import json
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import KILL, Ended, free_port, run_ranks, under_torchrun
from safetensors.torch import load_file

from chatgpt_hf import __version__
from chatgpt_hf.errors import DistributedError
from chatgpt_hf.training.distributed import World, joined
from chatgpt_hf.training.launch import check_devices, place

WORDS = re.compile(r"^error: ", re.MULTILINE)


@pytest.fixture
def options(corpus_file: Path, base_folder: Path) -> list[str]:
    """A tiny pretraining on CPUs that saves in the middle; dropout draws random numbers."""
    text = """--block_size 32 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --residual_dropout 0.1 --use_cpu true
        --per_device_train_batch_size 2 --max_steps 4 --save_steps 2 --logging_steps 1 --disable_tqdm true --test_fraction 0.2
        --per_device_eval_batch_size 2"""
    return ["pretrain", "--corpus", str(corpus_file), "--tokenizer", str(base_folder), *text.split()]


def patched(name: str, body: str) -> str:
    """Code that replaces a method of `Trainer`; the old one is `before`."""
    return f"""
import os, signal, transformers
before = transformers.Trainer.{name}
def changed(self, *arguments, **options):
    {body}
    return before(self, *arguments, **options)
transformers.Trainer.{name} = changed
"""


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
DEATHS = {
    "preparing": f"import chatgpt_hf.training.pretrain as module\ndef dies(*arguments):\n    exec({KILL!r})\nmodule._model = dies",
    "step": patched("training_step", f"if self.state.global_step == 3: {KILLED}"),
    "saving": patched("_save_rng_state", KILLED),
    "evaluating": f"import chatgpt_hf.training.pretrain as module\ndef dies(*arguments, **options):\n    exec({KILL!r})\n"
    "module.evaluate_language_modeling = dies",
}


def one_message(ended: Ended, code: int = 2) -> str:
    """Asserts that all processes ended alike and the first one printed one message; returns it."""
    assert ended.codes == [code] * len(ended.codes), ended
    assert set(ended.err[1:]) | set(ended.out[1:]) == {""}
    assert len(WORDS.findall(ended.err[0])) == 1, ended.err[0]
    return WORDS.split(ended.err[0])[1]


def test_two_processes_give_the_figures_of_one(fork_server: Any, options: list[str], tmp_path: Path, cli: Any) -> None:
    options[options.index("--residual_dropout") + 1] = "0"
    ended = run_ranks(fork_server, tmp_path, [*options, "--output_dir", tmp_path / "two"])
    assert ended.codes == [0, 0], ended.err
    assert ended.out[1] == ended.err[1] == ""
    assert cli(*options, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "one").code == 0
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=1e-5)
    assert two["held_out_tokens"] == one["held_out_tokens"]
    assert two["held_out_bits_per_byte"] == pytest.approx(one["held_out_bits_per_byte"], abs=1e-5)
    log = (tmp_path / "two" / "logs" / "process-1.log").read_text()
    assert "process 1 of 2" in log
    assert not (tmp_path / "one" / "logs").exists()


@pytest.mark.parametrize("phase", list(DEATHS))
def test_a_process_that_dies_ends_all(phase: str, fork_server: Any, options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run_ranks(fork_server, tmp_path, [*options, "--output_dir", folder], of={1: {"code": DEATHS[phase]}})
    assert ended.codes == [2, -9], ended
    message = one_message(Ended(ended.codes[:1], ended.out, ended.err))
    assert message.startswith("Process 1 of 2 ")
    assert "ended without a message" in message
    assert "Traceback" not in ended.err[0]
    assert (str(folder / "logs" / "process-1.log") in message) == (phase != "preparing")
    assert not (folder / "results.json").exists()


def test_the_first_process_dies(fork_server: Any, options: list[str], tmp_path: Path) -> None:
    ended = run_ranks(
        fork_server, tmp_path, [*options, "--output_dir", tmp_path / "run"], of={0: {"code": DEATHS["step"]}}
    )
    assert ended.codes == [-9, 2]
    assert ended.err[1] == ""
    assert "Process 0 has ended without a message" in (tmp_path / "run" / "logs" / "process-1.log").read_text()


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (
            patched("_save_rng_state", "raise OSError(28, 'No space left on device')"),
            2,
            r"process 1 on \S+: Could not write to \S+run: No space left on device",
        ),
        (
            patched("_save_rng_state", "raise TypeError('surprise')"),
            1,
            r"process 1 on \S+ failed: TypeError: surprise",
        ),
        (
            patched("compute_loss", "return before(self, *arguments, **options) * float('nan')"),
            2,
            r"Training diverged at step 5: 5 steps in a row",
        ),
    ],
    ids=["full disk", "bug", "divergence"],
)
def test_a_failure_of_one_ends_all(
    code: str, exit_code: int, words: str, fork_server: Any, options: list[str], tmp_path: Path
) -> None:
    more = ("--max_steps", 6, "--output_dir", tmp_path / "run")
    ended = run_ranks(fork_server, tmp_path, [*options, *more], of={1: {"code": code}})
    assert re.search(words, one_message(ended, exit_code))
    assert ("Traceback" in ended.err[0]) == (exit_code == 1)


@pytest.mark.parametrize(
    ("shared", "of", "words"),
    [
        (
            [],
            {1: {"arguments": ["--learning_rate", "0.01"]}},
            r"--learning_rate is 0.005 in process 0 and 0.01 in process 1",
        ),
        ([], {1: {"arguments": ["--lerning_rate", "1"]}}, r"process 1 on \S+: Unknown argument --lerning_rate"),
        ([], {1: {"environment": {"WORLD_SIZE": "3"}}}, r"WORLD_SIZE is 2 in process 0 and 3 in process 1"),
        (["--use_cpu", "false"], {}, r"2 processes were started \(WORLD_SIZE\), but each would train by itself"),
        (
            ["--per_device_train_batch_size", "3", "--accelerator_config", '{"split_batches": true}'],
            {},
            r"--per_device_train_batch_size is 3, which 2 processes cannot share equally",
        ),
        (["--corpus", "missing.txt"], {}, r"missing\.txt"),
    ],
    ids=["other recipe", "other options", "other size", "no GPU", "indivisible batch", "no corpus"],
)
def test_what_is_wrong_before_the_training(
    shared: list[str], of: dict[int, Any], words: str, fork_server: Any, options: list[str], tmp_path: Path
) -> None:
    if torch.accelerator.is_available() and "--use_cpu" in shared:
        pytest.skip("there is an accelerator")
    folder = tmp_path / "run"
    ended = run_ranks(fork_server, tmp_path, [*options, *shared, "--output_dir", folder], of=of)
    assert re.search(words, one_message(ended))
    assert not folder.exists()


def test_processes_that_do_not_come(fork_server: Any, options: list[str], tmp_path: Path) -> None:
    environment = {"CHATGPT_HF_JOIN_SECONDS": "0.5", "WORLD_SIZE": "3"}
    arguments = [*options, "--output_dir", tmp_path / "run"]
    ended = run_ranks(fork_server, tmp_path, arguments, environment=environment)
    assert "missing: rank 2)" in one_message(ended)


def test_a_port_in_use(fork_server: Any, options: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ended = run_ranks(
            fork_server,
            tmp_path,
            [*options, "--output_dir", tmp_path / "run"],
            code="import chatgpt_hf.training.distributed as module\nmodule._ANSWER_SECONDS = 2.0",
            environment={"MASTER_PORT": str(other.getsockname()[1])},
        )
    assert "is in use, perhaps by another run" in one_message(ended)


def test_what_a_world_shares(fork_server: Any, tmp_path: Path) -> None:
    code = """
from chatgpt_hf.errors import DataError
from chatgpt_hf.training.distributed import joined
with joined() as world:
    rank = world.place.rank
    assert world.decide(lambda: {"chosen by": rank}) == {"chosen by": 0}
    # Longer than a store takes at once.
    assert world.gather(str(rank) * 9_000_000) == ["0" * 9_000_000, "1" * 9_000_000]
    with joined() as inner:
        assert inner is world
    with world.shared():
        pass
    world.agree({"a": 1}, remedy="")
    world.agree({"b": rank}, remedy="Choose.")
"""
    ended = run_ranks(fork_server, tmp_path, code=code)
    # Without the command line, Python prints the error of the first process.
    assert ended.codes == [1, 2]
    assert ended.err[1] == ""
    assert (
        ended.err[0].rstrip().endswith(f"b is 0 in process 0 and 1 in process 1 (on {socket.gethostname()}). Choose.")
    )


def test_torchrun_restarts_a_run_as_if_it_had_never_stopped(
    fork_server: Any, options: list[str], tmp_path: Path
) -> None:
    # Killed while the second checkpoint is written.
    dies = patched("_save_rng_state", f"if self.state.global_step == 4: {KILLED}")
    for name, code in (("whole", ""), ("killed", dies)):
        arguments = [*options, "--resume", "--max_steps", 6, "--output_dir", tmp_path / name]
        (tmp_path / f"{name}.streams").mkdir()
        job = {"code": under_torchrun(arguments, restarts=1, first_time=code)}
        ended = fork_server.run(tmp_path, **job)
        assert ended.returncode == 0, ended.stderr
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    assert "continues at step 2 of 6" in ended.stderr
    # The launcher ends the first process too, but not before it has said why.
    assert len(re.findall(r"^error: Process 1 of 2 .* ended without a message", ended.stderr, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two in the environment"),
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 2 and WORLD_SIZE 2"),
        (
            {
                **{"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
                **{"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"},
            },
            "LOCAL_WORLD_SIZE is 4 and WORLD_SIZE 2",
        ),
    ],
)
def test_wrong_places(environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=words):
        place()


def test_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    places = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**places, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"2 processes were started on .* 1 device of type cuda: start 1 "):
        check_devices(SimpleNamespace(use_cpu=False))
    check_devices(SimpleNamespace(use_cpu=True))
    # An instance that only holds defaults.
    check_devices(SimpleNamespace(use_cpu=False, distributed_state=None))


def test_a_single_process_is_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        assert world.place == World(place()).place
        assert world.decide(lambda: 3) == 3
        assert world.gather("a") == ["a"]
        world.agree({"a": object()}, remedy="")
        with world.shared():
            world.wait()


def test_the_command_line_is_a_module(fork_server: Any, tmp_path: Path) -> None:
    code = "import runpy, sys\nsys.argv[1:] = ['--version']\nrunpy.run_module('chatgpt_hf', run_name='__main__')"
    ended = fork_server.run(tmp_path, code=code)
    assert ended.returncode == 0
    assert ended.stdout.strip() == __version__
