"""Whom a server answers: names in the Host header, and pages of other sites."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the [serve] extra")

from chatgpt_hf.web.hosts import Hosts

LOCAL = [
    "localhost",
    "localhost:8000",
    "LOCALHOST:1",
    "localhost.:8000",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.8.9.1:80",
    "[::1]:8000",
]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example:8000",
    "evil-localhost",
    "0.0.0.0:8000",
    "10.0.0.1:8000",
    "[::]:8000",
    "[fe80::1]:8000",
    "localhost@evil.example",
    "localhost/evil.example",
    "localhost evil.example",
    "localhost:8000:9",
    "localhost:x",
    "[::1",
    "::1",
    "\xe9vil.example",
    "",
]


def asked(listens: str | None, *allowed: str, **headers: str) -> tuple[int, str]:
    """The status and the message that a request with these headers gets."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"{}"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": pairs}
    asyncio.run(Hosts(app, listens=listens, allowed=allowed)(scope, None, send))  # type: ignore[arg-type]
    body = json.loads(sent[1]["body"])
    return sent[0]["status"], body["error"]["message"] if body else ""


@pytest.mark.parametrize("host", LOCAL)
def test_local_names(host: str) -> None:
    for listens in ("127.0.0.1", "::1", "localhost", "0.0.0.0", None):
        assert asked(listens, host=host)[0] == 200
    assert asked("127.0.0.1", host=host, origin=f"http://{host}")[0] == 200
    # Another local port is another program of the same user.
    assert asked("127.0.0.1", host=host, origin="http://localhost:3000")[0] == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_names_on_a_loopback_address(host: str) -> None:
    status, message = asked("127.0.0.1", host=host)
    assert status == 421
    assert "--allowed_hosts" in message
    assert asked("::1", "friend.example", host=host)[0] == 421
    assert asked("127.0.0.1", "*", host=host)[0] == 200


def test_names_that_are_allowed() -> None:
    for allowed in ("friend.example", "FRIEND.example", "friend.example:8000"):
        assert asked("127.0.0.1", allowed, host="Friend.Example:8000")[0] == 200
        assert asked("127.0.0.1", allowed, host="localhost")[0] == 200
        # Then a server that other machines can reach answers only to them, too.
        assert asked("0.0.0.0", allowed, host="friend.example")[0] == 200
        assert asked("0.0.0.0", allowed, host="evil.example")[0] == 421
    assert asked("0.0.0.0", host="any.example")[0] == 200
    assert asked("192.168.0.7", "friend.example", host="192.168.0.7:8000")[0] == 200
    # HTTP/1.0 without a Host does not come from a browser.
    assert asked("127.0.0.1")[0] == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example:8000",
        "null",
        "",
        "file://",
        "http://localhost.evil.example",
        "http://localhost@evil.example",
    ],
)
def test_pages_of_other_sites(origin: str) -> None:
    status, message = asked("127.0.0.1", host="localhost:8000", origin=origin)
    assert status == 403
    assert "--allowed_hosts" in message
    # Whatever a server listens on, its own page has the name that the browser asks for.
    assert asked("0.0.0.0", host="friend.example", origin=origin)[0] == 403
    assert asked(None, host="friend.example", origin=origin)[0] == 403
    assert asked("0.0.0.0", host="friend.example", origin="https://friend.example")[0] == 200
    assert asked("127.0.0.1", "*", host="localhost", origin=origin)[0] == 200


def test_a_page_behind_a_proxy() -> None:
    assert asked("127.0.0.1", host="127.0.0.1:7860", origin="https://chat.example")[0] == 403
    assert asked("127.0.0.1", "chat.example", host="127.0.0.1:7860", origin="https://chat.example")[0] == 200


def test_long_names_are_not_repeated() -> None:
    assert len(asked("127.0.0.1", host="a" * 10_000)[1]) < 400
