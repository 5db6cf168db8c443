"""The gateway's end of an engine: a Serve application's handle, spoken to in the engine protocol."""

from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from mosaic.errors import EngineFailed, MosaicError, Unavailable
from mosaic.protocol import EngineRequest


class ServeEngine:
    """Answers by the Serve application `app_name`; which of its replicas is Ray's choice.

    Raises Unavailable when the application is not there or has no replica, EngineFailed when its replica died or broke,
    and otherwise what the engine raised.
    """

    def __init__(self, app_name: str) -> None:
        self.app_name = app_name
        self._handle: Any = None

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        stream: Any = None
        try:
            if self._handle is None:
                self._handle = serve.get_app_handle(self.app_name).options(method_name="answer", stream=True)
            stream = self._handle.remote(request)
            async for item in stream:
                yield item
        except MosaicError:
            raise
        except RayTaskError as error:
            # Ray wraps what the engine raised; ours come out as themselves, others are the engine's failure.
            if isinstance(error.cause, MosaicError):
                raise error.cause from None
            raise EngineFailed(f"the engine behind {self.app_name!r} failed: {_last_line(error)}") from error
        except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
            raise EngineFailed(f"the engine behind {self.app_name!r} went away: {_last_line(error)}") from error
        except RayServeException as error:
            self._handle = None
            raise Unavailable(f"no engine {self.app_name!r} is running: {_last_line(error)}") from error
        finally:
            if stream is not None:
                stream.cancel()


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
