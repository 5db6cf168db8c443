"""The gateway's end of an engine: a Serve application's handle, spoken to in the engine protocol."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from mosaic.errors import EngineDied, EngineFailed, MosaicError, Unavailable
from mosaic.protocol import EngineRequest

_PAUSES_SECONDS = (1.0, 2.0)
"""Before a request is asked again: longer than a dead engine's replica takes to end, which would get it once more."""


class ServeEngine:
    """Answers by the Serve application `app_name`; which of its replicas is Ray's choice.

    A request whose engine dies before the first word is asked again, and waits for the engine that takes its place; one
    that has begun is never begun anew, since its client has read a part.

    Raises Unavailable when the application is not there, EngineDied when its engine died under an answer or three
    times, EngineFailed when it broke, and otherwise what the engine raised.
    """

    def __init__(self, app_name: str) -> None:
        self.app_name = app_name
        self._streamed: Any = None
        self._whole: Any = None

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        for pause in (*_PAUSES_SECONDS, None):
            has_begun = False
            try:
                async with aclosing(self._ask(request)) as answers:
                    async for item in answers:
                        has_begun = True
                        yield item
                return
            except EngineDied:
                if has_begun or pause is None:
                    raise
                await asyncio.sleep(pause)

    async def _ask(self, request: EngineRequest) -> AsyncGenerator[dict[str, Any]]:
        response: Any = None
        try:
            if self._whole is None:
                handle = serve.get_app_handle(self.app_name)
                self._streamed = handle.options(method_name="answer", stream=True)
                self._whole = handle.options(method_name="answer_whole")
            if request.stream:
                response = self._streamed.remote(request)
                async for item in response:
                    yield item
            else:
                response = self._whole.remote(request)
                yield await response
        except MosaicError:
            raise
        except RayTaskError as error:
            # Ray wraps what the engine raised; ours come out as themselves, others are the engine's failure.
            if isinstance(error.cause, MosaicError):
                raise error.cause from None
            raise EngineFailed(f"the engine behind {self.app_name!r} failed: {_last_line(error)}") from error
        except RayActorError as error:
            raise EngineDied(f"the engine behind {self.app_name!r} died: {_last_line(error)}") from error
        except (DeploymentUnavailableError, BackPressureError) as error:
            raise EngineFailed(f"the engine behind {self.app_name!r} went away: {_last_line(error)}") from error
        except RayServeException as error:
            self._streamed = self._whole = None
            raise Unavailable(f"no engine {self.app_name!r} is running: {_last_line(error)}") from error
        finally:
            if response is not None:
                response.cancel()


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
