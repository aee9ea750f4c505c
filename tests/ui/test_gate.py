"""What strangers send to the chat page: Gradio's other routes, odd events, foreign names, slow connections."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="comes with gradio")
gradio = pytest.importorskip("gradio", reason="needs gradio: pip install 'chatgpt-hf[ui]'")

from chatgpt_hf import load_model, load_tokenizer  # noqa: E402
from chatgpt_hf.ui import build_page  # noqa: E402
from chatgpt_hf.ui.page import QUEUE, launch_page  # noqa: E402
from chatgpt_hf.web.connections import ConnectionLimits  # noqa: E402

HISTORY = [{"role": "user", "metadata": None, "content": [{"text": "Hi", "type": "text"}], "options": None}]
SETTINGS = ["", 0, 1, 50, 1, None]
# The values that the page sends with each of its events.
EVENTS = {
    "ask": ["Hi", []],
    "regenerate": [HISTORY],
    "edit": [HISTORY],
    "undo": [HISTORY],
    "stop": [],
    "forget": [],
    "answer": [HISTORY, None, *SETTINGS],
    "tokens": [True],
}
EDITED = {"index": 0, "value": "new", "previous_value": "old"}


class Page:
    """A page with the numbers of its events."""

    def __init__(self, address: str, page: Any, model: Any) -> None:
        self.address, self.model = address.rstrip("/"), model
        self.numbers = {function.name: number for number, function in reversed(page.fns.items())}
        self.scripts = [number for number, function in page.fns.items() if function.fn is None]

    def ask(self, method: str, path: str, **options: Any) -> Any:
        return httpx.request(method, self.address + path, timeout=900, **options)

    def event(self, name: str, *, queued: bool = False, **changes: Any) -> Any:
        body = {"data": EVENTS[name], "event_data": None, "fn_index": self.numbers[name], "session_hash": "a1"}
        path = "/gradio_api/queue/join" if queued else "/gradio_api/run/predict"
        return self.ask("POST", path, json=body | changes)


@pytest.fixture(scope="module")
def page(base_folder: Path, free_port: Callable[[], int]) -> Iterator[Page]:
    model = load_model(base_folder)
    blocks = build_page(model, load_tokenizer(str(base_folder)), title="Tiny", max_new_tokens=1)
    limits = ConnectionLimits(header_seconds=0.5)
    yield Page(launch_page(blocks, port=free_port(), connection_limits=limits), blocks, model)
    blocks.close(verbose=False)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/gradio_api/file=http://127.0.0.1:1/"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("GET", "/gradio_api/stream/a/b/c/playlist-file"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
        ("GET", "/gradio_api/token"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/gradio_api/deep_link?session_hash=a"),
        ("GET", "/gradio_api/custom_component/a/client/component/index.js"),
        ("GET", "/gradio_api/heartbeat/" + "a" * 65),
        ("GET", "/gradio_api/call/answer/a"),
        ("POST", "/gradio_api/call/answer"),
        ("POST", "/gradio_api/run/answer"),
        ("POST", "/gradio_api/api/answer"),
        ("POST", "/gradio_api/reset"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/login"),
        ("PUT", "/"),
        ("DELETE", "/gradio_api/queue/join"),
        ("OPTIONS", "/gradio_api/upload"),
    ],
)
def test_other_routes_of_gradio(page: Page, method: str, path: str) -> None:
    assert page.ask(method, path).status_code == 404


def test_nothing_can_be_uploaded(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio.utils import get_upload_folder

    folder = Path(get_upload_folder())
    before = set(folder.rglob("*")) if folder.exists() else set()
    response = page.ask("POST", "/gradio_api/upload", files={"files": ("a.txt", b"hello")})
    assert response.status_code == 404
    assert (set(folder.rglob("*")) if folder.exists() else set()) == before


def test_what_the_page_loads(page: Page) -> None:
    assert "Tiny" in page.ask("GET", "/").text
    described = page.ask("GET", "/config").text
    # No path of this machine; a user without a home has `/`.
    paths = {str(Path.cwd()), str(Path.home()), "site-packages"} - {"/"}
    assert not [path for path in paths if path in described]
    # By this a page that has lost its server notices that it is back.
    assert page.ask("GET", "/gradio_api/app_id").status_code == 200
    assert page.ask("GET", "/?deep_link=../../etc/passwd").status_code == 200
    for path in ("/assets/../../../etc/passwd", "/static/%2e%2e/%2e%2e/routes.py", "/assets//etc/passwd"):
        assert page.ask("GET", path).status_code in (403, 404)


@pytest.mark.parametrize("name", ["ask", "regenerate", "undo", "stop", "forget"])
def test_the_pages_own_events(page: Page, name: str) -> None:
    assert page.event(name).status_code == 200


def test_an_edit(page: Page) -> None:
    assert page.event("edit", event_data=EDITED).status_code == 200


FILE = {"type": "file", "file": {"path": "/etc/passwd"}}
COMPONENT = {"type": "component", "component": "file", "value": "/etc/passwd", "constructor_args": {}, "props": {}}
ODD: list[Any] = [None, True, 3, -1, "x", [], {}, [None], [[]], [{}], {"a": 1}, 2**70, 10**400, ["x", 1]]


def said(content: Any, role: Any = "user") -> dict[str, Any]:
    return {"data": [[{"role": role, "content": content}]]}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(
            ("undo", said(content))
            for content in (None, 3, {}, [None], [3], FILE, [FILE], COMPONENT, [COMPONENT], {"path": "/etc/passwd"})
        ),
        *(("undo", said("x", role)) for role in (None, 3, "system", [], {})),
        *(("undo", {"data": value}) for value in (None, 3, "x", {}, [], [3], ["x"], [{}], [[3]], [HISTORY, 1])),
        *(("ask", {"data": [value, []]}) for value in ODD if not isinstance(value, str)),
        *(("edit", {"event_data": value}) for value in ODD),
        *(("edit", {"event_data": EDITED | {"index": value}}) for value in (None, True, -1, 1, "0", [], [[0]], 2**70)),
        *(
            ("edit", {"event_data": EDITED | {key: value}})
            for key in ("value", "previous_value")
            for value in (None, 3, [])
        ),
        *(("stop", {"fn_index": value}) for value in (None, True, -1, 10**6, 2**70, "0", [], {})),
        *(("stop", {"session_hash": value}) for value in (None, True, 3, "", "a b", "../a", "a" * 65, [])),
        *(("stop", {key: "x"}) for key in ("event_id", "oauth_token", "batched", "simple_format", "unknown")),
    ],
)
def test_odd_events(page: Page, capfd: pytest.CaptureFixture[str], name: str, changes: dict[str, Any]) -> None:
    response = page.event(name, **changes)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    # Gradio would print a traceback for each.
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", range(len(SETTINGS)))
def test_settings_that_the_page_does_not_have(page: Page, capfd: pytest.CaptureFixture[str], place: int) -> None:
    for value in ODD:
        if (place == 0 and isinstance(value, str)) or (
            place in (3, 5) and value in (3, -1, None) and value is not True
        ):
            continue
        if place in (1, 2, 4) and value in (1, 3) and value is not True:
            continue
        settings = [*SETTINGS[:place], value, *SETTINGS[place + 1 :]]
        assert page.event("answer", queued=True, data=[HISTORY, None, *settings]).status_code == 400, value
    assert capfd.readouterr().err == ""


def test_scripts_of_the_page_are_no_events(page: Page) -> None:
    assert page.scripts
    for number in page.scripts:
        assert page.event("stop", fn_index=number).status_code == 400


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"NaN",
        b"9" * 5000,
        b"[" * 100_000,
        b'{"data":[NaN]}',
        json.dumps({"data": []}).encode(),
    ],
)
def test_odd_bodies(page: Page, content: bytes) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        assert page.ask("POST", path, content=content).status_code == 400


def test_large_bodies(page: Page) -> None:
    assert page.event("ask", data=["x" * 5_000_000, []]).status_code == 413


def test_answers_cannot_pass_the_queue(page: Page) -> None:
    for name in ("answer", "tokens"):
        response = page.event(name)
        assert response.status_code == 404
        assert "join the queue" in response.text


def test_the_queue_is_bounded(page: Page, gate: Any) -> None:
    with gate(page.model) as held:
        held.give(0)
        answers = [page.event("answer", queued=True, session_hash=f"s{number}") for number in range(QUEUE + 10)]
        statuses = [response.status_code for response in answers]
        assert set(statuses) == {200, 503}
        # One is being answered, and one may be on its way there.
        assert QUEUE <= statuses.count(200) <= QUEUE + 2
        assert "Queue is full" in answers[-1].text


def test_foreign_names_and_pages(page: Page) -> None:
    port = page.address.rpartition(":")[2]
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/upload"):
        response = page.ask("GET", path, headers={"host": f"evil.example:{port}"})
        assert response.status_code == 421
        assert "--allowed_hosts" in response.json()["error"]["message"]
    body = {"data": [], "fn_index": page.numbers["stop"], "session_hash": "a1"}
    for origin, status in (("http://evil.example", 403), ("null", 403), (page.address, 200)):
        response = page.ask("POST", "/gradio_api/run/predict", json=body, headers={"origin": origin})
        assert response.status_code == status
    # What a browser sends without asking first.
    headers = {"content-type": "text/plain"}
    assert page.ask("POST", "/gradio_api/run/predict", content=json.dumps(body), headers=headers).status_code == 422


def test_half_a_request_is_not_waited_for(page: Page) -> None:
    port = int(page.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=900) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
