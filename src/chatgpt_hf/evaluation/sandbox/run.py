"""Runs untrusted programs where they can do no harm.

A program gets a separate process that can read Python's libraries, write plain files into one empty folder, and compute. The
kernel enforces this: Landlock for files, seccomp for everything else (no second process, no socket, no signal to others), no
capabilities, and hard limits on time, memory and files. The sandbox needs no privileges, and root has none inside.
"""

import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigError

_INSIDE = Path(__file__).with_name("confined.py").read_text(encoding="utf-8")
# Interval in seconds at which files and threads are counted.
_INTERVAL = 0.05
_STARTING = 60.0
_MAX_OUTPUT = 1 << 16
_MAX_THREADS = 64
_MAX_FILES = 1000
_READY = b"ready\n"


class Outcome(NamedTuple):
    """How a program ended.

    Attributes:
        passed: True if it ran to its end without an error.
        reason: `passed`, or why it did not pass.
        output: Its output, at most 64 KiB.
    """

    passed: bool
    reason: str
    output: str


def run_program(
    source: str,
    *,
    timeout: float = 10,
    memory_mb: int = 512,
    disk_mb: int = 16,
    python: str = sys.executable,
    unsafe_unconfined: bool = False,
) -> Outcome:
    """Runs an untrusted Python program; before returning, ends its process and deletes its folder.

    A program passes if its process reports a secret after the program's last line, so a program cannot pass by exiting early
    or by printing something. It cannot inspect frames, which would lead to the secret; only a program that reads the
    interpreter's raw memory could find it. A program can still deceive its own tests, for example with an object that equals
    every other.

    Args:
        source: The program, with its tests. It can import only the standard library.
        timeout: Limit in seconds, both of wall-clock time and of CPU time of all threads together.
        memory_mb: Limit of the address space.
        disk_mb: Limit of each file, and of all files together (checked 20 times a second).
        python: The interpreter.
        unsafe_unconfined: Run the program even if this system cannot confine it, with limits only. It can then do
            everything to your files and network that you can.

    Raises:
        ConfigError: If the system cannot confine a program (it is then not run), or a limit is not positive.
    """
    if not (timeout > 0 and math.isfinite(timeout) and memory_mb > 0 and disk_mb > 0):
        raise ConfigError(f"timeout={timeout}, memory_mb={memory_mb} and disk_mb={disk_mb} must all be above 0.")
    if os.name != "posix":
        raise ConfigError("Programs run only on Linux: use a Linux machine, container or virtual machine.")
    secret = secrets.token_hex()
    seconds = math.ceil(timeout)
    limits = {"AS": memory_mb << 20, "CPU": seconds, "FSIZE": disk_mb << 20, "NOFILE": 32, "CORE": 0}
    reading, writing = os.pipe()
    with (
        open(reading, "rb", buffering=0) as report,
        tempfile.TemporaryDirectory(prefix="chatgpt-hf-program-") as folder,
        tempfile.TemporaryFile() as setup,
    ):
        settings = {
            "source": source,
            "secret": secret,
            "report": writing,
            "folder": folder,
            "parent": os.getpid(),
            "limits": {f"RLIMIT_{name}": value for name, value in limits.items()},
            "unsafe": unsafe_unconfined,
        }
        setup.write(json.dumps(settings).encode())
        setup.seek(0)
        try:
            process = subprocess.Popen(
                [python, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _INSIDE],
                stdin=setup,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=folder,
                env={"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"},
                pass_fds=[writing],
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"The interpreter {python} cannot be started: {error}") from error
        finally:
            os.close(writing)
        assert process.stdout is not None
        with process.stdout as stdout:
            try:
                told, output, stopped = _watch(
                    process, stdout.fileno(), report.fileno(), folder, timeout, disk_mb << 20
                )
            finally:
                # An unconfined program may have child processes.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()
    text = output[:_MAX_OUTPUT].decode(errors="replace")
    if not told.startswith(_READY):
        why = told.decode(errors="replace") or text.strip()[-500:] or f"its process ended with {process.returncode}"
        raise ConfigError(
            f"No program was run, because this system cannot confine it: {why}. This needs Linux 5.13 or newer with Landlock "
            "and seccomp on x86_64 or aarch64, and a memory_mb large enough for Python. unsafe_unconfined=True runs programs "
            "with limits only: use it only on a machine that you can afford to lose."
        )
    told = told.removeprefix(_READY)
    if stopped:
        return Outcome(False, stopped, text)
    if process.returncode == 0 and secrets.compare_digest(told, secret.encode()):
        return Outcome(True, "passed", text)
    return Outcome(False, _reason(process.returncode, told), text)


def _watch(
    process: subprocess.Popen[bytes], stdout: int, report: int, folder: str, timeout: float, disk: int
) -> tuple[bytes, bytes, str]:
    """Reads until the process ends or a limit is passed; returns the report, the output, and the passed limit or ""."""
    received = {stdout: b"", report: b""}
    deadline, ready = time.monotonic() + _STARTING, False
    with selectors.DefaultSelector() as selector:
        for file in received:
            os.set_blocking(file, False)
            selector.register(file, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            for key, _ in selector.select(0 if ended else min(_INTERVAL, max(0, deadline - time.monotonic()))):
                chunk = os.read(key.fd, 1 << 16)
                received[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
            if not ready and received[report].startswith(_READY):
                deadline, ready = time.monotonic() + timeout, True
            if len(received[stdout]) > _MAX_OUTPUT or len(received[report]) > _MAX_OUTPUT:
                return received[report], received[stdout], "printed too much"
            if ended:
                return received[report], received[stdout], ""
            if time.monotonic() >= deadline:
                return received[report], received[stdout], "timed out"
            if stopped := _excess(process.pid, folder, disk):
                return received[report], received[stdout], stopped
            if not selector.get_map():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_INTERVAL)


def _excess(pid: int, folder: str, disk: int) -> str:
    """Returns a message if a limit is passed that the kernel does not enforce, else ""."""
    files = size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                files += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
            if files > _MAX_FILES or size > disk:
                return "wrote too many files"
    with suppress(OSError):
        if len(os.listdir(f"/proc/{pid}/task")) > _MAX_THREADS:
            return "started too many threads"
    return ""


def _reason(returncode: int, told: bytes) -> str:
    if returncode == -signal.SIGXCPU:
        return "timed out"
    if returncode < 0:
        return f"died of {signal.Signals(-returncode).name}"
    return told.decode(errors="replace").strip() or f"left with exit code {returncode} before its end"
