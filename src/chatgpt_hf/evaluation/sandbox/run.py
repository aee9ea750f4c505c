"""Judges untrusted programs where they can do no harm.

A program gets a separate process that can read Python's libraries, write plain files into one empty folder, and compute. The
kernel enforces this: Landlock for files, seccomp for everything else (no second process, no socket, no signal to others), no
capabilities, hard limits on time and memory, and a file system in memory as its disk. The sandbox needs no privileges, and
root has none inside. The test that judges the program runs in another such process, where no code of the program runs.
"""

import json
import marshal
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigError

# The modules that run inside, in the order in which they import one another.
_PARTS = {
    name: Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    for name in ("confined", "channel", "inside")
}
_START = """
import marshal, os, sys
package = sys.modules["sandbox"] = type(sys)("sandbox")
package.__path__ = []
for name, code in marshal.loads(os.read(0, SIZE)):
    module = sys.modules["sandbox." + name] = type(sys)("sandbox." + name)
    module.__package__ = "sandbox"
    exec(code, vars(module))
module.main()
"""
# glibc reserves 64 MiB of address space for each arena, and by default makes as many as 8 for each core: how many threads fit
# under the limit would depend on the machine (mallopt(3), M_ARENA_MAX).
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
# Interval in seconds at which threads are counted.
_INTERVAL = 0.05
_STARTING = 60.0
_MAX_OUTPUT = 1 << 16
_MAX_THREADS = 64
_MAX_FILES = 1000
_PASSED = b"passed"


@cache
def _code(python: str) -> bytes:
    """Returns the modules that run inside; compiled, which saves a quarter of the time, if the interpreter is this one."""
    if python != sys.executable:
        return marshal.dumps(list(_PARTS.items()))
    return marshal.dumps([(name, compile(text, f"<{name}>", "exec")) for name, text in _PARTS.items()])


class Outcome(NamedTuple):
    """How a program ended.

    Attributes:
        passed: True if the test ran to its end without an error.
        reason: `passed`, or why it did not pass.
        output: What program and test printed, at most 64 KiB.
        no_files: Why the program could write no files, or "".
    """

    passed: bool
    reason: str
    output: str
    no_files: str = ""


def run_program(
    source: str,
    *,
    entry_point: str,
    test: str,
    given: str = "",
    timeout: float = 10,
    memory_mb: int = 512,
    disk_mb: int = 16,
    python: str = sys.executable,
    unsafe_unconfined: bool = False,
) -> Outcome:
    """Judges an untrusted Python program; before returning, ends its process and deletes its folder.

    A program passes if the function `check` of the test returns when it is called with the program's function. Program and
    test run in separate processes, and only calls, results and exceptions go between them, as data (`channel.py` lists what
    arrives how). So a program can pass only by what its function returns, raises, or changes in its arguments. It never sees
    the test; one that knows the expected results by heart can return them.

    Args:
        source: The program. It can import only the standard library.
        entry_point: The name of the program's function.
        test: The source of a function `check(candidate)`, which raises an error if the function is wrong.
        given: Source that the test needs, such as helper functions. The test never uses the program's versions of them.
        timeout: Limit in seconds, both of wall-clock time and of CPU time of all threads of a process together.
        memory_mb: Limit of the address space of each of the two processes.
        disk_mb: Limit of all files together, including deleted ones that are still open. The files are in memory, in a mount
            namespace. Where the system allows none, the program can write no files: see `Outcome.no_files`.
        python: The interpreter.
        unsafe_unconfined: Run the program even if this system cannot confine it, with limits only (`disk_mb` limits each
            file). It can then do everything to your files and network that you can.

    Raises:
        ConfigError: If the system cannot confine a program (it is then not run), or a limit is not positive.
    """
    if not (timeout > 0 and math.isfinite(timeout) and memory_mb > 0 and disk_mb > 0):
        raise ConfigError(f"timeout={timeout}, memory_mb={memory_mb} and disk_mb={disk_mb} must all be above 0.")
    if os.name != "posix":
        raise ConfigError("Programs run only on Linux: use a Linux machine, container or virtual machine.")
    seconds = math.ceil(timeout)
    limits = {"AS": memory_mb << 20, "CPU": seconds, "FSIZE": disk_mb << 20, "NOFILE": 32, "CORE": 0}
    reading, writing = os.pipe()
    with (
        open(reading, "rb", buffering=0) as report,
        # An unconfined program may have left processes that still write.
        tempfile.TemporaryDirectory(prefix="chatgpt-hf-program-", ignore_cleanup_errors=unsafe_unconfined) as folder,
        tempfile.TemporaryFile() as part,
    ):
        settings = {
            "report": writing,
            "folder": folder,
            "parent": os.getpid(),
            "limits": {f"RLIMIT_{name}": value for name, value in limits.items()},
            "disk": disk_mb << 20,
            "files": _MAX_FILES,
            "unsafe": unsafe_unconfined,
        }
        code = _code(python)
        part.write(code)
        # Only the judge reads this, after the program's process has become another one.
        part.write(json.dumps({"source": source, "entry_point": entry_point, "given": given, "test": test}).encode())
        part.seek(0)
        try:
            process = subprocess.Popen(
                [
                    python,
                    "-s",
                    "-S",
                    "-P",
                    "-B",
                    "-u",
                    "-X",
                    "utf8",
                    "-c",
                    _START.replace("SIZE", str(len(code))),
                    json.dumps(settings),
                ],
                stdin=part,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=folder,
                env=_ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
                pass_fds=[writing],
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"The interpreter {python} cannot be started: {error}") from error
        finally:
            os.close(writing)
        assert process.stdout is not None
        with process.stdout as stdout:
            watch = _Watch(process, stdout.fileno(), report.fileno(), timeout)
            try:
                stopped = watch.run()
            finally:
                watch.end()
    told, text = watch.told, watch.output[:_MAX_OUTPUT].decode(errors="replace")
    if not watch.ready:
        why = told.decode(errors="replace") or text.strip()[-500:] or f"its process ended with {process.returncode}"
        raise ConfigError(
            f"No program was run, because this system cannot confine it: {why}. This needs Linux 5.13 or newer with Landlock "
            "and seccomp on x86_64 or aarch64, and a memory_mb large enough for Python. unsafe_unconfined=True runs programs "
            "with limits only: use it only on a machine that you can afford to lose."
        )
    if stopped:
        return Outcome(False, stopped, text, watch.no_files)
    # Nothing that a program says reaches the exit code.
    if process.returncode == 0 and told == _PASSED:
        return Outcome(True, "passed", text, watch.no_files)
    return Outcome(False, _reason(process.returncode, told), text, watch.no_files)


class _Watch:
    """Watches a judge's process and its program's."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: int, report: int, timeout: float) -> None:
        self.process, self.timeout = process, timeout
        self.ready, self.no_files, self.told, self.output = False, "", b"", b""
        self._stdout, self._report = stdout, report
        self._program, self._ending = 0, -1

    def run(self) -> str:
        """Reads until the judge ends or a limit is passed; returns the passed limit or ""."""
        deadline = time.monotonic() + _STARTING
        with selectors.DefaultSelector() as selector:
            for file in (self._stdout, self._report):
                os.set_blocking(file, False)
                selector.register(file, selectors.EVENT_READ)
            while True:
                ended = self.process.poll() is not None
                for key, _ in selector.select(0 if ended else min(_INTERVAL, max(0, deadline - time.monotonic()))):
                    chunk = os.read(key.fd, 1 << 16)
                    if key.fd == self._report:
                        self.told += chunk
                    else:
                        self.output += chunk
                    if not chunk:
                        selector.unregister(key.fd)
                if not self.ready and self._begins():
                    deadline = time.monotonic() + self.timeout
                if max(len(self.output), len(self.told)) > _MAX_OUTPUT:
                    return "printed too much"
                if ended:
                    return ""
                if time.monotonic() >= deadline:
                    return "timed out"
                if max(map(_threads, (self.process.pid, self._program))) > _MAX_THREADS:
                    return "started too many threads"
                if not selector.get_map():
                    with suppress(subprocess.TimeoutExpired):
                        self.process.wait(_INTERVAL)

    def end(self) -> None:
        """Ends both processes, and what an unconfined program has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        if self._ending >= 0:
            # A program that outlives its judge is no child of this process, so `wait` cannot await it.
            with open(self._ending, "rb", buffering=0), selectors.DefaultSelector() as selector:
                selector.register(self._ending, selectors.EVENT_READ)
                selector.select(_STARTING)

    def _begins(self) -> bool:
        """Reads the line with which the judge begins: `ready`, the program's process, and why it can write no files."""
        line, end, rest = self.told.partition(b"\n")
        if end and line.startswith(b"ready "):
            self.ready, self.told = True, rest
            _, program, no_files = line.decode(errors="replace").split(" ", 2)
            self._program, self.no_files = int(program), no_files
            if hasattr(os, "pidfd_open"):
                with suppress(ProcessLookupError):
                    self._ending = os.pidfd_open(self._program)
        return self.ready


def _threads(process: int) -> int:
    """Returns how many threads a process has, as far as the system tells."""
    with suppress(OSError):
        return len(os.listdir(f"/proc/{process}/task"))
    return 0


def _reason(returncode: int, told: bytes) -> str:
    if returncode == -signal.SIGXCPU:
        return "timed out"
    if returncode < 0:
        return f"died of {signal.Signals(-returncode).name}"
    return told.decode(errors="replace").strip() or f"left with exit code {returncode} before its end"
