"""MLflow's tracking server behind control: who asks, whether they may (`mlflow_rules.py`), then on to the server and
back, files as streams.

The server listens on a socket that only the platform's own user reaches, and asks for nothing; this is the one door.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from starlette.types import Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, MosaicError, NotFound, PermissionDenied, TooLarge, Unavailable
from mosaic.platform import mlflow_rules as rules
from mosaic.platform.mlflow_rules import Kind, Rule
from mosaic.platform.parts import PlatformSettings
from mosaic.protocol import Principal
from mosaic.runtime.asgi import header

Deny = Callable[[str, Mapping[str, str], PermissionDenied, Principal], None]
"""Writes a denial into the audit: the action, its parameters, the error, who was refused."""

_REQUEST_HEADERS = (b"accept", b"accept-encoding", b"content-type", b"user-agent", b"range", b"if-range")
_RESPONSE_HEADERS = (
    *(b"content-type", b"content-length", b"content-encoding", b"content-disposition", b"content-range"),
    *(b"accept-ranges", b"etag", b"last-modified", b"retry-after", b"x-content-type-options"),
)
"""What passes, each way; all else (credentials, cookies, hop-by-hop) stays on its side."""
_MOST_KEPT = 10_000


def mlflow_door(
    settings: PlatformSettings, socket: Path, catalog: Catalog, *, trusted: frozenset[str]
) -> "MlflowProxy":
    """The door to the platform's MLflow server, or to the one that the settings name."""
    return MlflowProxy(
        settings.mlflow_url or socket,
        lambda action, params, error, principal: catalog.audit.deny(action, params, error, by=principal),
        trusted=trusted,
        max_body_bytes=settings.max_body_bytes,
        max_artifact_bytes=settings.max_artifact_bytes,
    )


class _Owned(NamedTuple):
    """Whose something is; None for what was made before this door, which is the administrators'."""

    owner: str | None
    experiment_id: str | None


class _Gone(Exception):
    """The client went away."""


class MlflowProxy:
    """MLflow's API as an ASGI application; whole paths, from /api on, and a principal in the scope's state.

    `upstream` is the server's socket, or another server's address. `trusted` are the platform's own principals, which
    log for others: what they make is whose they say.
    """

    def __init__(
        self,
        upstream: Path | str,
        deny: Deny,
        *,
        trusted: frozenset[str],
        max_body_bytes: int,
        max_artifact_bytes: int,
        fresh_seconds: float = 30.0,
    ) -> None:
        local = isinstance(upstream, Path)
        self._base = "http://localhost" if local else str(upstream).rstrip("/")
        self._root = httpx.URL(self._base).raw_path.rstrip(b"/")
        # uvicorn closes what is idle for 5 s: a connection is given up here before that, or a call could be lost on it.
        limits = httpx.Limits(max_connections=100, keepalive_expiry=2.0)
        # Files have connections of their own, or a few slow ones could keep all calls waiting.
        self._client, self._files = (
            httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=str(upstream) if local else None, limits=limits),
                timeout=httpx.Timeout(60.0, connect=5.0, read=300.0),
                follow_redirects=False,
            )
            for _ in range(2)
        )
        self._deny, self._trusted = deny, trusted
        self._max_body_bytes, self._max_artifact_bytes = max_body_bytes, max_artifact_bytes
        self._fresh_seconds = fresh_seconds
        self._kept: dict[tuple[Kind, str], tuple[float, _Owned]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1000})
        method, path = scope["method"], scope["path"]
        principal: Principal = scope["state"]["principal"]
        try:
            rule = rules.find_rule(method, path)
        except PermissionDenied as error:
            await self._denied("mlflowCall", {"method": method, "path": path}, error, principal)
            raise
        with suppress(_Gone):
            if rule.is_file:
                if method != "GET":
                    await self._check_file(rule, principal)
                upload = self._upload(scope, receive) if method == "PUT" else None
                return await self._forward(scope, receive, send, upload, self._files)
            body = await _read(receive, self._max_body_bytes)
            if body or rule.changes or rule.makes:
                said = _parse(body)
                for kind, name in rules.also_named(rule, said):
                    await self._require_owner(rule, kind, rules.place_of(rule, kind, name), principal)
                said = await self._change(rule, said, principal) if rule.changes else said
                said = await self._make(rule, said, principal) if rule.makes else said
                body = _dump(said) if body or rule.makes else b""
            await self._forward(scope, receive, send, body, self._client)

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()
        await self._files.aclose()

    async def _change(self, rule: Rule, body: dict[str, Any], principal: Principal) -> dict[str, Any]:
        """The body of a change, once the caller may make it."""
        assert rule.changes is not None
        for one in rules.named_ids(rule, body):
            await self._require_owner(rule, rule.changes, rules.place_of(rule, rule.changes, one), principal)
        if principal.name not in self._trusted:
            rules.check_tags(rule, body)
        return rules.changed_by(rule, body)

    async def _make(self, rule: Rule, body: dict[str, Any], principal: Principal) -> dict[str, Any]:
        """The body of what is made, with whose it is."""
        owner = principal.name
        if owner in self._trusted:
            owner = rules.claimed_owner(body) or owner
        if (trace_id := rules.new_trace_id(rule, body)) is not None:
            with suppress(NotFound):  # a client chooses the id of its trace, and may choose one that is there
                owner = (await self._require_owner(rule, "trace", trace_id, principal)).owner or owner
        return rules.made_for(rule, body, owner)

    async def _check_file(self, rule: Rule, principal: Principal) -> None:
        path = rule.ids["artifact_path"]
        try:
            kind, name, experiment_id = rules.artifact_owner(path)
        except PermissionDenied as error:
            await self._denied(rule.action, {"path": path}, error, principal)
            raise
        owned = await self._require_owner(rule, kind, name, principal)
        if owned.experiment_id != experiment_id:
            raise BadRequest(f"{kind} {name!r} is of experiment {owned.experiment_id}, not {experiment_id!r}")

    async def _require_owner(self, rule: Rule, kind: Kind, name: str, principal: Principal) -> _Owned:
        """Raises PermissionDenied, and writes it down, unless the thing is the caller's to change; NotFound."""
        owned = await self._find(kind, name)
        if owned.owner != principal.name and not principal.is_admin and principal.name not in self._trusted:
            whose = f"belongs to {owned.owner!r}" if owned.owner else "has no owner, so it is the administrators'"
            error = PermissionDenied(f"{principal.name!r} may not change {kind} {name!r}: it {whose}")
            await self._denied(rule.action, {f"{kind}_id": name, "owner": owned.owner or ""}, error, principal)
            raise error
        return owned

    async def _denied(
        self, action: str, params: Mapping[str, str], error: PermissionDenied, principal: Principal
    ) -> None:
        await asyncio.to_thread(self._deny, action, params, error, principal)

    async def _find(self, kind: Kind, name: str) -> _Owned:
        """Whose something is, as the server's own record says; it does not change, so it is kept for a while."""
        now = time.monotonic()
        kept = self._kept.get((kind, name))
        if kept is not None and now - kept[0] < self._fresh_seconds:
            return kept[1]
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        owned = _LOOK_UP[kind][1](await self._ask(_LOOK_UP[kind][0].format(quote(name, safe="/"))))
        self._kept[(kind, name)] = (now, owned)
        return owned

    async def _ask(self, path: str) -> Any:
        try:
            answer = await self._client.get(self._base + path)
        except httpx.TransportError as error:
            raise _absent(error) from None
        if answer.is_redirect:
            raise _redirected(answer)
        if answer.status_code == 200:
            return answer.json()
        said = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
        message, code = str(said.get("message", answer.text[:200])), str(said.get("error_code", "unavailable")).lower()
        raise {404: NotFound, 400: BadRequest}.get(answer.status_code, Unavailable)(message, code=code)

    async def _upload(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The request's body as it comes; raises TooLarge once it passes the limit."""
        size = 0
        async for chunk in _chunks(receive):
            size += len(chunk)
            if size > self._max_artifact_bytes:
                raise _too_large(self._max_artifact_bytes)
            yield chunk

    async def _forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        body: bytes | AsyncIterator[bytes] | None,
        client: httpx.AsyncClient,
    ) -> None:
        """Send it on and the answer back; a client that goes away ends both."""
        headers = [(key, value) for key, value in scope["headers"] if key in _REQUEST_HEADERS]
        received = asyncio.Event()
        content: bytes | AsyncIterator[bytes] | None = body
        if body is None or isinstance(body, bytes):
            received.set()
            content = body or None
        else:
            length = header(scope, b"content-length")
            if length is not None and header(scope, b"transfer-encoding") is None:
                if int(length) > self._max_artifact_bytes:
                    raise _too_large(self._max_artifact_bytes)
                headers.append((b"content-length", length.encode()))
            content = _noting_the_end(body, received)
        # The path is written anew from what was judged: no second spelling of it gets through.
        path = quote(scope["path"], safe="/:@!$&'()*+,=~")
        url = self._base + path
        if scope["query_string"] and scope["method"] == "GET":  # MLflow reads one of no other call
            url += "?" + quote(scope["query_string"], safe="%/?:@!$&'()*+,;=~")
        request = httpx.Request(scope["method"], url, headers=headers, content=content)
        if request.url.raw_path.partition(b"?")[0] != self._root + path.encode():  # httpx walks up at dots
            raise BadRequest(f"path {scope['path']!r} must be a plain path", code="invalid_parameter_value")
        relay = asyncio.ensure_future(_relay(client, request, send))
        gone = asyncio.ensure_future(_disconnected(receive, received))
        try:
            await asyncio.wait((relay, gone), return_when=asyncio.FIRST_COMPLETED)
            if relay.done():
                relay.result()
        finally:
            for task in (relay, gone):
                task.cancel()
            await asyncio.gather(relay, gone, return_exceptions=True)


async def _relay(client: httpx.AsyncClient, request: httpx.Request, send: Send) -> None:
    try:
        answer = await client.send(request, stream=True)
    except httpx.TransportError as error:
        raise _absent(error) from None
    try:
        if answer.is_redirect:
            raise _redirected(answer)
        headers = [(key.lower(), value) for key, value in answer.headers.raw if key.lower() in _RESPONSE_HEADERS]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        async for chunk in answer.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await answer.aclose()


def _tags(pairs: Any) -> dict[str, str]:
    return {pair["key"]: pair["value"] for pair in pairs or []}


def _of_run(said: Any) -> _Owned:
    run = said["run"]
    return _Owned(_tags(run["data"].get("tags")).get(rules.STAMP), run["info"]["experiment_id"])


def _of_experiment(said: Any) -> _Owned:
    experiment = said["experiment"]
    return _Owned(_tags(experiment.get("tags")).get(rules.STAMP), experiment["experiment_id"])


def _of_model(said: Any) -> _Owned:
    info = said["model"]["info"]
    return _Owned(_tags(info.get("tags")).get(rules.STAMP), info["experiment_id"])


def _of_trace(said: Any) -> _Owned:
    info = said["trace"]["trace_info"]
    where = info.get("trace_location", {}).get("mlflow_experiment", {})
    return _Owned(info.get("tags", {}).get(rules.STAMP), where.get("experiment_id"))


def _of_assessment(said: Any) -> _Owned:
    return _Owned(said["assessment"].get("metadata", {}).get(rules.STAMP), None)


_LOOK_UP: dict[Kind, tuple[str, Callable[[Any], _Owned]]] = {
    "experiment": ("/api/2.0/mlflow/experiments/get?experiment_id={}", _of_experiment),
    "run": ("/api/2.0/mlflow/runs/get?run_id={}", _of_run),
    "model": ("/api/2.0/mlflow/logged-models/{}", _of_model),
    "trace": ("/api/3.0/mlflow/traces/{}", _of_trace),
    "assessment": ("/api/3.0/mlflow/traces/{}", _of_assessment),
}


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body's chunks; raises _Gone if the client leaves before its end."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        more = message.get("more_body", False)
        if chunk := message.get("body", b""):
            yield chunk


async def _noting_the_end(chunks: AsyncIterator[bytes], ended: asyncio.Event) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
    ended.set()


async def _disconnected(receive: Receive, received: asyncio.Event) -> None:
    """Until the client is gone; who waits for it leaves the body to the one who reads it."""
    await received.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in _chunks(receive):
        body += chunk
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
    return bytes(body)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}", code="invalid_parameter_value") from None
    if not isinstance(said, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(said).__name__}", code="invalid_parameter_value")
    return said


def _dump(said: dict[str, Any]) -> bytes:
    """The body as it goes on: strict JSON in UTF-8, since MLflow fails at numbers and text that are neither."""
    try:
        return json.dumps(said, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f'the body is not strict JSON: {error}; what is no finite number is the string "NaN" or "Infinity", '
            "and text is Unicode without halves of surrogates",
            code="invalid_parameter_value",
        ) from None


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {limit_bytes} bytes")


def _redirected(answer: httpx.Response) -> Unavailable:
    # Where to is nobody's business: the door asks one server, and sends no client to another.
    return Unavailable(f"the MLflow server redirects (status {answer.status_code}); mlflow_url must be its own address")


def _absent(error: httpx.TransportError) -> MosaicError:
    why = str(error) or type(error).__name__
    return Unavailable(
        f"the MLflow server does not answer ({why}); it is started again when it has died, so try again",
        code="temporarily_unavailable",
    )
