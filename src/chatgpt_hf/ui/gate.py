"""The requests that the chat page makes. Gradio has more routes, and its events take more than this page sends."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..extras import needed_by
from ..web.bodies import Bodies, replay
from ..web.errors import error_response

with needed_by("The page"):
    import gradio as gr
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

# What the browser loads. Not among them: uploads and files of this machine, the API's description, monitoring, proxies.
_READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/.+"
    r"|/gradio_api/(info|app_id|startup-events|theme\.css|queue/data|heartbeat/\w{1,64})",
    re.ASCII,
)
_STREAMS = re.compile(r"/gradio_api/(queue/data|heartbeat/\w{1,64})", re.ASCII)
_EVENTS = ("/gradio_api/run/predict", "/gradio_api/queue/join")
# A page sends the whole conversation with each question.
MAX_BODY_BYTES = 4_000_000
BODY_SECONDS = 60
# An open page takes one or two.
MAX_STREAMS = 200


class _Event(BaseModel):
    """An event of the page."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: list[Any]
    fn_index: int
    session_hash: str = Field(pattern=r"^[0-9A-Za-z]{1,64}$")
    trigger_id: int | None = None
    event_data: Any = None


class Gate:
    """ASGI middleware that passes the page's own requests to Gradio, within limits; others get 404, 400, 413, 408 or 503.

    Args:
        functions: The page's event handlers by number, `gr.Blocks.fns`.
    """

    def __init__(self, app: ASGIApp, *, functions: Mapping[int, Any]) -> None:
        self.app = app
        self._functions = functions
        self._bodies = Bodies(MAX_BODY_BYTES, BODY_SECONDS)
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            return
        elif scope["method"] in ("GET", "HEAD") and _READ.fullmatch(scope["path"]):
            if _STREAMS.fullmatch(scope["path"]):
                await self._stream(scope, receive, send)
            else:
                # Gradio would look for a stored state or another page there.
                await self.app({**scope, "query_string": b""}, receive, send)
        elif scope["method"] == "POST" and scope["path"] in _EVENTS:
            body = await self._bodies.read(scope, receive)
            if isinstance(body, bytes) and (mistake := self._mistake(body)):
                body = error_response(400, mistake)
            if isinstance(body, Response):
                await body(scope, receive, send)
            elif body is not None:
                await self.app(scope, replay(body, receive), send)
        else:
            await error_response(404, "The chat page has no such address.")(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams >= MAX_STREAMS:
            await error_response(503, "Too many pages are open.")(scope, receive, send)
            return
        self._streams += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._streams -= 1

    def _mistake(self, body: bytes) -> str | None:
        """Says why an event is not one of the page; None if it is."""
        try:
            event = _Event.model_validate(json.loads(body))
            function = self._functions[event.fn_index]
            if function.fn is None:
                raise KeyError(event.fn_index)
        except (ValidationError, ValueError, RecursionError):
            return "This is not an event of the page."
        except KeyError:
            return "The page has no such event."
        inputs = function.inputs
        if len(event.data) != len(inputs):
            return f"The event has {len(inputs)} values."
        for value, component in zip(event.data, inputs, strict=True):
            if not _fits(value, component):
                return f"This is not a value of {component.elem_id or type(component).__name__.lower()}."
        edited = event.event_data if isinstance(event.event_data, dict) else {}
        if function.name == "edit" and not (
            _is_index(edited.get("index"), event.data[0])
            and all(isinstance(edited.get(name), str) for name in ("value", "previous_value"))
        ):
            return "This is not an edited message."
        return None


def _fits(value: Any, component: Any) -> bool:
    """True if the page's component can have the value. Gradio prints a traceback for most that it cannot."""
    if isinstance(component, gr.Chatbot):
        return value is None or (isinstance(value, list) and all(map(_is_message, value)))
    if isinstance(component, gr.Textbox):
        return isinstance(value, str)
    if isinstance(component, gr.Slider):
        return _is_number(value) and component.minimum <= value <= component.maximum
    if isinstance(component, gr.Number):
        return value is None or (_is_number(value) and abs(value) < 2**63)
    if isinstance(component, gr.Checkbox):
        return isinstance(value, bool)
    # A state's value is the server's.
    return isinstance(component, gr.State)


def _is_number(value: Any) -> bool:
    # Unlike `isfinite`, this takes whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_message(value: Any) -> bool:
    """True for text. Gradio's messages may also name files, or components that it would then create."""
    if not isinstance(value, dict) or value.get("role") not in ("user", "assistant"):
        return False
    content = value.get("content")
    parts = content if isinstance(content, list) else [content]
    return all(
        isinstance(part, str)
        or (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str))
        for part in parts
    )


def _is_index(value: Any, history: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return type(first) is int and 0 <= first < len(history or [])
