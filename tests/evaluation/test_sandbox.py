"""Hostile programs: each counts as a failed sample and has no other effect, for root and for ordinary users.

`test_verdict.py` has the programs that are after the verdict of their test.
"""

import errno
import multiprocessing
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile_programs import HOSTILE, REFUSED

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.sandbox import Outcome, confined, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux alone")

NOBODY = 65534
# Time limit in seconds for programs that end by themselves, or for another reason than their time: far above what they need
# on a slow and busy machine.
PATIENCE = 300
Run = Callable[..., Outcome]


def run_alone(source: str, **options: Any) -> Outcome:
    """Runs a program that passes if it comes to its end."""
    source = f"{source}\n\ndef at_its_end():\n    return 42\n"
    test = "def check(candidate):\n    assert candidate() == 42\n"
    return run_program(source, entry_point="at_its_end", test=test, **options)


def become_nobody(folder: str) -> None:
    tempfile.tempdir = folder
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def python_of_nobody() -> str | None:
    """Returns an interpreter that other users than root can start: one with this one's name, or the system's."""
    test = "import sys; assert sys.version_info >= (3, 11)"
    for candidate in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")):
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [candidate or "", "-c", test], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=True
            )
            return candidate
    return None


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """The parent of the sandbox folders in these tests."""
    folder, before = Path(tempfile.mkdtemp(dir="/tmp")), tempfile.tempdir
    folder.chmod(0o1777)
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["as we are", "as nobody"])
def run(request: pytest.FixtureRequest, base: Path) -> Iterator[Run]:
    if request.param == "as we are":
        yield lambda source, **options: run_alone(source, **{"timeout": PATIENCE, **options})
        return
    if os.getuid():
        pytest.skip("we have no privileges to give up")
    if (python := python_of_nobody()) is None:
        pytest.skip("there is no Python 3.11 that others than root can start")
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context, initializer=become_nobody, initargs=(str(base),)) as pool:
        assert pool.submit(os.getuid).result() == NOBODY
        common = {"python": python, "timeout": PATIENCE}
        yield lambda source, **options: pool.submit(run_alone, source, **{**common, **options}).result()


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder with a file, which everyone may write to."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    (folder / "file").write_text("whole")
    (folder / "file").chmod(0o666)
    yield folder
    shutil.rmtree(folder)


def state(folder: Path) -> list[object]:
    """Returns everything about a folder's files that a program could change."""
    files = [folder, *folder.rglob("*")]
    return [(f, f.lstat().st_mode, f.lstat().st_mtime_ns, f.is_file() and f.read_bytes()) for f in sorted(files)]


def remains(base: Path) -> list[str]:
    """Returns the folders and processes of sandboxes."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(entry / "cwd").startswith(f"{base}/"):
                processes.append(entry.name)
    return [*map(str, base.iterdir()), *processes]


@pytest.fixture
def fails(run: Run, outside: Path, base: Path) -> Callable[..., Outcome]:
    """Runs a program that must fail for a reason, leaving nothing behind."""

    def check(source: str, reason: str, **options: object) -> Outcome:
        before = state(outside)
        source = source.replace("OUTSIDE", str(outside))
        outcome = run(source, **options)
        assert not outcome.passed
        assert re.search(reason, outcome.reason), outcome
        assert state(outside) == before
        assert remains(base) == []
        return outcome

    return check


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs(name: str, fails: Callable[..., Outcome]) -> None:
    source, reason = HOSTILE[name]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        limits = {"timeout": 1} if "timed out" in reason else {}
        fails(source.replace("PORT", str(server.getsockname()[1])), reason, **limits)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(100000)",
        "import threading\ndef f():\n while True: pass\nfor _ in range(30): threading.Thread(target=f).start()",
        "import os, threading\nthreading.Thread(target=os.read, args=(os.pipe()[0], 1)).start()\nos.close(1); os.close(2)\n"
        "while True: pass",
    ],
    ids=["loop", "sleep", "threads", "nothing to read"],
)
def test_time(source: str, fails: Callable[..., Outcome]) -> None:
    # None of them ends by itself.
    fails(source, "timed out|SIGKILL", timeout=0.5)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("range(100)", "started too many threads"),
        # An endless one might reach the system's limits before the check.
        ("iter(int, 1)", "started too many threads|can't start new thread|MemoryError"),
    ],
    ids=["a hundred", "without end"],
)
def test_many_threads(fails: Callable[..., Outcome], number: str, reason: str) -> None:
    source = f"""
import threading, time
threading.stack_size(1 << 15)
for _ in {number}:
    threading.Thread(target=time.sleep, args=(100000,), daemon=True).start()
time.sleep(100000)
"""
    fails(source, reason, memory_mb=4096)


def test_work_that_many_threads_do_is_counted_together(fails: Callable[..., Outcome]) -> None:
    source = "import hashlib, threading\ndef f():\n while True: hashlib.sha256(bytes(1 << 20))\n" + (
        "for _ in range(8): threading.Thread(target=f).start()\nf()"
    )
    fails(source, "timed out|SIGKILL", timeout=1)


def test_as_many_threads_fit_on_every_machine(run: Run) -> None:
    """Even where many cores let glibc reserve 64 MiB for each of them."""
    assert run("""
import threading
together = threading.Barrier(31)
def work():
    blocks = [bytearray(1000) for _ in range(9)]
    together.wait()
for _ in range(30):
    threading.Thread(target=work).start()
together.wait()
""").passed


def test_all_that_is_refused_leaves_nothing(run: Run, outside: Path) -> None:
    """A program that continues after every refusal has each of its attempts refused."""
    attempts = [source for source, reason in HOSTILE.values() if reason == REFUSED]
    source = f"""
import os
done = []
for attempt in {attempts!r}:
    try:
        exec(attempt.replace("PORT", "9").replace("OUTSIDE", {str(outside)!r}))
    except OSError:
        continue
    done.append(attempt)
assert not done, done
"""
    before = state(outside)
    assert run(source) == Outcome(True, "passed", "")
    assert state(outside) == before


def test_the_parent_s_environment_does_not_leak(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hidden")
    monkeypatch.setenv("PYTHONSTARTUP", "hidden")
    outcome = run("import os, sys; print(sorted(os.environ), sys.argv, sys.flags.hash_randomization)")
    assert outcome.passed
    names = re.findall(r"'(\w+)'", outcome.output)
    assert set(names) <= {"HOME", "TMPDIR", "PYTHONHASHSEED", "MALLOC_ARENA_MAX", "LC_CTYPE"}


def test_open_files_are_not_inherited(run: Run, outside: Path) -> None:
    with (outside / "file").open() as file:
        os.set_inheritable(file.fileno(), True)
        outcome = run("import os\nfor f in range(64):\n try: print(f, os.fstat(f).st_size)\n except OSError: pass")
    assert outcome.passed
    assert not [line for line in outcome.output.splitlines() if line.endswith(f" {len('whole')}")]


def test_what_programs_may_do(run: Run) -> None:
    source = """
import asyncio, bisect, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools, hashlib, heapq, io
import itertools, json, logging, math, os, pickle, platform, random, re, shutil, sqlite3, statistics, string, sys, tempfile
import threading, time, traceback, typing, unittest, uuid, zlib

Point = collections.namedtuple("Point", "x y")

@dataclasses.dataclass
class Line:
    a: tuple
    b: typing.Optional[Point] = None

class Colour(enum.Enum):
    RED = 1

assert pickle.loads(pickle.dumps([Line((1, 2)), Colour.RED])) == [Line((1, 2)), Colour.RED]
assert __name__ == "__main__" and sys.modules["__main__"].Point is Point
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("here")
    file.seek(0)
    assert file.read() == "here"
with open("a.txt", "w", encoding="utf-8") as file:
    print("ä中", file=file)
shutil.copyfile("a.txt", "b.txt")
os.rename("b.txt", "c.txt")
assert sorted(os.listdir()) == ["a.txt", "c.txt"]
assert sqlite3.connect("base.db").execute("select 1 + 1").fetchone() == (2,)
os.remove("a.txt")
results = []
thread = threading.Thread(target=results.append, args=(1,))
thread.start()
thread.join()
assert results == [1]
try:
    1 / 0
except ZeroDivisionError as error:
    assert "division" in str(error)
print(datetime.datetime.now(), platform.system(), random.random(), file=open(os.devnull, "w"))
logging.getLogger("a").error("logged")
print("中文", hash("a"))
"""
    outcome = run(source)
    assert outcome.passed, outcome
    assert outcome.output.startswith("logged\n中文 ")
    # Sets of strings have the same order in each run.
    assert run(source).output == outcome.output


def test_folders_that_are_hard_to_remove(run: Run, base: Path) -> None:
    source = "import os\nos.umask(0o777)\nfor n in range(50): open('x' * 200 + str(n), 'w').close()\nopen('.\\n', 'w')"
    assert run(source).passed
    assert remains(base) == []


def test_results_come_in_threads(run: Run) -> None:
    outcomes: dict[int, Outcome] = {}

    def work(number: int) -> None:
        outcomes[number] = run(f"print({number}); assert {number} % 2")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, outcome in outcomes.items():
        assert outcome.passed == bool(number % 2)
        assert outcome.output == f"{number}\n"


def test_output_is_what_was_printed(run: Run) -> None:
    outcome = run(
        "import os, sys\nprint('out')\nsys.stdout.flush()\nos.write(2, b'\\xff')\nraise ValueError('中' * 1000)"
    )
    assert outcome.output == "out\n�"
    assert re.fullmatch("ValueError: 中+", outcome.reason)
    assert len(outcome.reason) <= 300


def test_it_dies_with_its_parent(base: Path, wait_until: Callable[..., None]) -> None:
    """A run whose supervisor is killed leaves no process."""
    supervisor = multiprocessing.get_context("fork").Process(
        target=run_alone, args=("while True: pass",), kwargs={"timeout": 3600}
    )
    supervisor.start()
    # Its folder, the judge's process and the program's.
    wait_until(lambda: len(remains(base)) == 3)
    (folder,) = [each for each in remains(base) if not each.isdecimal()]
    supervisor.kill()
    supervisor.join()
    wait_until(lambda: remains(base) == [folder])
    shutil.rmtree(folder)


def python_without(call: int, error: int, folder: Path) -> str:
    """Returns an interpreter for which a system call fails, by a seccomp filter."""
    wrapper = folder / f"python-{call}"
    wrapper.write_text(
        f"""#!{sys.executable}
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, {call}), (0x06, 0, 0, 0x00050000 + {error}), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", 4, ctypes.addressof(code)), 0, 0) == 0
os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""
    )
    wrapper.chmod(0o755)
    return str(wrapper)


def test_without_confinement_nothing_runs_unless_it_is_said(outside: Path) -> None:
    """Without Landlock, a program runs only with `unsafe_unconfined`."""
    source = f"open({str(outside / 'new')!r}, 'w').close()"
    with pytest.raises(ConfigError, match=r"No program was run.*Function not implemented.*unsafe_unconfined=True"):
        run_alone(source, python=python_without(444, errno.ENOSYS, outside))
    assert not (outside / "new").exists()
    freely = {"unsafe_unconfined": True, "timeout": PATIENCE}
    assert run_alone(source, **freely).passed
    assert (outside / "new").exists()
    unconfined = "import os, socket; socket.socket(); os.fork() or os._exit(0); os.chmod('.', 0o700)"
    assert run_alone(unconfined, **freely).passed
    assert not run_alone("while True: pass", timeout=0.5, unsafe_unconfined=True).passed
    assert run_alone("bytearray(1 << 30)", **freely).reason.startswith("MemoryError")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the call has another number")
def test_without_a_limited_file_system_no_file_is_written(outside: Path) -> None:
    """Without mount namespaces, a program can write no files, and the outcome says so."""
    python = python_without(272, errno.EPERM, outside)
    outcome = run_alone("import os; assert os.listdir() == []", python=python, timeout=PATIENCE)
    assert outcome.passed
    assert outcome.no_files == "[Errno 1] unshare: Operation not permitted"
    for source in ("open('a', 'w')", "import os; os.open('.', os.O_TMPFILE | os.O_RDWR)"):
        assert run_alone(source, python=python, timeout=PATIENCE).reason.startswith(REFUSED)


def test_other_systems_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="programs cannot be confined on darwin"):
        confined.check_system()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": float("inf")}, "timeout=inf"),
        ({"memory_mb": 0}, "memory_mb=0"),
        ({"disk_mb": -1}, "disk_mb=-1"),
        ({"python": "/nowhere/python"}, "/nowhere/python cannot be started"),
    ],
)
def test_arguments_without_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_alone("pass", **options)
