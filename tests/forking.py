"""Runs commands in processes that are forked from one that has already imported what they import (forked.py)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class Command:
    """A running command, with the methods of `subprocess.Popen` that tests use.

    Attributes:
        stdin: Writes to its standard input.
        output: Reads its standard output and error, which are one stream.
    """

    def __init__(self, server: "ForkServer", pid: int, stdin: IO[str], output: IO[str]) -> None:
        self._server = server
        self._code: int | None = None
        self.pid = pid
        self.stdin = stdin
        self.output = output
        self.readers: list[threading.Thread] = []

    def keep_reading(self) -> list[str]:
        """Reads the output in the background, so that the command never waits for a reader; returns the list that gets its lines."""
        lines: list[str] = []
        self.readers.append(threading.Thread(target=lambda: lines.extend(self.output)))
        self.readers[-1].start()
        return lines

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self._code is None:
            self._code = self._server.ask(poll=self.pid)
        return self._code

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        if self._code is None:
            self._code = self._server.ask(wait=self.pid)
        return self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """The process that commands are forked from."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        forking = [sys.executable, str(Path(__file__).with_name("forked.py"))]
        # Without a compiler's name, which torch reads when it is imported: only PATH tells commands whether there is one.
        environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {"COLUMNS": "200"}
        self._process: Any = subprocess.Popen(forking, **pipes, env=environment, start_new_session=True)
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, **request: Any) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        with self._process:
            self._process.stdin.close()

    def run(self, folder: Path, typed: str = "", **job: Any) -> subprocess.CompletedProcess[str]:
        """Runs `arguments` of `chatgpt-hf`, or `code`, in a folder, to its end."""
        with tempfile.TemporaryDirectory() as streams:
            files = [Path(streams) / name for name in ("typed", "printed", "errors")]
            files[0].write_text(typed, encoding="utf-8")
            pid = self.ask(**job, folder=str(folder), streams=list(map(str, files)))
            code = self.ask(wait=pid)
            return subprocess.CompletedProcess([], code, *(file.read_text(encoding="utf-8") for file in files[1:]))

    @contextmanager
    def running(self, folder: Path, **job: Any) -> Iterator[Command]:
        """Starts `arguments` of `chatgpt-hf`, after `code` if there is any; ends the command with the `with`."""
        with tempfile.TemporaryDirectory() as streams:
            typed, printed = f"{streams}/typed", f"{streams}/printed"
            os.mkfifo(typed)
            os.mkfifo(printed)
            pid = self.ask(**job, folder=str(folder), streams=[typed, printed, printed])
            # Both wait until the command has opened them too.
            with open(printed, encoding="utf-8") as output, open(typed, "w", encoding="utf-8") as stdin:
                command = Command(self, pid, stdin, output)
                try:
                    yield command
                finally:
                    command.send_signal(signal.SIGKILL)
                    command.wait()
                    for reader in command.readers:
                        reader.join()
