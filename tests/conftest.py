"""Common setup of all tests: no network, separate caches, a fixed seed, the real data."""

import atexit
import gc
import io
import json
import logging
import math
import multiprocessing.util
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

# The Hugging Face libraries read these once, when they are imported, so they are set before any test module is.
# Each process (and so each xdist worker) has its own cache folder: tests that load remote code or build data sets
# neither race with one another nor write to the user's caches.
_HF_HOME = tempfile.mkdtemp(prefix="chatgpt-hf-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_DATASETS_CACHE=os.path.join(_HF_HOME, "datasets"),
    HF_EVALUATE_CACHE=os.path.join(_HF_HOME, "evaluate"),
    HF_MODULES_CACHE=os.path.join(_HF_HOME, "modules"),
    CHATGPT_HF_CACHE=os.path.join(_HF_HOME, "rows"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)
# Tests write thousands of files, and nobody pulls the plug: waiting for the disk would take minutes. The tests of what
# is synced record the calls.
os.fsync = lambda descriptor: None
if len(tempfile.gettempdir()) > 70:
    # multiprocessing has its sockets in the temporary folder, and a socket's path takes at most 107 bytes.
    _before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    multiprocessing.util.get_temp_dir()
    tempfile.tempdir = _before
# The same sums on every machine, however many cores it has; and several workers with a thread per core would only slow
# each other down.
os.environ["OMP_NUM_THREADS"] = "1"

# No deadline per example, because the first call into torch can take seconds, and no check of how long examples take
# to make on a busy machine. In continuous integration the examples are the same in every run; elsewhere hypothesis
# looks for new ones.
hypothesis.settings.register_profile(
    "chatgpt_hf",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("chatgpt_hf")


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Adds `--ecosystem` from a separate file; in `importlib` import mode, pytest finds no plugins in this folder."""
    pluginmanager.register(_beside("ecosystem_table"), "ecosystem_table")


def pytest_collection_finish() -> None:
    """Takes what was imported out of garbage collections: `Trainer` collects at the end of every run, in 0.4 s without this."""
    gc.collect()
    gc.freeze()


def _beside(name: str) -> ModuleType:
    """Loads a module of this folder, which tests can import afterwards."""
    if name not in sys.modules:
        spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


_beside("foreign_tokenizers")
_beside("forking")
_beside("hostile_programs")
_beside("killable")
_beside("power_cut")
_beside("mutations")
_beside("valid_rows")
_beside("ranks")
_beside("readers")
_beside("word_lists")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escapes half characters in what a test printed, logged or raised: no process can send them, and a worker would end."""
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_sendable, value))
    return {_sendable(key): _sendable(item) for key, item in value.items()} if isinstance(value, dict) else value


def pytest_report_header() -> str:
    """The releases that the tests are run with."""
    names = (
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "tokenizers",
        "huggingface_hub",
        "numpy",
    )
    found = [f"{name} {metadata.version(name)}" for name in names if find_spec(name) is not None]
    return f"releases: {', '.join(found)}"


def _seed() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Start every test from the same random state, whichever tests ran before it in the same process."""
    _seed()


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Shared fixtures start from the same random state, whichever test asks for them first."""
    if fixturedef.scope != "function":
        _seed()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real text for some tests: `$CHATGPT_HF_DATA`, or `shared/data` next to the repository.

    Skips the test if the folder is missing.
    """
    named = os.environ.get("CHATGPT_HF_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data: {folder} is not a folder (set CHATGPT_HF_DATA to where it is)")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Callable[..., Path]:
    """Returns the folder of SmolLM2-135M-Instruct: `real_model("float32")` or `real_model("bfloat16")`; not to be changed.

    Skips the test where the model cannot be fetched (see real_model.py).
    """
    module = _beside("real_model")

    def folder(dtype: str = "float32") -> Path:
        try:
            return module.real_model(dtype)
        except module.Unavailable as error:
            pytest.skip(str(error))

    return folder


@pytest.fixture(scope="session")
def foreign_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a small tokenizer of another family, one of `KINDS` of foreign_tokenizers.py; not to be changed."""
    make_folder = cache(sys.modules["foreign_tokenizers"].make_folder)
    root = tmp_path_factory.mktemp("foreign")
    return lambda kind: make_folder(kind, root / kind)


DOCUMENTS = [
    f"{animal} number {number} {verb} {place}.\nIt is {colour}, and {number + 3} others are there too."
    for number, (animal, verb, place, colour) in enumerate(
        (animal, verb, place, colour)
        for animal in ("A cat", "The dog", "One small bird", "An old horse")
        for verb in ("sits in", "runs around", "looks at")
        for place in ("the garden", "a house with many windows", "the river")
        for colour in ("red", "as blue as the sky above")
    )
]

# One answer of each kind: plain words, Chinese, emoji of several code points, digits, several lines.
CHATS = [
    ("Hello!", "Hi! How are you?"),
    ("你好", "你好！我是一个小模型。"),
    ("Smile", "😀👍🏽 yes 🎉"),
    ("Count to five.", "1, 2, 3, 4, 5."),
    ("Who are you?", "I am a tiny model,\nmade for a test."),
]


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 72 short documents, one JSON line each."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def chats_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conversations that the model of `chat_folder` has memorized."""
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in CHATS]
    file.write_text(
        "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return file


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with 128 positions and a tokenizer of about 300 tokens."""
    import torch

    from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, train_tokenizer

    folder = tmp_path_factory.mktemp("base")
    texts = [f"{asked} {said}" for asked, said in CHATS] * 3 + DOCUMENTS
    tokenizer = train_tokenizer(texts, 300, show_progress=False)
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ChatGPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama with the tokenizer of `base_folder`; not to be changed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from chatgpt_hf import load_tokenizer

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = load_tokenizer(base_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gguf_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that GGUF can express; not to be changed."""
    from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, train_tokenizer

    folder = tmp_path_factory.mktemp("gated")
    tokenizer = train_tokenizer(["Once upon a time there were 123 cats."] * 4, 270, max_digits=3, show_progress=False)
    tokenizer.save_pretrained(folder)
    own = {"vocab_size": len(tokenizer), "gated_mlp": True, "hidden_act": "silu", "qk_norm": False}
    ChatGPTForCausalLM(ChatGPTConfig.from_pretrained(base_folder, **own)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(base_folder: Path, chats_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that memorizes `CHATS` with `sft`, in seconds."""
    from chatgpt_hf import sft
    from chatgpt_hf.training.arguments import ChatModelArguments, ChatSFTArguments, ConversationArguments

    folder = tmp_path_factory.mktemp("chat") / "model"
    figures = sft(
        ChatModelArguments(model_name_or_path=str(base_folder)),
        ConversationArguments(dataset=str(chats_file), block_size=64),
        ChatSFTArguments(
            output_dir=str(folder),
            optim="adamw_torch",
            learning_rate=1e-2,
            max_steps=100,
            per_device_train_batch_size=8,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
    )
    assert figures["trained_exact_match"] == 1
    return folder


@pytest.fixture(scope="session")
def pretrain_options(corpus_file: Path) -> list[str]:
    """Arguments of a pretraining run that takes a second; tests may append arguments that add to or override these."""
    text = """--vocab_size 270 --block_size 32 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2
        --per_device_train_batch_size 4 --max_steps 4 --learning_rate 1e-2 --logging_steps 1 --save_strategy no
        --disable_tqdm true"""
    return ["--corpus", str(corpus_file), *text.split()]


@pytest.fixture(scope="session")
def sft_options(base_folder: Path, chats_file: Path) -> list[str]:
    """Arguments of a fine-tuning run that takes a second; tests may append arguments that add to or override these."""
    text = """--block_size 64 --per_device_train_batch_size 2 --max_steps 4 --learning_rate 1e-2 --logging_steps 1
        --save_strategy no --disable_tqdm true"""
    return ["--model_name_or_path", str(base_folder), "--dataset", str(chats_file), *text.split()]


# The chosen answer names the animal of the question; it is the longer one in half of the pairs.
PAIRS = [
    {
        "prompt": f"Which {animal} is number {number}?",
        "chosen": f"The {animal}{' of course' * (number % 2)}.",
        "rejected": f"Nothing{' at all here' * (1 - number % 2)}.",
    }
    for number in range(6)
    for animal in ("cat", "dog", "bird", "horse")
]


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs of answers."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def pair_options(chat_folder: Path, pairs_file: Path) -> list[str]:
    """Arguments of a training on pairs that takes a second; tests may append arguments that add to or override these."""
    text = f"""--model_name_or_path {chat_folder} --dataset {pairs_file} --max_length 64 --per_device_train_batch_size 4
        --max_steps 2 --learning_rate 1e-3 --logging_steps 1 --save_strategy no --disable_tqdm true"""
    return text.split()


@dataclass(frozen=True)
class CliResult:
    """A command's exit code and output."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CliResult]:
    """Runs the command line in this process: `cli("chat", folder, "--prompt", "Hello!", stdin="...")`."""
    from chatgpt_hf_cli import main

    def run(*arguments: object, stdin: str = "") -> CliResult:
        monkeypatch.setattr(sys, "argv", ["chatgpt-hf", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        # Handlers that were created in another test refer to that test's stderr, which is closed by now.
        monkeypatch.setattr(logging, "raiseExceptions", False)
        code = 0
        handlers = list(logging.root.handlers)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.root.handlers[:] = handlers
        captured = capsys.readouterr()
        return CliResult(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli: Callable[..., CliResult]) -> Callable[..., str]:
    """Runs a command that must fail with a user error, and returns its message."""

    def run(*arguments: object) -> str:
        result = cli(*arguments)
        assert result.code == 2, result
        assert "Traceback" not in result.err + result.out
        _, _, message = ("\n" + result.err).rpartition("\nerror: ")
        assert message, result
        return message

    return run


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Any]:
    """Runs commands in processes of their own that start quickly: see `ForkServer` in forking.py."""
    server = sys.modules["forking"].ForkServer()
    yield server
    server.close()


# No test may depend on the machine's speed, so tests wait for the event itself. This limit only ends a test that would
# hang.
PATIENCE = 900


@pytest.fixture(scope="session")
def patience() -> int:
    """Seconds after which a test gives up; nothing takes that long even on a slow and busy machine."""
    return PATIENCE


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Polls until a condition is true."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds ports for programs that do not accept port 0.

    The ports are below the range that systems assign, and each worker of pytest-xdist has its own, so nobody else
    takes one between its choice and its use.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    numbers = [20_000 + 200 * (worker % 50) + number for number in range(200)]
    random.Random(os.getpid()).shuffle(numbers)

    def find() -> int:
        while numbers:
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", numbers.pop()))
                except OSError:
                    continue
                return int(probe.getsockname()[1])
        raise AssertionError("no port is free")

    return find


class Gate:
    """Blocks a model before every step that was not allowed, and counts its steps.

    So a test controls the progress of an answer, regardless of the machine's speed. The gate is open at first, and
    again when a `with` ends.

    Attributes:
        steps: Number of forward passes so far.
        tokens: Number of ids that they read.
    """

    def __init__(self, model: Any) -> None:
        self.steps = self.tokens = 0
        self._limit = math.inf
        self._held = 0
        self._changed = threading.Condition()
        model.register_forward_pre_hook(self._pass, with_kwargs=True)

    def give(self, steps: int) -> None:
        """Allows this many further steps, and no more."""
        self._set_limit(self.steps + steps)

    def open(self) -> None:
        """Allows all further steps."""
        self._set_limit(math.inf)

    def wait(self) -> None:
        """Waits until the model has done all allowed steps and is blocked before the next."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held and self.steps >= self._limit, PATIENCE), "no step came"

    def _set_limit(self, limit: float) -> None:
        with self._changed:
            self._limit = limit
            self._changed.notify_all()

    def _pass(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.steps < self._limit, PATIENCE), "the gate was never opened"
            self._held -= 1
            self.steps += 1
            self.tokens += (args[0] if args else kwargs["input_ids"]).numel()

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *exception: object) -> None:
        self.open()


@pytest.fixture(scope="session")
def gate() -> type[Gate]:
    """`gate(model)` puts a `Gate` in front of a model."""
    return Gate


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("needs a browser: chromium or google-chrome on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()
