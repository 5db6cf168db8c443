"""What every HTTP application of the platform wears: a request id, errors in the shape of the path, who is calling.

    RequestId(Serve(ShapeErrors(Authenticate(application))))

Three plain ASGI callables: no base class, no framework's middleware, so that a stream passes through untouched.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosaic.errors import (
    BadRequest,
    MethodNotAllowed,
    MosaicError,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
)
from mosaic.ids import new_id
from mosaic.protocol import Principal

logger = logging.getLogger(__name__)

_LONGEST_USER_AGENT = 500

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


ALL_APIS = "all-apis"
SCOPES = {
    ALL_APIS: "every surface",
    "model-serving": "asking models and agents, and their endpoints",
    "unity-catalog": "the catalog in Unity Catalog's protocol",
    "vector-search": "asking indexes",
    "sql": "SQL over tables",
    "mlflow": "experiments, runs, traces and their files",
    "platform": "status, why, impact, and what else is the platform's own",
}
"""What a token may be for."""
_SCOPE_OF_PATH = {
    "/v1": "model-serving",
    "/serving-endpoints": "model-serving",
    "/api/2.0/serving-endpoints": "model-serving",
    "/api/2.1/unity-catalog": "unity-catalog",
    "/api/2.0/unity-catalog": "unity-catalog",
    "/api/2.0/vector-search": "vector-search",
    "/api/2.0/sql": "sql",
    "/api/2.0/mlflow": "mlflow",
    "/api/3.0/mlflow": "mlflow",
    "/api/2.0/mlflow-artifacts": "mlflow",
    "/api/2.0/mosaic": "platform",
}
"""By the beginning of a path; what is not here needs ALL_APIS."""

UNITY_PATHS = ("/api/2.1/unity-catalog", "/api/2.0/unity-catalog")
UNITY_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "INVALID_ARGUMENT",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}
UNITY_OWN_CODES = {
    "CATALOG_NOT_FOUND",
    "SCHEMA_NOT_FOUND",
    "TABLE_NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
}
"""Codes of ours that Unity Catalog has too."""


ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Of the others those below 500 are `invalid_request_error`, and the rest `api_error`."""


def is_anthropic(path: str) -> bool:
    """Whether who asks there speaks Anthropic's protocol."""
    return path.startswith(ANTHROPIC_PATH) and path[len(ANTHROPIC_PATH) :][:1] in ("", "/")


def error_body(error: MosaicError, path: str, request_id: str) -> dict[str, Any]:
    """The error as the client of that path expects it: Unity Catalog, other `/api` Databricks, `/v1/messages`
    Anthropic, anything else OpenAI."""
    if is_anthropic(path):
        return anthropic_error_body(error, request_id)
    if path.startswith(UNITY_PATHS):
        return unity_error_body(error, request_id)
    if path.startswith("/api/"):
        return {"error_code": error.code.upper(), "message": error.message, "request_id": request_id}
    kind = OPENAI_TYPES.get(error.status, "server_error")
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code},
        "request_id": request_id,
    }


def anthropic_error_body(error: MosaicError, request_id: str) -> dict[str, Any]:
    """Anthropic's error, whose types are its own; which field it is about is in the message."""
    kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


def unity_error_body(error: MosaicError, request_id: str) -> dict[str, Any]:
    """Unity Catalog's error: one of its codes, and in the details ours, which may be finer."""
    known = error.code.upper()
    code = known if known in UNITY_OWN_CODES else UNITY_CODES.get(error.status, "INTERNAL")
    detail: dict[str, Any] = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": known}
    if error.param is not None:
        detail["metadata"] = {"field": error.param}
    return {"error_code": code, "message": error.message, "details": [detail], "request_id": request_id}


class RequestId:
    """Gives every request an id that is ours (`req_...`), as its `x-request-id` header; Serve echoes that on the
    response.

    It is a key of the inference table, so a client cannot choose it: what the client calls its request moves to
    `x-client-request-id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            theirs = header(scope, b"x-client-request-id") or header(scope, b"x-request-id")
            headers = [pair for pair in scope["headers"] if pair[0] not in (b"x-request-id", b"x-client-request-id")]
            headers.append((b"x-request-id", new_id("req").encode()))
            if theirs is not None:
                headers.append((b"x-client-request-id", theirs.encode("latin-1")))
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def serve_middlewares() -> list[Middleware]:
    """What Serve puts around every application's HTTP (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names this function).

    It has to stand outside of Serve's own, which would otherwise give the response a second id.
    """
    return [Middleware(RequestId)]


class ShapeErrors:
    """Turns what was raised into a response, as long as none has begun; also the framework's own 404 and 405."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = False

        async def send_watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        scope.setdefault("state", {})
        # Starlette's router raises rather than answers its own 404 and 405 when it believes to be inside an
        # application.
        scope.setdefault("app", self)
        try:
            await self._app(scope, receive, send_watched)
        except MosaicError as error:
            if begun:
                raise
            await send_error(error, scope, send)
        except HTTPException as error:
            if begun:
                raise
            await send_error(_from_framework(error, scope), scope, send)
        except Exception:
            # The one boundary where everything is caught: a client gets a shape, the log gets the traceback.
            logger.exception("request %s failed", header(scope, b"x-request-id"))
            if begun:
                raise
            await send_error(MosaicError("something failed inside the platform; its log has the reason"), scope, send)


class Authenticate:
    """The one place where a token becomes a Principal (`scope["state"]["principal"]`); without one it is a 401.

    `check` is the catalog's: it raises Unauthenticated. What it answered is kept for `fresh_seconds`, so that a revoked
    token is refused everywhere within that. `deny` is told of a token that is used for what it was not made for, before
    the refusal leaves; it may take its time.
    """

    def __init__(
        self,
        app: ASGIApp,
        check: Callable[[str], Principal],
        *,
        deny: Callable[[Principal, str, PermissionDenied], None] = lambda principal, path, error: None,
        fresh_seconds: float = 0.5,
    ) -> None:
        self._app, self._check, self._deny, self._fresh_seconds = app, check, deny, fresh_seconds
        self._kept: dict[str, tuple[float, Principal]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            secret = _secret(scope)
            client = scope.get("client")
            asking = {
                "request_id": header(scope, b"x-request-id"),
                "source_ip_address": client[0] if client else None,
                "user_agent": (header(scope, b"user-agent") or "")[:_LONGEST_USER_AGENT] or None,
            }
            principal = (await self._principal(secret)).model_copy(update=asking)
            try:
                require_scope(principal, scope["path"])
            except PermissionDenied as error:
                await asyncio.to_thread(self._deny, principal, scope["path"], error)
                raise
            scope["state"]["principal"] = principal
        await self._app(scope, receive, send)

    async def _principal(self, secret: str) -> Principal:
        now = time.monotonic()
        kept = self._kept.get(secret)
        if kept is not None and now - kept[0] < self._fresh_seconds:
            return kept[1]
        self._kept = {key: value for key, value in self._kept.items() if now - value[0] < self._fresh_seconds}
        principal = await asyncio.to_thread(self._check, secret)  # a database: never on the loop that streams
        self._kept[secret] = (now, principal)
        return principal


def _secret(scope: Scope) -> str:
    """The token that a request brings; raises Unauthenticated without one. Where Anthropic's protocol is spoken its
    clients may send it as they do their key."""
    kind, _, secret = (header(scope, b"authorization") or "").partition(" ")
    if kind.lower() == "bearer" and secret.strip():
        return secret.strip()
    told = "send your token as `Authorization: Bearer mosaic_...`"
    if is_anthropic(scope["path"]):
        if key := (header(scope, b"x-api-key") or "").strip():
            return key
        told += " or as `x-api-key: mosaic_...`"
    raise Unauthenticated(f"{told}; `mosaic token create` makes one")


def require_scope(principal: Principal, path: str) -> None:
    """Raises PermissionDenied for a path that the principal's token was not made for."""
    if ALL_APIS in principal.scopes:
        return
    parts = path.split("/")
    above = ("/".join(parts[:count]) for count in range(len(parts), 1, -1))
    needed = next((_SCOPE_OF_PATH[one] for one in above if one in _SCOPE_OF_PATH), ALL_APIS)
    if needed not in principal.scopes:
        raise PermissionDenied(
            f"token {principal.token_id} has the scopes {list(principal.scopes)}; {path!r} needs {needed!r}",
            code="insufficient_scope",
        )


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


async def read_json(scope: Scope, receive: Receive, limit_bytes: int) -> Any:
    """The request's JSON body; raises TooLarge as soon as it says or passes the limit, BadRequest when it is not
    JSON."""
    said = header(scope, b"content-length") or ""
    if said.isdigit() and (len(said) > 18 or int(said) > limit_bytes):
        raise _too_large(limit_bytes)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client went away before its request was complete")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:  # the second for brackets thousands deep
        raise BadRequest(f"the body is not JSON: {error}") from None


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {limit_bytes} bytes", code="request_too_large")


def check_depth(body: Any, deepest: int = 64) -> None:
    """Raises BadRequest for what is nested so deeply that it cannot be passed on; without recursion itself."""
    level, depth = [body], 0
    while level:
        depth += 1
        if depth > deepest:
            raise BadRequest(f"the body is nested more than {deepest} levels deep")
        level = [
            one
            for each in level
            for one in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
            if isinstance(one, dict | list)
        ]


async def send_error(error: MosaicError, scope: Scope, send: Send) -> None:
    """Answer with the error in the path's shape."""
    state = scope["state"]
    state["error"] = error
    body = json.dumps(error_body(error, scope["path"], header(scope, b"x-request-id") or "")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 405:
        headers.append((b"allow", ", ".join(_methods(scope)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _from_framework(error: HTTPException, scope: Scope) -> MosaicError:
    if error.status_code == 404:
        return NotFound(f"no path {scope['path']!r} here", code="path_not_found")
    if error.status_code == 405:
        takes = ", ".join(_methods(scope)) or "another method"
        return MethodNotAllowed(f"{scope['method']} is not for {scope['path']!r}; it takes {takes}")
    shaped = MosaicError(str(error.detail))
    shaped.status = error.status_code
    return shaped


def _methods(scope: Scope) -> list[str]:
    """All that the path takes: the framework looks at the first of its routes alone."""
    routes = [one for one in getattr(scope.get("router"), "routes", []) if one.matches(scope)[0] is Match.PARTIAL]
    exact = [one for one in routes if "{" not in one.path]  # `/models/versions` is not the model `versions`
    return sorted(set().union(*(one.methods or set() for one in exact or routes)))
