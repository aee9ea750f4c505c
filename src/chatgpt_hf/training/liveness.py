"""Connections between the processes of a run, over which each learns at once that another has failed or died.

A collective of torch.distributed that one process does not reach waits for minutes, and then fails with a traceback in every
other process. Here, each process keeps a connection to the first one. The kernel closes it when its process ends, however
that ends, so nothing depends on how busy a process is. Only these messages travel over it; tensors never do.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# A process that fails like all others is heard before the first one has reached the same error, which prints it better.
_GRACE = 0.5
# A process that has lost its connection to another one is heard before the reason: that the other one has died.
_LOST_GRACE = 3.0
# The first process prints and ends; then all others end, at the latest after this.
_LAST_WORDS = 4.0
# Descriptors for everything besides the connections.
_OTHER_FILES = 512


@dataclass(frozen=True)
class Failure:
    """Why a process ends before the run does.

    Attributes:
        message: One line for the user; None if there is nothing to say, as after Ctrl-C.
        code: The exit code of all processes.
        lost: True if it only waited in vain for another process, whose own failure says more.
        trace: The traceback of a bug.
    """

    message: str | None
    code: int = 2
    lost: bool = False
    trace: str | None = None


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    # The other end may have gone.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _end(code: int) -> None:
    """Ends this process although its main thread may be waiting inside a collective."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Hub:
    """The first process's end of all connections.

    Args:
        size: Number of processes.
        token: Proves that a connection comes from this run.
        died: Words a message about a process that has ended without one; takes its rank and host.
        tell: Prints a failure of another process.
    """

    def __init__(
        self, size: int, token: str, died: Callable[[int, str], str], tell: Callable[[Failure], None]
    ) -> None:
        self._size, self._token, self._died, self._tell = size, token, died, tell
        self._changed = threading.Condition()
        self._hosts: dict[int, str] = {0: socket.gethostname()}
        self._connections: dict[int, socket.socket] = {}
        self._done: set[int] = set()
        self._failure: tuple[int, Failure] | None = None
        self._deadline = float("inf")
        # Set by the main thread if it fails itself, which it then prints.
        self._claimed = False
        self._closing = False
        _allow_files(size + _OTHER_FILES)
        self._listener = _listener(size)
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, name="liveness", daemon=True)
        self._thread.start()
        os.register_at_fork(after_in_child=self._forget)

    def missing(self, seconds: float) -> list[int]:
        """Waits until all processes have come; returns the ranks of those that have not come in time."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._hosts) == self._size, seconds)
            return [rank for rank in range(self._size) if rank not in self._hosts]

    def host(self, rank: int) -> str:
        """The machine of a process."""
        return self._hosts.get(rank, "an unknown machine")

    def fail(self, failure: Failure) -> None:
        """Tells all others that this process fails. If it has lost another one, first waits for what that one says."""
        if failure.lost:
            # The thread ends this process if it hears of a reason.
            time.sleep(_LOST_GRACE)
        with self._changed:
            self._claimed = True
        self._tell_all({"ended": failure.code, "printing": True})
        guard = threading.Timer(_LAST_WORDS, _end, (failure.code,))
        guard.daemon = True
        guard.start()

    def finish(self, seconds: float | None) -> None:
        """Waits until all processes have finished, and tells them that this one has."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._done) >= self._size - 1, seconds)
            self._closing = True
        self._tell_all({"done": True})

    def _tell_all(self, message: dict[str, Any]) -> None:
        for connection in list(self._connections.values()):
            _send(connection, message)

    def _forget(self) -> None:
        """Closes the copies that a forked process got: they would keep the connections open after this one's end."""
        for connection in (self._listener, *self._connections.values()):
            connection.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select(max(0.0, min(self._deadline - time.monotonic(), 3600.0))):
                if key.data is None:
                    connection, _ = self._listener.accept()
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    self._selector.register(connection, selectors.EVENT_READ, _Peer(connection))
                else:
                    self._read(key.data)
            if time.monotonic() >= self._deadline:
                self._deadline = float("inf")
                with self._changed:
                    told = self._claimed or self._failure is None
                if not told and self._failure is not None:
                    failure = self._failure[1]
                    self._tell(failure)
                    self._tell_all({"ended": failure.code})
                    _end(failure.code)

    def _read(self, peer: "_Peer") -> None:
        messages = peer.read()
        for message in messages or []:
            if peer.rank is None:
                self._welcome(peer, message)
            elif "failed" in message:
                self._heard(peer.rank, Failure(**message["failed"]))
            elif "done" in message:
                with self._changed:
                    self._done.add(peer.rank)
                    self._changed.notify_all()
        if messages is None:
            self._selector.unregister(peer.connection)
            peer.connection.close()
            if peer.rank is not None and self._connections.get(peer.rank) is peer.connection:
                del self._connections[peer.rank]
                if peer.rank not in self._done and not self._closing:
                    heard = self._failure is not None and self._failure[0] == peer.rank
                    if not heard:
                        self._heard(peer.rank, Failure(self._died(peer.rank, self.host(peer.rank))), grace=0.0)

    def _welcome(self, peer: "_Peer", message: dict[str, Any]) -> None:
        if message.get("token") != self._token:
            # Not of this run.
            _send(peer.connection, {"refused": "It was started for another run."})
            return
        rank, size = message["rank"], message["size"]
        with self._changed:
            complete, twice = len(self._hosts) == self._size, rank in self._hosts
            if not complete and not twice and size == self._size:
                peer.rank = rank
                self._connections[rank] = peer.connection
                self._hosts[rank] = message["host"]
                self._changed.notify_all()
        if peer.rank is not None:
            return
        if complete:
            # A stranger must not end a run that goes well.
            _send(peer.connection, {"refused": f"All {self._size} processes of that run have come already."})
            return
        where = f"{message['host']} and {self.host(rank)}" if twice else message["host"]
        reason = (
            f"Two processes have RANK {rank} (on {where}): give each its own."
            if twice
            else f"WORLD_SIZE is {self._size} in process 0 and {size} in process {rank} (on {where}): start all with the same."
        )
        _send(peer.connection, {"ended": 2})
        self._heard(0, Failure(reason), grace=0.0)

    def _heard(self, rank: int, failure: Failure, *, grace: float | None = None) -> None:
        if self._failure is not None and not (self._failure[1].lost and not failure.lost):
            return
        if grace is None:
            grace = _LOST_GRACE if failure.lost else _GRACE
        self._failure = (rank, failure)
        self._deadline = time.monotonic() + grace


class Link:
    """Another process's end of its connection to the first one.

    Args:
        address: Host and port of the `Hub`.
        hello: The token, and this process's rank, host and number of processes.
        seconds: How long to try.

    Raises:
        OSError: If nobody answers.
        ConnectionRefusedError: If the first process refuses this one; the text says why.
    """

    def __init__(self, address: tuple[str, int], hello: dict[str, Any], seconds: float) -> None:
        self._connection = socket.create_connection(address, timeout=seconds)
        self._connection.settimeout(None)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._finished = threading.Event()
        self._peer = _Peer(self._connection)
        self._refused: str | None = None
        self._thread = threading.Thread(target=self._listen, name="liveness", daemon=True)
        _send(self._connection, hello)
        self._thread.start()
        os.register_at_fork(after_in_child=self._connection.close)

    @property
    def refused(self) -> str | None:
        """Why the first process does not take this one; None if it does."""
        return self._refused

    def fail(self, failure: Failure) -> None:
        """Tells the first process that this one fails, and waits for it to end all of them."""
        _send(self._connection, {"failed": asdict(failure)})
        time.sleep(_LOST_GRACE + _LAST_WORDS)
        _end(failure.code)

    def finish(self, seconds: float | None) -> None:
        """Tells the first process that this one has finished, and waits until it has too."""
        _send(self._connection, {"done": True})
        self._finished.wait(seconds)

    def _listen(self) -> None:
        while (messages := self._peer.read()) is not None:
            for message in messages:
                if "ended" in message:
                    if message.get("printing"):
                        # Launchers kill what is left when the first process ends, and must not do so before it has printed.
                        self._connection.settimeout(_LAST_WORDS)
                        with contextlib.suppress(OSError):
                            while self._connection.recv(4096):
                                pass
                    _end(message["ended"])
                elif "done" in message:
                    self._finished.set()
                    return
                elif "refused" in message:
                    self._refused = message["refused"]
                    return
        # A launcher or a job that ends all processes gets the time to do so.
        time.sleep(1.0)
        print("Process 0 has ended without a message: it was killed, or its machine failed.", file=sys.stderr)
        _end(2)


class _Peer:
    """A connection, read line by line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rank: int | None = None
        self._rest = b""

    def read(self) -> list[dict[str, Any]] | None:
        """Waits for data; returns the messages that are complete, or None if the other end is gone."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            # Somebody who speaks another language, such as a scanner of ports.
            return None


def _allow_files(number: int) -> None:
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number and (hard == resource.RLIM_INFINITY or hard >= number):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def _listener(size: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=size)
    return socket.create_server(("", 0), backlog=size)
