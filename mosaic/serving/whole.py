"""An engine's replica asked for an answer that is not streamed: as one call, which costs both ends less than a stream
of one."""

from contextlib import aclosing
from typing import Any

from mosaic.errors import EngineFailed
from mosaic.protocol import Engine, EngineRequest


class AnswersWhole:
    """What replicas inherit, which are engines."""

    async def answer_whole(self: Engine, request: EngineRequest) -> dict[str, Any]:
        """The one answer to a request without `stream`."""
        async with aclosing(self.answer(request)) as answers:  # type: ignore[type-var]  # a generator in all of them
            async for answer in answers:
                return answer
        raise EngineFailed("the engine ended without an answer")
