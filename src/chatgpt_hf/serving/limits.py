"""API key, request limits and metrics."""

import hmac
import time
from typing import Any

from ..extras import needed_by
from ..web.bodies import Bodies, replay
from ..web.errors import error_response

with needed_by("The server"):
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models")


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
        self.abstained = Counter("abstained", "Answers of which the model was not sure enough.", **make)
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
        max_concurrent: Maximum number of complete requests in progress; further ones get 429.
        max_body_bytes, body_seconds: See `Bodies`.
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
        self._bodies = Bodies(max_body_bytes, body_seconds)
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
        # A request is in progress once it is complete: clients that send slowly must not keep others out.
        body = await self._bodies.read(scope, receive)
        if isinstance(body, Response):
            await body(scope, receive, send)
        if not isinstance(body, bytes):
            return
        if self._running >= self._max_concurrent:
            message = f"{self._max_concurrent} requests are in progress, the maximum of this server: try again soon."
            await error_response(429, message, code="rate_limit_exceeded")(scope, receive, send)
            return
        self._running += 1
        self._metrics.running.inc()
        try:
            await self.app(scope, replay(body, receive), send)
        finally:
            self._running -= 1
            self._metrics.running.dec()
