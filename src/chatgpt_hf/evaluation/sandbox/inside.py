"""Runs in the sandbox: one process for the program, and one for the test that judges it.

`run.py` starts a bare interpreter with the text of this module and of its neighbours, so they import only the standard
library. The process gives up its rights and then divides. The child never sees the test, nor a descriptor to report with: it
holds the program and answers the judge's calls (`channel.py`). So a program can change everything in its own process, and
what it gains is to give other answers.
"""

import json
import os
import signal
import sys
from typing import Any, NoReturn

from .channel import Channel, RemoteOfProgram
from .confined import check_system, confine, die_with, give_files, limit, restrict

PASSED = "passed"
_REPORTED = 300  # Characters of a reason.


def main() -> None:
    """Reads the settings from the command line, and the judge's part from standard input."""
    settings = json.loads(sys.argv[1])
    report, folder, confined = settings["report"], settings["folder"], not settings["unsafe"]
    files = ""
    try:
        if confined:
            check_system()
            files = give_files(folder, settings["disk"], settings["files"])
        limit(settings["limits"], strict=confined)
        if confined:
            restrict(folder, settings["parent"], writable=not files)
    except (OSError, ValueError, AttributeError) as error:
        os.write(report, f"{error}".encode())
        os._exit(1)
    sys.argv = [""]
    judge, (program_reads, judge_writes), (judge_reads, program_writes) = os.getpid(), os.pipe(), os.pipe()
    if program := os.fork():
        os.close(program_reads)
        os.close(program_writes)
        part = json.loads(_take_standard_input())
        _judge(_Report(report, program), judge_reads, judge_writes, folder if confined else "", files, **part)
    for other in (report, judge_reads, judge_writes):
        os.close(other)
    _take_standard_input(read=False)
    _answer(program_reads, program_writes, folder if confined else "", judge)


def _take_standard_input(*, read: bool = True) -> bytes:
    """Returns what is in standard input, which is empty from then on."""
    text = b""
    if read:
        with open(0, "rb", closefd=False) as stdin:
            text = stdin.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return text


def _main_module() -> dict[str, Any]:
    """Returns the namespace of a new, empty `__main__`."""
    module = sys.modules["__main__"] = type(sys)("__main__")
    return vars(module)


def _answer(reading: int, writing: int, folder: str, judge: int) -> NoReturn:
    """Holds the program and answers its judge; this process ends when the judge's does."""

    def fail(reason: str) -> NoReturn:
        if reason:
            channel.send(["failed", reason])
        os._exit(1)

    channel = Channel(reading, writing, _main_module(), judges=False, fail=fail)

    def load(source: str, entry_point: str, known: list[str]) -> Any:
        channel.known = set(known)
        exec(compile(source, "<program>", "exec", dont_inherit=True), channel.names)
        if entry_point not in channel.names:
            raise NameError(f"name {entry_point!r} is not defined")
        return channel.names[entry_point]

    channel.export(load)
    if folder:
        try:
            die_with(judge)
            confine(folder, [os.getpid()])
        except (OSError, AttributeError) as error:
            fail(f"{error}")
    channel.send(["ready"])
    while True:
        channel.serve(channel.receive())


class _Report:
    """Reports how the program ended; the first call of `end` ends the program's process and then this one."""

    def __init__(self, descriptor: int, program: int) -> None:
        self.descriptor, self.program = descriptor, program

    def write(self, text: str) -> None:
        os.write(self.descriptor, text.encode(errors="replace"))

    def end(self, reason: str, *, code: int = 1) -> NoReturn:
        """Ends with a reason, or with how the program's process ended."""
        os.kill(self.program, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.program, 0)[1])
        if not reason:
            died = f"died of {signal.Signals(-status).name}" if status < 0 else ""
            reason = died or f"left with exit code {status} before its end"
            reason = "timed out" if status == -signal.SIGXCPU else reason
        self.write(reason[:_REPORTED])
        os._exit(code)


def _judge(
    report: _Report,
    reading: int,
    writing: int,
    folder: str,
    files: str,
    *,
    source: str,
    entry_point: str,
    given: str,
    test: str,
) -> NoReturn:
    """Runs the test, whose calls of the program go to the other process."""
    channel = Channel(reading, writing, _main_module(), judges=True, fail=report.end)
    if folder:
        try:
            confine(folder, [os.getpid(), report.program])
        except (OSError, AttributeError) as error:
            report.end(f"{error}")
    if (said := channel.receive()) != ["ready"]:
        report.end(f"{said[1]}")
    report.write(f"ready {report.program} {files}\n")
    names = channel.names
    try:
        exec(compile(given, "<prompt>", "exec", dont_inherit=True), names)
        classes = [name for name, value in names.items() if isinstance(value, type) and value.__module__ == "__main__"]
        channel.known = set(classes) - {entry_point}
        names[entry_point] = RemoteOfProgram(channel, 0)(source, entry_point, list(channel.known))
        exec(compile(test, "<test>", "exec", dont_inherit=True), names)
        exec(f"check({entry_point})", names)
    except BaseException as error:
        report.end(_described(error))
    report.end(PASSED, code=0)


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__
