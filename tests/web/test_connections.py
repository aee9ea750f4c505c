"""Connections that send slowly, send nothing, or do not read."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the [serve] extra")

from chatgpt_hf.web.connections import ConnectionLimits, dampen_logs, within_open_files

HURRY = ConnectionLimits(header_seconds=0.3, write_seconds=0.3)
# What a connection can do instead of sending a request.
HALF_OPEN = [
    b"",
    b"GE",
    b"GET /" + b"a" * 1000,
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 8000,
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: 1\r\n" * 1000,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nExpect: 100-continue\r\n",
]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answers without reading the body."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture(scope="module")
def hurried(listen: Callable[..., Any]) -> Any:
    with listen(hello, HURRY) as server:
        yield server


@pytest.mark.parametrize("sent", HALF_OPEN)
def test_half_a_request_is_not_waited_for(hurried: Any, until_closed: Any, sent: bytes) -> None:
    received = until_closed(hurried.connect(sent))
    assert received == b"" or received.startswith(b"HTTP/1.1 408 ")
    # Where something had come, the client is told.
    assert (received != b"") == (sent != b"")
    assert hurried.get().endswith(b"hello")


def test_a_byte_now_and_then_gives_no_more_time(hurried: Any, until_closed: Any) -> None:
    connection = hurried.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.02):
            try:
                connection.sendall(b"X-A: 1\r\n")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    received = until_closed(connection)
    ended.set()
    thread.join()
    # The answer can be lost, because the client was sending when the connection was closed.
    assert received == b"" or received.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
    ids=["idle", "pipelined", "half of the next", "half a body", "an open chunked body"],
)
def test_after_an_answer_the_next_request_has_the_same_time(hurried: Any, until_closed: Any, sent: bytes) -> None:
    received = until_closed(hurried.connect(sent))
    assert received.count(b"HTTP/1.1 200 OK") == received.count(b"hello") == max(1, sent.count(b"GET / HTTP/1.1"))


def test_a_body_in_drips_after_the_answer(hurried: Any, until_closed: Any) -> None:
    connection = hurried.connect(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.02):
            try:
                connection.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    assert b"hello" in until_closed(connection)
    ended.set()
    thread.join()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: 1\r\n" * 10_000 + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n Folded: yes\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad\x00Name: 1\r\n\r\n",
    ],
    ids=[
        "TLS",
        "address",
        "header",
        "headers",
        "no host",
        "two hosts",
        "version",
        "negative",
        "two",
        "digits",
        "folded",
        "zero",
    ],
)
def test_what_is_no_request_does_not_stop_the_server(hurried: Any, until_closed: Any, sent: bytes) -> None:
    received = until_closed(hurried.connect(sent))
    # h11 reads long headers if they arrive at once. A refusal can be lost, because the client was still sending.
    assert received == b"" or received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))
    assert hurried.get().endswith(b"hello")


def test_a_client_that_does_not_read(listen: Any, wait_until: Any) -> None:
    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Mount, Route

    sent: list[int] = []
    stopped = threading.Event()

    async def endless(request: Any) -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                # Far more than the system keeps for a connection.
                while len(sent) < 16_000:
                    sent.append(65536)
                    # As a model's answer does, which lets other tasks run.
                    await asyncio.sleep(0)
                    yield b"x" * 65536
            finally:
                stopped.set()

        return StreamingResponse(pieces())

    with listen(Starlette(routes=[Route("/endless", endless), Mount("/", hello)]), HURRY) as server:
        connection = server.connect(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: sent)
        assert server.get().endswith(b"hello")
        # The server closes the connection, and the application stops.
        assert stopped.wait(900)
        assert sum(sent) < 500_000_000
        connection.close()


def test_the_one_that_has_waited_longest_makes_room(listen: Any, until_closed: Any) -> None:
    with listen(hello, ConnectionLimits(max_connections=4)) as server:
        first, *others = [server.connect(b"GET / HTTP/1.1\r\n") for _ in range(4)]
        assert server.get().endswith(b"hello")
        assert until_closed(first) == b""
        # The others can still finish their requests.
        for connection in others:
            connection.sendall(b"Host: localhost\r\nConnection: close\r\n\r\n")
            assert until_closed(connection).endswith(b"hello")


def test_requests_in_progress_do_not_make_room(listen: Any, until_closed: Any, wait_until: Any) -> None:
    begun: list[int] = []
    let_go = threading.Event()

    async def held(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        begun.append(1)
        await asyncio.to_thread(let_go.wait)
        await hello(scope, receive, send)

    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with listen(held, ConnectionLimits(max_connections=2)) as server:
        two = [server.connect(request) for _ in range(2)]
        wait_until(lambda: len(begun) == 2)
        assert until_closed(server.connect(request)).startswith(b"HTTP/1.1 503 ")
        let_go.set()
        assert all(until_closed(connection).endswith(b"hello") for connection in two)
    assert len(begun) == 2


def test_a_thousand_and_two_hundred_half_open_connections(listen: Any, until_closed: Any) -> None:
    resource = pytest.importorskip("resource")
    limits = within_open_files(ConnectionLimits(max_connections=256))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2000:
        pytest.skip("needs 2,000 open files")
    with listen(hello, limits) as server:
        connections = [server.connect(HALF_OPEN[number % len(HALF_OPEN)]) for number in range(1200)]
        assert server.get().endswith(b"hello")
        # The newest ones are still there, the oldest are not.
        connections[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            connections[-1].recv(1)
        assert until_closed(connections[0]) == b""
        assert server.logged == []


def test_a_stranger_does_not_fill_the_log(listen: Any, until_closed: Any) -> None:
    with listen(hello) as server:
        for _ in range(150):
            until_closed(server.connect(b"garbage\r\n\r\n"))
            until_closed(
                server.connect(
                    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
                )
            )
        assert 0 < len(server.logged) < 50


def test_the_log_says_how_often() -> None:
    dampen_logs()
    logger = logging.getLogger("uvicorn.error")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    for number in range(1000):
        logger.error("a message of this test with %d\nand more that differs", number)
        logger.debug("not heard anyway")
    logger.removeHandler(handler)
    assert len(heard) == 12
    assert heard[-1] == "a message of this test with 999\nand more that differs (1000 times so far)"


def test_open_files() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < 300:
        pytest.skip("needs a hard limit of open files")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        assert within_open_files(ConnectionLimits(max_connections=10**9)).max_connections == hard // 2
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert within_open_files(ConnectionLimits(max_connections=5)).max_connections == 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
