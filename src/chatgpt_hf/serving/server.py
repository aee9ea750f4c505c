"""The OpenAI-compatible routes, and the server process."""

import asyncio
import signal
import socket
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from transformers.cli.serving.utils import ReasoningText, ToolCall

from ..chat_templates import encode_chat_prompt
from ..errors import ChatGPTError, ConfigError, ContentFiltered
from ..extras import needed_by
from ..inference.generate import encode_prompt
from ..inference.texts import request_texts
from ..web.connections import BACKLOG, DEFAULT_LIMITS, ConnectionLimits, Server, within_open_files
from ..web.errors import error_response
from ..web.hosts import Hosts, is_loopback
from .engine import ContextTooLong, Ended, Engine, GenerationFailed, Item
from .limits import Limits, Metrics
from .requests import ChatRequest, CompletionRequest, Sampling

with needed_by("The server"):
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from openai.types import Completion, CompletionChoice, CompletionUsage
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from pydantic import BaseModel
    from starlette.exceptions import HTTPException


class ErrorBody(BaseModel):
    """OpenAI's format of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request cannot be answered; the message names the field.",
        401: "The API key is missing or wrong.",
        403: "The request comes from another site's page.",
        404: "There is no such model.",
        408: "The complete request did not arrive in time.",
        413: "The request is too large.",
        421: "The server does not answer to the name in the Host header.",
        429: "Too many requests are in progress.",
        504: "The answer was not finished in time.",
    }.items()
}


def build_app(
    engine: Engine,
    *,
    api_key: str | None = None,
    max_concurrent: int = 16,
    max_body_bytes: int = 1_000_000,
    request_seconds: float = 300,
    listens: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """Builds the application for any ASGI server.

    Args:
        engine: The model.
        api_key: Key that clients must send to /v1; None lets everybody in.
        max_concurrent: Maximum number of requests in progress; further ones get 429, which OpenAI's client retries.
        max_body_bytes: Maximum size of a request.
        request_seconds: Time limit for one answer, in seconds.
        listens, allowed_hosts: The address that the server listens on, and names that it answers to; see `Hosts`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    metrics = Metrics()
    app = FastAPI(title="chatgpt_hf", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(
        Limits,
        metrics=metrics,
        api_key=api_key,
        max_concurrent=max_concurrent,
        max_body_bytes=max_body_bytes,
        body_seconds=min(60, request_seconds),
    )
    app.add_middleware(Hosts, listens=listens, allowed=allowed_hosts)
    answers = _Answers(engine, metrics, request_seconds)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        # Report the deepest error: for union types it belongs to the variant the client meant.
        worst = max(error.errors(), key=lambda found: len(found["loc"]))
        # Skip parts that are neither names nor numbers: they name the variant of a union type.
        parts = [str(part) for part in worst["loc"][1:] if str(part).isidentifier() or isinstance(part, int)]
        path = ".".join(part for part in parts if part not in ("str", "list"))
        if worst["type"] == "json_invalid":
            return error_response(400, f"The request is not valid JSON: {worst['ctx']['error']}, at character {path}.")
        return error_response(400, f"{path or 'the request'}: {worst['msg']}", param=path or None)

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail))

    @app.exception_handler(ChatGPTError)
    async def decline(request: Request, error: ChatGPTError) -> JSONResponse:
        code = {ContextTooLong: "context_length_exceeded", ContentFiltered: "content_filter"}.get(type(error))
        return error_response(400, str(error), code=code)

    @app.post("/v1/chat/completions", responses=ERRORS, response_model=None)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        return await answers.chat(request, body)

    @app.post("/v1/completions", responses=ERRORS, response_model=None)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        return await answers.complete(request, body)

    model = {"id": engine.name, "object": "model", "created": int(time.time()), "owned_by": "chatgpt_hf"}
    model |= {"max_model_len": engine.context}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", response_model=None, responses={404: ERRORS[404]})
    async def one_model(name: str) -> dict[str, Any] | Response:
        return model if name == engine.name else answers.unknown_model(name)

    @app.get("/health", responses={503: {"description": "The server cannot answer requests."}})
    async def health() -> JSONResponse:
        if engine.healthy:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unhealthy"}, status_code=503)

    @app.get("/metrics", response_class=Response)
    async def metrics_page() -> Response:
        return metrics.response()

    return app


class _Answers:
    """Answers well-formed requests, at once or as a stream."""

    def __init__(self, engine: Engine, metrics: Metrics, request_seconds: float) -> None:
        self._engine = engine
        self._metrics = metrics
        self._seconds = request_seconds

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        if body.model not in (None, self._engine.name):
            return self.unknown_model(str(body.model))
        engine = self._engine
        if engine.tokenizer.chat_template is None:
            raise ConfigError("The model has no chat template: it is a base model; use /v1/completions.")
        await self._moderate(body)
        tools = body.tools if body.tool_choice != "none" else None
        if (unseen := await asyncio.to_thread(_unseen, engine, body, tools)) is not None:
            message = (
                f"{unseen}: this model's chat template has none, so the model would not see them; leave them out."
            )
            return error_response(400, message, param=unseen)
        messages = [message.model_dump(exclude_none=True) for message in body.messages]
        ids = await asyncio.to_thread(encode_chat_prompt, engine.tokenizer, messages, tools)
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        items = self._items(ids, max_tokens, body, tools)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        head = {
            "object": kind,
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": engine.name,
        }

        def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
            return _event(ChatCompletionChunk.model_validate({**head, "choices": [choice]}))

        if body.stream:

            async def events() -> AsyncGenerator[str, None]:
                yield chunk({"role": "assistant", "content": ""})
                calls = 0
                async for item in items:
                    if isinstance(item, Ended):
                        yield chunk({}, item.finish_reason)
                        if body.stream_options and body.stream_options.include_usage:
                            usage = _usage(ids, item)
                            yield _event(ChatCompletionChunk.model_validate({**head, "choices": [], "usage": usage}))
                    elif isinstance(item, ToolCall):
                        yield chunk({"tool_calls": [{"index": calls, **_tool_call(item)}]})
                        calls += 1
                    elif isinstance(item, ReasoningText):
                        yield chunk({"reasoning_content": str(item)})
                    else:
                        yield chunk({"content": item})

            return _stream(events(), items)

        async def whole() -> Response:
            content, reasoning, calls, ended = "", "", [], Ended("stop", 0)
            async for item in items:
                if isinstance(item, Ended):
                    ended = item
                elif isinstance(item, ToolCall):
                    calls.append(_tool_call(item))
                elif isinstance(item, ReasoningText):
                    reasoning += item
                else:
                    content += item
            message: dict[str, Any] = {"role": "assistant", "content": content}
            message |= {"tool_calls": calls} if calls else {}
            message |= {"reasoning_content": reasoning} if reasoning else {}
            choice = {"index": 0, "message": message, "finish_reason": ended.finish_reason, "logprobs": None}
            result = ChatCompletion.model_validate({**head, "choices": [choice], "usage": _usage(ids, ended)})
            return Response(result.model_dump_json(exclude_unset=True), media_type="application/json")

        return await self._unless_gone(request, whole())

    async def complete(self, request: Request, body: CompletionRequest) -> Response:
        if body.model not in (None, self._engine.name):
            return self.unknown_model(str(body.model))
        if self._engine.abstention is not None:
            raise ConfigError(
                "This server withholds answers of which the model is not sure, and a text to continue has no answer to judge: use "
                "/v1/chat/completions."
            )
        await self._moderate(body)
        ids = await asyncio.to_thread(encode_prompt, self._engine.tokenizer, body.prompt)
        items = self._items(ids, body.max_tokens, body, None)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._engine.name}

        def completion(text: str, finish_reason: str | None, usage: CompletionUsage | None = None) -> Completion:
            # `model_construct` skips validation: OpenAI's own type requires a finish_reason, but chunks of a stream
            # have none.
            choice = CompletionChoice.model_construct(text=text, index=0, logprobs=None, finish_reason=finish_reason)
            content: dict[str, Any] = {**head, "object": "text_completion", "choices": [choice]}
            return Completion.model_construct(**(content if usage is None else content | {"usage": usage}))

        if body.stream:

            async def events() -> AsyncGenerator[str, None]:
                async for item in items:
                    if isinstance(item, Ended):
                        wanted = body.stream_options and body.stream_options.include_usage
                        yield _event(completion("", item.finish_reason, _usage(ids, item) if wanted else None))
                    else:
                        yield _event(completion(str(item), None))

            return _stream(events(), items)

        async def whole() -> Response:
            text, ended = "", Ended("stop", 0)
            async for item in items:
                if isinstance(item, Ended):
                    ended = item
                else:
                    text += str(item)
            result = completion(text, ended.finish_reason, _usage(ids, ended))
            return Response(result.model_dump_json(exclude_unset=True), media_type="application/json")

        return await self._unless_gone(request, whole())

    def unknown_model(self, name: str) -> Response:
        message = f"There is no model {name[:200]!r} here; this server has {self._engine.name!r}."
        return error_response(404, message, param="model", code="model_not_found")

    async def _moderate(self, body: Sampling) -> None:
        if self._engine.moderation is None:
            return
        for text in request_texts(body.model_dump(exclude_none=True)):
            try:
                await asyncio.to_thread(self._engine.moderation.check, text)
            except ContentFiltered:
                self._metrics.filtered.labels("input").inc()
                raise

    def _items(
        self, ids: list[int], max_tokens: int | None, body: Sampling, tools: list[dict[str, Any]] | None
    ) -> AsyncGenerator[Item, None]:
        """Yields the model's answer within the time limit; checks parameters before anything is sent."""
        bias = {(_token(self._engine, index),): value for index, value in (body.logit_bias or {}).items()}
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        config = self._engine.config(
            len(ids),
            max_tokens,
            sequence_bias=bias or None,
            stop_strings=body.stop or None,
            **{name: getattr(body, name) for name in names},
        )
        if self._engine.batching is not None and body.seed is not None:
            self._engine.batching.check({"seed": body.seed})

        async def timed() -> AsyncGenerator[Item, None]:
            items = self._engine.generate(ids, config, seed=body.seed, tools=tools)
            self._metrics.prompt_tokens.inc(len(ids))
            start, first, whole = time.monotonic(), True, False
            try:
                while not whole:
                    item = await asyncio.wait_for(anext(items), start + self._seconds - time.monotonic())
                    if first:
                        self._metrics.first_token.observe(time.monotonic() - start)
                        first = False
                    if isinstance(item, Ended):
                        whole = True
                        self._metrics.completion_tokens.inc(item.completion_tokens)
                        if item.abstained:
                            self._metrics.abstained.inc()
                        if item.finish_reason == "content_filter":
                            self._metrics.filtered.labels("output").inc()
                    yield item
            finally:
                # Stop the model now instead of when the garbage collector runs.
                await items.aclose()
                if not whole:
                    self._metrics.cancelled.inc()

        return timed()

    async def _unless_gone(self, request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
        """Returns the answer; stops the model if the client leaves first."""
        task, gone = asyncio.create_task(answer), asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                return Response(status_code=499)
            return task.result()
        except TimeoutError:
            return error_response(504, f"The answer was not finished within {self._seconds:g} seconds.")
        except GenerationFailed as error:
            return error_response(500, f"The model failed: {error}")
        finally:
            gone.cancel()


def _unseen(engine: Engine, body: ChatRequest, tools: list[dict[str, Any]] | None) -> str | None:
    """The field of a request by which tools come in that the model would not see; None if there is none."""
    fields = {
        "tools": ("tools", tools),
        "tool_choice": ("tools", body.tool_choice == "auto"),
    }
    for index, message in enumerate(body.messages):
        fields[f"messages.{index}.tool_calls"] = ("tool_calls", message.tool_calls)
        fields[f"messages.{index}.role"] = ("tool_messages", message.role == "tool")
    given = {field: kind for field, (kind, value) in fields.items() if value}
    return next((field for field, kind in given.items() if not getattr(engine.shown_of_tools, kind)), None)


def _stream(events: AsyncGenerator[str, None], items: AsyncGenerator[Item, None]) -> StreamingResponse:
    """Sends server-sent events; if an error occurs, it is the last event."""

    async def sent() -> AsyncGenerator[str, None]:
        try:
            async for event in events:
                yield event
        except TimeoutError:
            yield _event(error_body("The answer was not finished in time."))
        except GenerationFailed as error:
            yield _event(error_body(f"The model failed: {error}"))
        finally:
            await events.aclose()
            await items.aclose()
        yield "data: [DONE]\n\n"

    return StreamingResponse(sent(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def error_body(message: str) -> ErrorResponse:
    """An error for a stream that has already started."""
    return ErrorResponse(error=ErrorBody(message=message, type="server_error"))


def _event(content: BaseModel) -> str:
    return f"data: {content.model_dump_json(exclude_unset=True)}\n\n"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(ids: list[int], ended: Ended) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=len(ids),
        completion_tokens=ended.completion_tokens,
        total_tokens=len(ids) + ended.completion_tokens,
    )


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _token(engine: Engine, index: str) -> int:
    # Python reads no number of thousands of digits, and a token id has few.
    if not (index.isascii() and index.isdigit() and len(index) < 20 and int(index) < len(engine.tokenizer)):
        raise ConfigError(
            f"logit_bias: {index[:20]!r} is not a token id; they go from 0 to {len(engine.tokenizer) - 1}."
        )
    return int(index)


def serve(
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    request_seconds: float = 300,
    log_level: str = "warning",
    connection_limits: ConnectionLimits = DEFAULT_LIMITS,
    allowed_hosts: Sequence[str] = (),
    ready: Callable[[str], None] | None = None,
    **limits: Any,
) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the requests in progress.

    Args:
        allowed_hosts: Names that the server answers to besides its own; see `Hosts`.
        ready: Called with the address once it is bound; for port 0, it contains the port that the system chose.
        **limits: See `build_app`.

    Raises:
        ConfigError: If the server cannot listen on the address.
    """
    bound = bind(host, port)
    address = bound.getsockname()[0]
    if is_loopback(address):
        # A name for this machine, perhaps.
        allowed_hosts = [*allowed_hosts, host]
    app = build_app(engine, request_seconds=request_seconds, listens=address, allowed_hosts=allowed_hosts, **limits)
    server = Server(
        app,
        within_open_files(connection_limits),
        log_level=log_level,
        timeout_graceful_shutdown=int(request_seconds) + 1,
    )
    # uvicorn shuts down cleanly on these signals, and then raises them again for the previous handlers. Until it runs, they
    # must not get lost.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    if ready is not None:
        ready(f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}")
    server.run(sockets=[bound])


def bind(host: str, port: int) -> socket.socket:
    """Opens a listening socket.

    Raises:
        ConfigError: If the port is in use or not permitted, or the host is unknown.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error}): choose another with --port or --host."
        ) from error
