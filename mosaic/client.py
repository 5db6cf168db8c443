"""An OpenAI-shaped client for the platform's own calls: they pass the gateway like anybody's."""

import asyncio
import time
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from mosaic.errors import (
    BadRequest,
    EngineFailed,
    MosaicError,
    NotFound,
    PermissionDenied,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unprocessable,
)

_BY_STATUS: dict[int, type[MosaicError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    413: TooLarge,
    422: Unprocessable,
    429: RateLimited,
    502: EngineFailed,
    503: Unavailable,
}
_WORTH_ANOTHER_TRY = (429, 500, 502, 503, 504)


class Client:
    """Calls one gateway with one token. Pickles; connections are made where it is used.

    A call that meets a restarting replica (a refused or broken connection, 5xx) is tried again for up to
    `patience_seconds`; embeddings have no side effect but their row.
    """

    def __init__(
        self, base_url: str, token: str, *, timeout_seconds: float = 120, patience_seconds: float = 60
    ) -> None:
        self.base_url, self._token = base_url.rstrip("/"), token
        self._timeout_seconds, self._patience_seconds = timeout_seconds, patience_seconds
        self._http: httpx.Client | None = None
        self._async_http: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient] | None = None

    def __reduce__(self) -> tuple[Callable[..., "Client"], tuple[Any, ...]]:
        return (_rebuild, (self.base_url, self._token, self._timeout_seconds, self._patience_seconds))

    def embed(self, model: str, texts: list[str], *, parent_request_id: str | None = None) -> npt.NDArray[np.float32]:
        """Vectors [len(texts), dimension], float32. Raises what the gateway answered.

        `parent_request_id` is the request on whose behalf this is done; the row of this one names it.
        """
        if self._http is None:
            self._http = httpx.Client(timeout=self._timeout_seconds)
        deadline, pause = time.monotonic() + self._patience_seconds, 0.2
        while True:
            try:
                response = self._http.post(**self._embedding_call(model, texts, parent_request_id))
                if response.status_code not in _WORTH_ANOTHER_TRY or time.monotonic() > deadline:
                    return _vectors(response)
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"no gateway answers at {self.base_url}: {error}") from None
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    async def embed_async(
        self, model: str, texts: list[str], *, parent_request_id: str | None = None
    ) -> npt.NDArray[np.float32]:
        """The same for an event loop, which it does not block."""
        response = await self._post(**self._embedding_call(model, texts, parent_request_id))
        return _vectors(response)

    async def ask_async(
        self, path: str, body: dict[str, Any], *, parent_request_id: str | None = None
    ) -> dict[str, Any]:
        """The JSON that a POST is answered with, such as to /v1/chat/completions. Raises what the gateway answered."""
        headers = {"authorization": f"Bearer {self._token}"}
        if parent_request_id is not None:
            headers["x-mosaic-parent-request-id"] = parent_request_id
        response = await self._post(url=self.base_url + path, headers=headers, json=body)
        if response.status_code != 200:
            raise _error(response)
        answer: dict[str, Any] = response.json()
        return answer

    async def _post(self, **call: Any) -> httpx.Response:
        loop = asyncio.get_running_loop()
        if self._async_http is None or self._async_http[0] is not loop:
            self._async_http = (loop, httpx.AsyncClient(timeout=self._timeout_seconds))
        deadline, pause = time.monotonic() + self._patience_seconds, 0.2
        while True:
            try:
                response = await self._async_http[1].post(**call)
                if response.status_code not in _WORTH_ANOTHER_TRY or time.monotonic() > deadline:
                    return response
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"no gateway answers at {self.base_url}: {error}") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _embedding_call(self, model: str, texts: list[str], parent_request_id: str | None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._token}"}
        if parent_request_id is not None:
            headers["x-mosaic-parent-request-id"] = parent_request_id
        # base64 is a quarter of the bytes of decimal floats and exact
        body = {"model": model, "input": texts, "encoding_format": "base64"}
        return {"url": f"{self.base_url}/v1/embeddings", "headers": headers, "json": body}


def _rebuild(base_url: str, token: str, timeout_seconds: float, patience_seconds: float) -> Client:
    return Client(base_url, token, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)


def _vectors(response: httpx.Response) -> npt.NDArray[np.float32]:
    if response.status_code != 200:
        raise _error(response)
    items = sorted(response.json()["data"], key=lambda item: int(item["index"]))
    return np.stack([np.frombuffer(b64decode(item["embedding"]), dtype="<f4") for item in items])


def _error(response: httpx.Response) -> MosaicError:
    try:
        body = response.json()
        message = body["error"]["message"] if "error" in body else body["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:300]
    return _BY_STATUS.get(response.status_code, Unavailable)(f"{response.url}: {response.status_code} {message}")
