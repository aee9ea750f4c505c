"""Requests with tools that the model's chat template does not show to the model."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from foreign_tokenizers import CHATML

from chatgpt_hf import load_model, load_tokenizer
from chatgpt_hf.serving import engine as engine_module
from chatgpt_hf.serving.engine import Engine
from chatgpt_hf.serving.server import build_app

USER = {"role": "user", "content": "1+2"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def send(base_folder: Path) -> Callable[..., list[httpx.Response]]:
    """Sends requests, without a network, to a server whose model has a chat template."""

    def run(template: str | None, *bodies: dict[str, Any]) -> list[httpx.Response]:
        tokenizer = load_tokenizer(str(base_folder))
        tokenizer.chat_template = template or tokenizer.chat_template
        model = load_model(base_folder)
        model.config.max_position_embeddings = 1024
        app = build_app(Engine("tiny", model, tokenizer, max_new_tokens=1))

        async def answers() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return [
                    await client.post("/v1/chat/completions", json={"messages": [USER], **body}) for body in bodies
                ]

        return asyncio.run(answers())

    return run


def test_tools_that_the_model_would_not_see_are_refused_by_name(send: Callable[..., list[httpx.Response]]) -> None:
    refused = {
        "tools": {"tools": TOOLS},
        "tool_choice": {"tool_choice": "auto"},
        "messages.1.tool_calls": {"messages": [USER, CALLED]},
        "messages.2.role": {"messages": [USER, CALLED | {"tool_calls": None}, RESULT]},
    }
    without_results = CHATML.replace("messages %}", "messages if message['role'] != 'tool' %}", 1)
    for field, answer in zip(refused, send(without_results, *refused.values()), strict=True):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error")
        assert error["message"].startswith(f"{field}: this model's chat template has none")
    streamed = send(CHATML, {"tools": TOOLS, "stream": True})[0]
    assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "tools")


def test_what_does_not_need_tools_is_answered(send: Callable[..., list[httpx.Response]]) -> None:
    bodies = [
        {},
        {"tools": []},
        {"tools": TOOLS, "tool_choice": "none"},
        {"messages": [USER, {"role": "assistant", "content": "?"}, RESULT]},
    ]
    assert [answer.status_code for answer in send(CHATML, *bodies)] == [200] * 4


def test_a_template_is_tried_once_and_only_if_a_request_has_tools(
    send: Callable[..., list[httpx.Response]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    real = engine_module.shown_of_tools
    monkeypatch.setattr(engine_module, "shown_of_tools", lambda tokenizer: tried.append(tokenizer) or real(tokenizer))
    assert [answer.status_code for answer in send(None, {})] == [200]
    assert not tried
    bodies = [{"tools": TOOLS, "tool_choice": "auto"}, {"messages": [USER, CALLED, RESULT], "tools": TOOLS}]
    assert [answer.status_code for answer in send(None, *bodies)] == [200, 200]
    assert len(tried) == 1
