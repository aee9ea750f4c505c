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
from uuid import uuid4

import pytest

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.sandbox import Outcome, confined, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux alone")

NOBODY = 65534
# Time limit in seconds for programs that end by themselves, or for another reason than their time: far above what they need
# on a slow and busy machine.
PATIENCE = 300
# A unique name, so that no other file has it in the places where the programs try to write.
NEW = f"new-{uuid4().hex}"
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


# Hostile programs, each with the reason of its failure.
REFUSED = "PermissionError"
# The judge ends a program that has closed its end of their pipes, if that has not ended yet.
CLOSED = "left with exit code 1|died of SIGKILL"
FULL = "OSError.*No space left on device"
HOSTILE = {
    "fork": ("import os\nwhile True: os.fork()", REFUSED),
    "fork that ignores errors": (
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        "timed out",
    ),
    "vfork and exec": ("import subprocess; subprocess.run(['/bin/sh', '-c', 'touch OUTSIDE/new'])", REFUSED),
    "exec": ("import os; os.execv('/bin/sh', ['sh', '-c', 'touch OUTSIDE/new'])", REFUSED),
    "daemon": (
        "import os, time\nif not os.fork():\n os.setsid()\n if not os.fork():\n  time.sleep(1)\n  open('OUTSIDE/x','w')",
        REFUSED,
    ),
    "multiprocessing": ("import multiprocessing as m; m.Process(target=print).start()", REFUSED),
    "memory": ("x = bytearray(1 << 30)", "MemoryError"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
    "output": ("while True: print('x' * 1000)", "printed too much"),
    "output without newline": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "printed too much"),
    "write to a new file": ("open('OUTSIDE/new', 'w')", REFUSED),
    "write to a file": ("open('OUTSIDE/file', 'a')", REFUSED),
    "write upwards": ("open('../new', 'w')", REFUSED),
    "write to the home folder": (f"open({str(Path.home() / NEW)!r}, 'w')", REFUSED),
    "write to the folder of temporary files": (f"open({str(Path(tempfile.gettempdir()) / NEW)!r}, 'w')", REFUSED),
    "write to /dev/shm": (f"open('/dev/shm/{NEW}', 'w')", REFUSED),
    "write to the libraries": ("import os; open(os.path.dirname(os.__file__) + '/new.py', 'w')", REFUSED),
    "truncate": ("import os; os.truncate('OUTSIDE/file', 0)", REFUSED),
    "delete": ("import os; os.unlink('OUTSIDE/file')", REFUSED),
    "delete the folder": ("import os; os.rmdir(os.getcwd())", REFUSED),
    "make a folder": ("import os; os.mkdir('OUTSIDE/new')", REFUSED),
    "rename into": ("import os; open('a', 'w'); os.rename('a', 'OUTSIDE/a')", "Error"),
    "rename from": ("import os; os.rename('OUTSIDE/file', 'a')", "Error"),
    "mode": ("import os; os.chmod('OUTSIDE', 0)", REFUSED),
    "mode of an open file": ("import os; os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777)", REFUSED),
    "owner": ("import os; os.chown('OUTSIDE/file', 1, 1)", REFUSED),
    "times": ("import os; os.utime('OUTSIDE/file', (0, 0))", REFUSED),
    "extended attribute": ("import os; os.setxattr('OUTSIDE/file', 'user.a', b'b')", REFUSED),
    "symbolic link": ("import os; os.symlink('OUTSIDE', 'a'); open('a/new', 'w')", REFUSED),
    "hard link": ("import os; os.link('OUTSIDE/file', 'a'); open('a', 'w')", REFUSED),
    "open folder": ("import os; f = os.open('OUTSIDE', os.O_PATH); os.open('a', os.O_CREAT, dir_fd=f)", REFUSED),
    "leave by fchdir": ("import os; os.chdir('OUTSIDE'); open('new', 'w')", REFUSED),
    "fifo": ("import os; os.mkfifo('a')", REFUSED),
    "device": ("import os, stat; os.mknod('a', 0o600 | stat.S_IFBLK, os.makedev(254, 0))", REFUSED),
    "chroot": ("import os; os.chroot('.')", REFUSED),
    "read a file": ("open('OUTSIDE/file').read()", REFUSED),
    "list a folder": ("import os; os.listdir('OUTSIDE')", REFUSED),
    "read /etc": ("open('/etc/passwd')", REFUSED),
    "environment of the parent": ("import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()", REFUSED),
    "own memory": ("open('/proc/self/mem', 'rb')", REFUSED),
    "one large file": ("f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError.*File too large"),
    "sparse file": ("open('a', 'wb').truncate(1 << 40)", "OSError.*File too large"),
    "many large files": (
        "n = 0\nwhile True:\n n += 1\n with open(str(n), 'wb') as f: f.write(bytes(8 << 20))",
        FULL,
    ),
    "many small files": ("n = 0\nwhile True:\n n += 1\n open(str(n), 'wb').close()", FULL),
    "deleted files": (
        "import os\nfiles = []\nwhile True:\n files.append(open('a', 'wb', buffering=0))\n os.unlink('a')\n"
        " assert files[-1].write(bytes(4 << 20)) == 4 << 20, 'No space left'",
        "No space left",
    ),
    "deleted files under a memory map": (
        "import mmap, os\nmaps = []\nwhile True:\n with open('a', 'w+b') as f:\n  os.posix_fallocate(f.fileno(), 0, 4 << 20)\n"
        "  maps.append(mmap.mmap(f.fileno(), 4 << 20))\n os.unlink('a')",
        FULL,
    ),
    "files without a name": (
        "import os\nwhile True: os.posix_fallocate(os.open('.', os.O_TMPFILE | os.O_RDWR), 0, 4 << 20)",
        FULL,
    ),
    "fallocate": (
        "import os\nn = 0\nwhile True:\n n += 1\n with open(str(n), 'wb') as f: os.posix_fallocate(f.fileno(), 0, 8 << 20)",
        FULL,
    ),
    "fallocate beyond the end": (
        "import ctypes, os\nlibc, n = ctypes.CDLL(None, use_errno=True), 0\nwhile True:\n n += 1\n with open(str(n), 'wb') as f:\n"
        "  if libc.fallocate(f.fileno(), 1, ctypes.c_long(0), ctypes.c_long(8 << 20)):\n"
        "   raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))",
        FULL,
    ),
    "copies of files": (
        "import os\nn, one = 0, open('0', 'w+b')\none.write(bytes(4 << 20))\none.flush()\nwhile True:\n n += 1\n"
        " with open(str(n), 'wb') as f: assert os.copy_file_range(one.fileno(), f.fileno(), 4 << 20, 0, 0), 'No space left'",
        "No space left",
    ),
    "space for names": (
        "n = 0\nwhile True:\n n += 1\n open(f'{n:0>255}', 'wb').close()",
        FULL,
    ),
    "many open files": ("x = [open('a', 'w') for _ in range(100)]", "OSError.*Too many open files"),
    "tcp": ("import socket; socket.create_connection(('127.0.0.1', PORT))", REFUSED),
    "udp": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))", REFUSED),
    "unix socket": ("import socket; socket.socket(socket.AF_UNIX).connect('/dev/log')", REFUSED),
    "socket pair": ("import socket; socket.socketpair()", REFUSED),
    "web": ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT')", "Operation not permitted"),
    "kill its parent": ("import os; os.kill(os.getppid(), 9)", REFUSED),
    "kill everyone": ("import os; os.kill(-1, 9)", REFUSED),
    "kill groups": ("import os; os.killpg(os.getpgid(os.getppid()), 9)", REFUSED),
    "kill its own group": ("import os; os.kill(0, 9)", REFUSED),
    "kill by a file": (
        "import fcntl, os, signal; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        REFUSED,
    ),
    "kill by pidfd": ("import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)", REFUSED),
    "limit its parent": ("import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))", REFUSED),
    "slow down its parent": ("import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", REFUSED),
    "raise its limits": (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
        "ValueError: not allowed to raise|PermissionError",
    ),
    "become root": ("import os; os.setuid(0)", REFUSED),
    "kill itself": ("import os; os.kill(os.getpid(), 9)", "died of SIGKILL"),
    "stop itself": ("import os; os.kill(os.getpid(), 19)", "timed out"),
    "crash": ("import os; os.abort()", "died of SIGABRT"),
    "exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "SystemExit": ("raise SystemExit", "SystemExit"),
    "hard exit": ("import os; os._exit(0)", "left with exit code 0 before its end"),
    "exit of a thread": (
        "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
        "left with exit code 0 before its end",
    ),
    "close everything": ("import os; os.closerange(0, 1000); assert False", CLOSED),
    "close everything and end": ("import os; os.closerange(0, 1000)", CLOSED),
    "read everything": (
        "import os\nfor f in range(64):\n try:\n  os.set_blocking(f, False)\n  s = os.read(f, 1000)\n"
        " except OSError: continue\n assert not s, s\nassert False",
        f"AssertionError:$|{CLOSED}",
    ),
    "signal mask": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "timed out|SIGKILL",
    ),
    "signal handler": ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", REFUSED),
    "builtins": (
        "import builtins, os, sys\nbuiltins.BaseException = builtins.str = builtins.type = type('x', (), {})\n"
        "os.write = os._exit = sys.exit = lambda *a: None\nassert False",
        f"AssertionError|TypeError|{CLOSED}",
    ),
    "error that lies": (
        "class E(Exception):\n def __str__(self):\n  import os\n  os._exit(0)\nraise E",
        "^E:$",
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
        "SIGSEGV|MemoryError|timed out",
    ),
    "raw system calls": (
        "import ctypes, os\nlibc, parent = ctypes.CDLL(None, use_errno=True), os.getppid()\n"
        # ptrace's attach and seize, process_vm_readv and writev, pidfd_open and getfd, unshare, setns, mount, bpf, io_uring,
        # kcmp, keyctl, prctl, rt_tgsigqueueinfo, setsid, 32-bit numbers.
        "calls = [(101, 16, parent), (101, 0x4206, parent), (310, parent), (311, parent), (434, parent, 0), (438, 3, 1), "
        "(272, 0x10000000), (308, 3, 0), (165, 0, b'/'), (321, 0), (425, 1, 0), (312, parent), (250, 0), (157, 4, 1), "
        "(297, parent, parent, 9), (112,), (0x40000000 + 39,)]\n"
        "if os.uname().machine == 'x86_64':\n for call in calls:\n  assert libc.syscall(*call) == -1, call\n"
        "  assert ctypes.get_errno() == 1, (call, ctypes.get_errno())\nraise PermissionError",
        REFUSED,
    ),
    "calls of 32 bits": (
        "import ctypes, mmap, os\nif os.uname().machine != 'x86_64': os.abort()\n"
        # mov eax, 2; int 0x80; ret: fork in the other numbering.
        "code = mmap.mmap(-1, 4096, prot=7)\ncode.write(b'\\xb8\\x02\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()",
        "died of SIG",
    ),
    "broken source": ("def f(:", "SyntaxError"),
    "zero byte": ("a = '\0'", "SyntaxError|ValueError"),
    "half a character": ("a = '\ud800'", "UnicodeEncodeError|SyntaxError"),
    "standard input": ("input()", "EOFError"),
}


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
    assert set(names) <= {"HOME", "TMPDIR", "PYTHONHASHSEED", "LC_CTYPE"}


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
        confined.restrict("/tmp", 1, writable=True)


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
