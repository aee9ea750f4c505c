import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the [serve] extra")


@contextmanager
def serving(engine: Any, **limits: Any) -> Iterator[str]:
    """Runs a server in a thread of this process; yields its address."""
    from chatgpt_hf.serving.server import bind, build_app
    from chatgpt_hf.web.connections import DEFAULT_LIMITS, Server

    connection_limits = limits.pop("connection_limits", DEFAULT_LIMITS)
    # The socket already listens, so clients that connect before the server runs wait for it.
    bound = bind("127.0.0.1", 0)
    server = Server(build_app(engine, **limits), connection_limits, log_level="error")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(900)


@pytest.fixture(scope="session")
def running() -> Callable[..., Any]:
    """Runs a server: `with running(engine, **limits) as address:`"""
    return serving


@pytest.fixture
def make_engine(chat_folder: Path) -> Callable[..., Any]:
    """Makes engines with the model that has memorized `CHATS`."""
    from chatgpt_hf import load_model, load_tokenizer
    from chatgpt_hf.serving.engine import Engine

    def make(**options: Any) -> Engine:
        options = {"do_sample": False, "max_new_tokens": 64, **options}
        return Engine("tiny", load_model(chat_folder), load_tokenizer(str(chat_folder)), **options)

    return make


@pytest.fixture(params=["one by one", "batched"])
def address(request: pytest.FixtureRequest, make_engine: Callable[..., Any]) -> Iterator[str]:
    """A server with and without continuous batching."""
    with serving(make_engine(continuous_batching=request.param == "batched")) as base:
        yield base


@pytest.fixture
def client(patience: int) -> Iterator[Callable[..., Any]]:
    """Makes real clients of OpenAI's library, without retries."""
    import openai

    opened = []

    def make(address: str, api_key: str = "none", **options: Any) -> openai.OpenAI:
        settings: dict[str, Any] = {"max_retries": 0, "timeout": patience, **options}
        opened.append(openai.OpenAI(base_url=f"{address}/v1", api_key=api_key, **settings))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
