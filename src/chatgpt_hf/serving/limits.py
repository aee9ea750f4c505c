"""API key, request limits and metrics."""

import asyncio
import hmac
import time
from typing import Any

from ..extras import needed_by

with needed_by("The server"):
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.responses import JSONResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models")


def error_response(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's format."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {
        401: {"WWW-Authenticate": "Bearer"},
        429: {"Retry-After": "1"},
        # The rest of the request is not read.
        408: {"Connection": "close"},
        413: {"Connection": "close"},
    }.get(status)
    content = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(content, status_code=status, headers=headers)


class Metrics:
    """Prometheus metrics of one server, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry, "namespace": "chatgpt_hf"}
        self.requests = Counter("requests", "Requests by path and status.", ["path", "status"], **make)
        self.running = Gauge("requests_running", "Requests in progress.", **make)
        self.seconds = Histogram(
            "request_seconds",
            "Time from a request to the end of its answer.",
            ["path"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            **make,
        )
        self.first_token = Histogram(
            "first_token_seconds",
            "Time from a request to its first piece of text.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            **make,
        )
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", **make)
        self.completion_tokens = Counter("completion_tokens", "Tokens generated.", **make)
        self.filtered = Counter("filtered", "Messages and answers that moderation blocked.", ["where"], **make)
        self.cancelled = Counter(
            "cancelled", "Answers that ended early, because the client left, time ran out or the model failed.", **make
        )

    def response(self) -> Response:
        """The page that Prometheus reads."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class Limits:
    """ASGI middleware in front of the routes.

    Args:
        api_key: Key that requests to /v1 must send as `Authorization: Bearer KEY`; None means no key is needed.
        max_concurrent: Maximum number of requests in progress; further ones get 429.
        max_body_bytes: Maximum size of a body; larger ones get 413, before the rest is read.
        body_seconds: Time limit for receiving a body; slower ones get 408.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        api_key: str | None,
        max_concurrent: int,
        max_body_bytes: int,
        body_seconds: float,
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._api_key = api_key
        self._max_concurrent = max_concurrent
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        status = 500
        start = time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._limited(scope, receive, noting)
        finally:
            # Clients must not be able to create new metrics.
            path = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - start)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self._api_key is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
                message = "The API key is missing or wrong: send it as `Authorization: Bearer KEY`."
                await error_response(401, message, code="invalid_api_key")(scope, receive, send)
                return
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self._running >= self._max_concurrent:
            message = f"{self._max_concurrent} requests are in progress, the maximum of this server: try again soon."
            await error_response(429, message, code="rate_limit_exceeded")(scope, receive, send)
            return
        self._running += 1
        self._metrics.running.inc()
        try:
            body = await self._body(headers, receive)
            if isinstance(body, Response):
                await body(scope, receive, send)
            elif body is not None:
                await self.app(scope, _replay(body, receive), send)
        finally:
            self._running -= 1
            self._metrics.running.dec()

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | Response | None:
        """Reads the whole body; returns an error response if a limit is exceeded, and None if the client left."""
        too_large = error_response(
            413, f"The request is larger than {self._max_body_bytes:,} bytes, the maximum of this server."
        )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        return too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            return error_response(408, f"The complete request did not arrive within {self._body_seconds:g} seconds.")
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body again, then later messages."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
