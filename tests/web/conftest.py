import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the [serve] extra")


class Listening:
    """A small server in a thread of this process.

    Attributes:
        port: Where it listens.
        logged: The messages that it logged.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.logged: list[str] = []
        self._opened: list[socket.socket] = []

    def connect(self, *sent: bytes) -> socket.socket:
        """Opens a connection and sends bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=900)
        self._opened.append(connection)
        for part in sent:
            connection.sendall(part)
        return connection

    def get(self, path: str = "/") -> bytes:
        """Returns the whole response to a request on a new connection."""
        return rest(self.connect(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()))

    def close(self) -> None:
        for connection in self._opened:
            connection.close()


def rest(connection: socket.socket) -> bytes:
    """Everything that comes until the server closes the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


@contextmanager
def listening(app: Any, limits: Any = None, log_level: str = "warning", **options: Any) -> Iterator[Listening]:
    from chatgpt_hf.serving.server import bind
    from chatgpt_hf.web.connections import DEFAULT_LIMITS, Server

    bound = bind("127.0.0.1", 0)
    server = Server(app, limits or DEFAULT_LIMITS, log_level=log_level, **options)
    started = Listening(bound.getsockname()[1])
    handler = logging.Handler()
    handler.emit = lambda record: started.logged.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield started
    finally:
        started.close()
        server.should_exit = True
        thread.join(900)
        for logger in loggers:
            logger.removeHandler(handler)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def listen() -> Callable[..., Any]:
    """Runs an ASGI application: `with listen(app, limits) as server:`"""
    return listening


@pytest.fixture(scope="session")
def until_closed() -> Callable[[socket.socket], bytes]:
    """Reads a connection to its end."""
    return rest
