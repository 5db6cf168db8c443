"""HTTP to a provider: one request, held to its limits of time, size and number, with every way to fail told apart."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from mosaic.errors import BadRequest, MosaicError, ProviderFailed
from mosaic.gateway.providers.addresses import guarded_sockets
from mosaic.gateway.providers.events import Events, EventTooLarge
from mosaic.gateway.providers.failures import Failures
from mosaic.serving.external import Access, ExternalModel

_KEEP_ALIVE_SECONDS = 4.0
"""Less than the 5 s after which uvicorn (and with it vLLM's server) drops an idle connection: a request that is sent
just then would fail."""
_DRAIN_SECONDS = 0.1
"""What the end of the HTTP body may take after the end of the answer, for its connection to be used again."""
_REFUSAL_BYTES = 64 * 1024


class Http:
    """The connections to all providers of one process; made at the first request, on the loop that asks."""

    def __init__(self, *, allow_private: bool = False) -> None:
        """`allow_private`: whether providers may be at addresses that are not public."""
        self._allow_private = allow_private
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0,  # each model has a limit of its own
                ttl_dns_cache=10,
                keepalive_timeout=_KEEP_ALIVE_SECONDS,
                socket_factory=guarded_sockets(allow_private=self._allow_private),
            )
            # No cookies: one tenant's would come with another's requests. Nothing is decompressed: we ask for nothing
            # compressed, and what a few bytes unfold to has no bound. aiohttp sets TCP_NODELAY.
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class Upstream:
    """Asks one external model. Raises what `failures` says, and nothing of aiohttp's, whose errors hold the headers."""

    def __init__(self, model: ExternalModel, access: Access, http: Http, headers: Mapping[str, str]) -> None:
        """`headers` are the provider's own; the key is in them."""
        self.model = model
        self.failures = Failures(f"the provider of {model.name!r}", access.api_key)
        self._base_url, self._http = access.base_url, http
        self._headers = {"content-type": "application/json", "accept-encoding": "identity", **headers}
        self._turns = asyncio.Semaphore(model.max_concurrency)
        connect = model.connect_timeout_seconds
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect)

    async def whole(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request without `stream`: a JSON object."""
        pieces = []
        async with self._asked(path, body, self.model.answer_timeout_seconds) as answer:
            async for piece in answer.pieces():
                pieces.append(piece)
        return self.parsed(b"".join(pieces))

    async def events(
        self, path: str, body: Mapping[str, Any], *, is_last: Callable[[bytes], bool]
    ) -> AsyncGenerator[bytes]:
        """The data of each event of a stream, to the one that `is_last`, or to where the provider stops."""
        events = Events()
        headers_seconds = min(self.model.headers_timeout_seconds, self.model.answer_timeout_seconds)
        async with self._asked(path, body, headers_seconds) as answer:
            async for piece in answer.pieces():
                try:
                    found = events.feed(piece)
                except EventTooLarge as error:
                    raise self.failures.failed(f"does not end its event: {error}") from None
                for data in found:
                    yield data
                    if is_last(data):
                        await answer.drain()
                        return

    def parsed(self, data: bytes) -> dict[str, Any]:
        """JSON that must be an object."""
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise self.malformed("what is not JSON") from None
        if not isinstance(found, dict):
            raise self.malformed("JSON that is no object")
        return found

    def malformed(self, what: str) -> ProviderFailed:
        return self.failures.failed(f"answered with {what}", code="provider_malformed")

    @asynccontextmanager
    async def _asked(self, path: str, body: Mapping[str, Any], headers_seconds: float) -> AsyncIterator["_Answer"]:
        async with self._turn():
            deadline = asyncio.get_running_loop().time() + self.model.answer_timeout_seconds
            async with await self._send(path, body, headers_seconds) as response:
                answer = _Answer(response, deadline, self.model, self.failures)
                if response.status != 200:
                    raise await answer.refusal()
                yield answer

    async def _send(self, path: str, body: Mapping[str, Any], seconds: float) -> aiohttp.ClientResponse:
        try:
            data = orjson.dumps(body)
        except TypeError:
            raise BadRequest("the request has a number of more than 64 bits, or text that is none") from None
        try:
            async with asyncio.timeout(seconds):
                return await self._http.session.post(
                    self._base_url + path,
                    data=data,
                    headers=self._headers,
                    allow_redirects=False,  # a redirect leads where nobody checked, with our key
                    timeout=self._timeout,
                )
        except aiohttp.ConnectionTimeoutError:
            raise self.failures.timeout("did not take the connection", self.model.connect_timeout_seconds) from None
        except TimeoutError:
            raise self.failures.timeout("did not begin to answer", seconds) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a host that no name can be
            raise self.failures.failed(f"cannot be reached: {_reason(error)}", code="provider_unreachable") from None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.model.concurrency_wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise self.failures.busy(self.model.max_concurrency, self.model.concurrency_wait_seconds) from None
        try:
            yield
        finally:
            self._turns.release()


class _Answer:
    """A response's body, piece by piece, within its limits."""

    def __init__(
        self, response: aiohttp.ClientResponse, deadline: float, model: ExternalModel, failures: Failures
    ) -> None:
        self._response, self._deadline, self._model, self._failures = response, deadline, model, failures

    async def pieces(self) -> AsyncIterator[bytes]:
        size_bytes = 0
        while piece := await self._piece():
            size_bytes += len(piece)
            if size_bytes > self._model.max_answer_bytes:
                told = f"answered with more than {self._model.max_answer_bytes:,} bytes"
                raise self._failures.failed(told, code="provider_answer_too_large")
            yield piece

    async def refusal(self) -> MosaicError:
        """The error that a status other than 200 means; its body helps if it comes."""
        pieces, size_bytes = [], 0
        try:
            while size_bytes < _REFUSAL_BYTES and (piece := await self._piece()):
                pieces.append(piece)
                size_bytes += len(piece)
        except ProviderFailed:
            pieces = []
        return self._failures.of_status(self._response.status, b"".join(pieces), self._response.headers)

    async def drain(self) -> None:
        """Read the end of the body if it is there: a connection whose answer was read to its end is used again."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._response.content.readany()
        except (TimeoutError, aiohttp.ClientError):
            pass

    async def _piece(self) -> bytes:
        """What has come since the last, b"" at the end."""
        left_seconds = self._deadline - asyncio.get_running_loop().time()
        silent_seconds = self._model.chunk_timeout_seconds
        try:
            if left_seconds <= 0:  # what has come already is read without waiting, which no timeout ends
                raise TimeoutError
            async with asyncio.timeout(min(silent_seconds, left_seconds)):
                return await self._response.content.readany()
        except TimeoutError:
            if left_seconds <= silent_seconds:
                raise self._failures.timeout("did not end its answer", self._model.answer_timeout_seconds) from None
            raise self._failures.timeout("went silent: no word", silent_seconds) from None
        except (aiohttp.ClientError, OSError):
            raise self._failures.failed("broke off its answer", code="provider_broke_off") from None


def _reason(error: Exception) -> str:
    """Why there is no connection, without the address, which is the operator's to know."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):  # whose own words name the host
        return "its certificate is not trusted"
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, OSError) and not isinstance(inner, aiohttp.ClientError):
        return (inner.strerror or str(inner)).partition("Connect call failed")[0].strip() or type(inner).__name__
    return type(error).__name__
