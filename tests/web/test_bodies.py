"""Bodies that are too large, too slow or too many."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the [serve] extra")

from chatgpt_hf.web.bodies import AT_ONCE, Bodies, replay


def scope(length: bytes | None = None) -> dict[str, Any]:
    return {"type": "http", "headers": [] if length is None else [(b"content-length", length)]}


def pieces(*parts: bytes, ends: bool = True) -> Any:
    """A `receive` that gives these parts; then the body ends, or nothing comes any more."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left) or not ends}

    return receive


def status(found: Any) -> int | None:
    return getattr(found, "status_code", None)


def test_a_body_and_its_replay() -> None:
    async def run() -> None:
        receive = pieces(b"ab", b"", b"c")
        body = await Bodies(3, 900).read(scope(b"3"), receive)
        assert body == b"abc"
        assert await replay(b"abc", receive)() == {"type": "http.request", "body": b"abc", "more_body": False}

    asyncio.run(run())


def test_too_large() -> None:
    async def run() -> None:
        bodies = Bodies(3, 900)
        for length in (b"4", b"9" * 18, b"9" * 5000, b"0004"):
            assert status(await bodies.read(scope(length), pieces(ends=False))) == 413
        # Without a length, or with a wrong one.
        assert status(await bodies.read(scope(), pieces(b"ab", b"cd", ends=False))) == 413
        assert status(await bodies.read(scope(b"1"), pieces(b"ab", b"cd", ends=False))) == 413
        assert await bodies.read(scope(b"0003"), pieces(b"abc")) == b"abc"

    asyncio.run(run())


def test_too_slow_and_gone() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def run() -> None:
        assert status(await Bodies(9, 0.05).read(scope(b"9"), pieces(b"abc", ends=False))) == 408
        assert await Bodies(9, 900).read(scope(b"9"), gone) is None

    asyncio.run(run())


def test_unfinished_bodies_take_no_more_memory_than_that() -> None:
    async def run() -> None:
        bodies = Bodies(10, 900)
        waiting = [asyncio.create_task(bodies.read(scope(), pieces(b"x" * 10, ends=False))) for _ in range(AT_ONCE)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        # The oldest one makes room, and a complete body is read whatever else there is.
        assert await bodies.read(scope(), pieces(b"whole")) == b"whole"
        assert status(await waiting[0]) == 408
        assert not any(task.done() for task in waiting[1:])
        for task in waiting[1:]:
            task.cancel()

    asyncio.run(run())
