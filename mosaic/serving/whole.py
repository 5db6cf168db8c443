"""An engine's replica asked for an answer that is not streamed: as one call, which costs both ends less than a stream
of one."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from mosaic.errors import EngineFailed
from mosaic.protocol import EngineRequest


class AnswersWhole:
    """What replicas inherit that have `answer`."""

    def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        raise NotImplementedError

    async def answer_whole(self, request: EngineRequest) -> dict[str, Any]:
        """The one answer to a request without `stream`."""
        async with aclosing(self.answer(request)) as answers:  # type: ignore[type-var]  # a generator in all of them
            async for answer in answers:
                return answer
        raise EngineFailed("the engine ended without an answer")
