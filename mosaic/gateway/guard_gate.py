"""A gate before an answer: the engine is asked while the verdict on what was asked is still out, and nothing that it
says leaves before. A refusal cancels it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

Answers = AsyncGenerator[dict[str, Any]]
_MOST_WAITING = 1_000
"""Chunks that wait at the gate; the engine's own buffers hold more."""


async def gated(
    answers: Answers, verdict: Callable[[], Awaitable[None]], unsaid: Callable[[dict[str, Any]], None]
) -> Answers:
    """The answers, once the verdict is there.

    Raises what the verdict raises, whatever the engine has raised meanwhile; `unsaid` is told each item that was made
    for nothing. The engine is read by a task of its own from its first item to its last, and has ended before this has.
    """
    waiting: asyncio.Queue[dict[str, Any] | _End] = asyncio.Queue(_MOST_WAITING)
    engine = asyncio.create_task(_read(answers, waiting))
    try:
        try:
            await verdict()
        except BaseException:
            while not waiting.empty():
                if not isinstance(item := waiting.get_nowait(), _End):
                    unsaid(item)
            raise
        while not isinstance(item := await waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        engine.cancel()
        await asyncio.wait([engine])


class _End:
    def __init__(self, error: Exception | None) -> None:
        self.error = error


async def _read(answers: Answers, waiting: "asyncio.Queue[dict[str, Any] | _End]") -> None:
    error: Exception | None = None
    try:
        async with aclosing(answers):
            async for item in answers:
                await waiting.put(item)
    except Exception as failed:  # raised again by who waits for the items
        error = failed
    await waiting.put(_End(error))
