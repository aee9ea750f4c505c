"""Errors as responses, in OpenAI's format."""

from ..extras import needed_by

with needed_by("The server"):
    from starlette.responses import JSONResponse


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
