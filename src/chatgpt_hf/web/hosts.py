"""Checks of the Host and Origin headers: whom a server answers to.

A stranger's page in the browser of somebody who runs a server can reach that server in two ways. Its domain can resolve to
127.0.0.1 a moment later (DNS rebinding): then the browser takes the server for part of the page, and the Host header has the
stranger's name. Or the page posts a form, which browsers send anywhere without asking: then the Origin header names the page.
"""

import ipaddress
import re
from collections.abc import Sequence

from ..extras import needed_by
from .errors import error_response

with needed_by("The server"):
    from starlette.types import ASGIApp, Receive, Scope, Send

# A name or an address, in brackets if it is of IPv6, and perhaps a port.
_AUTHORITY = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]\\]+)(?::\d{0,5})?", re.ASCII)


def is_loopback(name: str) -> bool:
    """True for names and addresses that only this machine can use."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


class Hosts:
    """ASGI middleware that refuses foreign names with 421, and requests of other sites' pages with 403.

    A server that listens on a loopback address answers to localhost, loopback addresses and `allowed`; any other answers to
    every name, unless there are `allowed` ones. The page of a browser's request must come from a name that the server answers
    to, or, if it answers to all, from the name in the Host header.

    Args:
        listens: The address that the server listens on; None if it is not known.
        allowed: Further names; `*` turns both checks off.
    """

    def __init__(self, app: ASGIApp, *, listens: str | None = None, allowed: Sequence[str] = ()) -> None:
        self.app = app
        self._allowed = {_name(name) or name.lower() for name in allowed}
        self._restricted = bool(allowed) or (listens is not None and is_loopback(listens))
        if listens is not None:
            self._allowed.add(listens.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Whatever watches a server asks it by its address, and the answer is no secret.
        if scope["type"] != "http" or "*" in self._allowed or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
        # Browsers always send a Host.
        host = _name(headers[b"host"]) if b"host" in headers else "localhost"
        if host is None or (self._restricted and not self._is_ours(host)):
            shown = headers[b"host"][:100]
            message = (
                f"This server does not answer to the name {shown!r}: use localhost or 127.0.0.1, or start it with "
                "--allowed_hosts NAME."
            )
            await error_response(421, message)(scope, receive, send)
            return
        if b"origin" in headers:
            origin = _name(headers[b"origin"])
            if origin is None or not (origin == host or (self._restricted and self._is_ours(origin))):
                message = (
                    f"A page of {headers[b'origin'][:100]!r} may not use this server; if it is yours, start the server with "
                    "--allowed_hosts NAME."
                )
                await error_response(403, message)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        return is_loopback(name) or name in self._allowed


def _name(header: str) -> str | None:
    """The name or address in a Host or Origin header, in lower case without brackets; None if there is none."""
    found = _AUTHORITY.fullmatch(header.strip().lower())
    return found[1].strip("[]").rstrip(".") if found else None
