"""The stand-in Hub, and a process whose huggingface_hub has it for its Hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_SPEC = spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
hub_server = module_from_spec(_SPEC)
sys.modules["hub_server"] = hub_server
_SPEC.loader.exec_module(hub_server)

# huggingface_hub reads HF_ENDPOINT when it is imported, so the commands run in a process of their own: one for all tests,
# since the imports take longer than the tests. Its client waits up to 23 seconds between its own attempts, which is left out.
WORKER = """
import contextlib, io, json, logging, os, sys, time, types
import huggingface_hub.utils._http as http
http.time = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
from chatgpt_hf.cli import main
logging.raiseExceptions = False
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(asked["environment"])
    out, err, code, value = io.StringIO(), io.StringIO(), 0, None
    handlers = list(logging.root.handlers)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "code" in asked:
                names = {}
                exec(asked["code"], names)
                value = names.get("result")
            else:
                sys.argv = ["chatgpt-hf", *asked["arguments"]]
                main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
    logging.root.handlers[:] = handlers
    answers.write(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "value": value}) + "\\n")
    answers.flush()
"""


class Client:
    """Runs commands and code in the process that knows the stand-in."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *arguments: object, token: str | None = hub_server.WRITER) -> SimpleNamespace:
        """Runs the command line; `code`, `out` and `err` tell how it ended."""
        return self._ask({"arguments": [str(argument) for argument in arguments]}, token)

    def refused(self, *arguments: object, token: str | None = hub_server.WRITER) -> str:
        """Runs a command that must fail as a user's mistake does, and returns its message."""
        result = self(*arguments, token=token)
        assert result.code == 2, result
        assert "Traceback" not in result.err + result.out
        _, _, message = ("\n" + result.err).rpartition("\nerror: ")
        assert message, result
        return message

    def run(self, code: str, token: str | None = hub_server.WRITER) -> Any:
        """Runs code; returns its variable `result`."""
        result = self._ask({"code": code}, token)
        assert result.code == 0, result.err
        return result.value

    def _ask(self, request: dict[str, Any], token: str | None) -> SimpleNamespace:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        environment = {} if token is None else {"HF_TOKEN": token}
        self._process.stdin.write(json.dumps({**request, "environment": environment}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return SimpleNamespace(**json.loads(line))


@pytest.fixture(scope="session")
def hub_process() -> Iterator[Any]:
    with hub_server.HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def client(hub_process: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub_process.endpoint,
        "HF_HUB_OFFLINE": "0",
        # The Xet storage is a service of its own, of which the client asks nothing less than all.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
    }
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, **options)
    yield Client(process)
    process.stdin.close()
    process.wait(900)


@pytest.fixture
def hub(hub_process: Any) -> Iterator[Any]:
    """The stand-in, without repositories and with a sound network."""
    hub_process.repos.clear()
    hub_process.requests.clear()
    hub_process.heal()
    yield hub_process
    hub_process.heal()


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    """A model's folder, in shards, with what a training and its owner leave beside it."""
    from chatgpt_hf import ChatGPTForCausalLM

    folder = shutil.copytree(base_folder, tmp_path / "my-model")
    (folder / "model.safetensors").unlink()
    ChatGPTForCausalLM.from_pretrained(base_folder).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "trainer_state.json",
        ".env",
        "notes.txt",
    ):
        (folder / name).write_text("{}")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_text("state")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "file").write_text("cached")
    (folder / "my-chats.json").write_text("[]")
    (folder / "evaluation" / "held-out").mkdir(parents=True)
    (folder / "evaluation" / "held-out" / "results.json").write_text("{}")
    return folder
