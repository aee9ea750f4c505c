"""A server's connections: their deadlines and their number, which uvicorn does not limit.

A connection waits until it has sent a complete request. Waiting connections cost a file each, and a stranger can open
thousands of them: so headers have a deadline, and where there are too many, the one that has waited longest is closed.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from ..extras import needed_by

with needed_by("The server"):
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

# asyncio accepts as many connections at a time; more could use up all files before the oldest ones are closed.
_ACCEPTED_AT_ONCE = 16
# As many can wait in the system to be accepted.
BACKLOG = 2048


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of a server's connections.

    Attributes:
        header_seconds: Time for the headers of a request, from the connection or the previous answer; later ones get 408.
        write_seconds: Time in which a client must read some of an answer that waits for it.
        max_connections: Maximum number of connections, and no more than half of the files that the process may open.
    """

    header_seconds: float = 20
    write_seconds: float = 60
    max_connections: int = 512


DEFAULT_LIMITS = ConnectionLimits()


class _Guarded(H11Protocol):
    """A connection; `guarded_protocol` makes a subclass for each server."""

    limits: ClassVar[ConnectionLimits]
    # Connections without a complete request; the one that has waited longest is first.
    waiting: ClassVar[dict["_Guarded", None]]
    _header_deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # No web sockets: they would leave this protocol and its deadlines.
        self.ws_protocol_class = None
        if len(self.connections) > self.limits.max_connections:
            if self.waiting:
                next(iter(self.waiting)).abort()
            else:
                # All others have a request in progress.
                self.turn_away(b"503 Service Unavailable")
        self.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.waiting.pop(self, None)
        for deadline in (self._header_deadline, self._write_deadline):
            if deadline is not None:
                deadline.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_answering and not self.cycle.more_body:
            self.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        # May already begin with the next request, if the client sent several at once.
        super().on_response_complete()
        self.wait()

    def shutdown(self) -> None:
        if self.is_answering and self in self.waiting:
            # The rest of the request would delay the end.
            self.abort()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = self.loop.call_later(self.limits.write_seconds, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()

    @property
    def is_answering(self) -> bool:
        """True from the end of a request's headers to the end of its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def wait(self) -> None:
        """Starts to wait for the next request, unless it is there already."""
        if self not in self.connections or (self.is_answering and not self.cycle.more_body):
            return
        self.waiting.pop(self, None)
        self.waiting[self] = None
        if self._header_deadline is not None:
            self._header_deadline.cancel()
        self._header_deadline = self.loop.call_later(self.limits.header_seconds, self._expire)

    def _expire(self) -> None:
        if self.is_answering:
            return
        if self.transport.is_closing():
            # The client does not read the end of the answer, for which the connection stays open.
            self.abort()
        elif self.conn.trailing_data[0]:
            self.turn_away(b"408 Request Timeout")
        else:
            self.turn_away(None)

    def turn_away(self, status: bytes | None) -> None:
        """Closes the connection, with an answer if there is a status."""
        if status is not None:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.abort()

    def abort(self) -> None:
        """Closes the connection, even if the client does not read what was sent."""
        self.waiting.pop(self, None)
        self.transport.abort()


def guarded_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """Makes the class of one server's connections, for `uvicorn.Config(http=...)`."""
    return type("Guarded", (_Guarded,), {"limits": limits, "waiting": {}})


class Server(uvicorn.Server):
    """uvicorn on sockets that already listen, with limits of its connections and of its log.

    Args:
        app: The ASGI application.
        limits: Limits of the connections.
        **options: Options of `uvicorn.Config`.
    """

    def __init__(self, app: Any, limits: ConnectionLimits = DEFAULT_LIMITS, **options: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=guarded_protocol(limits),
                ws="none",
                backlog=_ACCEPTED_AT_ONCE,
                server_header=False,
                **options,
            )
        )
        dampen_logs()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to serve."""
        await super().startup(sockets)
        # asyncio uses one number for both; where the system's queue is short, clients of a busy server wait a second or more.
        for listening in sockets or []:
            listening.listen(BACKLOG)


def within_open_files(limits: ConnectionLimits) -> ConnectionLimits:
    """Raises the process's limit of open files as far as the system lets it, and fits `max_connections` to it."""
    try:
        import resource
    except ImportError:  # Windows, where connections are not files.
        return limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS names a hard limit that it does not grant.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    files = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    return ConnectionLimits(limits.header_seconds, limits.write_seconds, min(limits.max_connections, files // 2))


class _Dampened(logging.Filter):
    """Passes a message's first ten records, then the 100th, the 1,000th and so on: a client must not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the record is to be logged."""
        if record.levelno < logging.WARNING:
            return True
        # asyncio writes objects with their addresses into the other lines.
        text = str(record.msg).partition("\n")[0]
        self._counts[text] = count = self._counts.get(text, 0) + 1
        if count > 10:
            record.msg = f"{record.msg} ({count} times so far)"
        return count <= 10 or count == 10 ** (len(str(count)) - 1)


_DAMPENED = _Dampened()


def dampen_logs() -> None:
    """Limits how often uvicorn and asyncio log the same warning or error."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(_DAMPENED)
