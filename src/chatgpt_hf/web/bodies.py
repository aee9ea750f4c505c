"""Reads the bodies of requests within a size, a time and a memory."""

import asyncio

from ..extras import needed_by
from .errors import error_response

with needed_by("The server"):
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope

# Memory for unfinished bodies, as a number of bodies of the largest size.
AT_ONCE = 32


class Bodies:
    """Reads whole bodies, and holds the memory that unfinished ones take.

    Args:
        max_bytes: Maximum size of a body; larger ones get 413, before the rest is read.
        seconds: Time limit for receiving a body; slower ones get 408.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        # The bytes so far of the bodies that are being received, by their deadlines; the oldest first.
        self._receiving: dict[asyncio.Timeout, int] = {}

    async def read(self, scope: Scope, receive: Receive) -> bytes | Response | None:
        """Returns the body, an error response if a limit is exceeded, or None if the client left."""
        too_large = error_response(
            413, f"The request is larger than {self._max_bytes:,} bytes, the maximum of this server."
        )
        length = dict(scope["headers"]).get(b"content-length", b"").lstrip(b"0")
        # Longer numbers than that are not worth reading, and Python refuses those of thousands of digits.
        if len(length) > 18 or (length.isdigit() and int(length) > self._max_bytes):
            return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds) as deadline:
                try:
                    more = True
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return None
                        body += message.get("body", b"")
                        if len(body) > self._max_bytes:
                            return too_large
                        self._receiving[deadline] = len(body)
                        self._make_room()
                        more = message.get("more_body", False)
                finally:
                    self._receiving.pop(deadline, None)
        except TimeoutError:
            return error_response(
                408,
                f"The complete request did not arrive within {self._seconds:g} seconds, or the server had to make room for others.",
            )
        return bytes(body)

    def _make_room(self) -> None:
        """Gives up the body that has been arriving for longest, if all of them take too much memory."""
        if sum(self._receiving.values()) > AT_ONCE * self._max_bytes:
            oldest = next(iter(self._receiving))
            del self._receiving[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body again, then later messages."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
