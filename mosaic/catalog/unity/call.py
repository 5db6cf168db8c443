"""One call of the protocol: who asks, for what; how its body is read, its answer written, its list cut into pages."""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mosaic.catalog.securables import ONE_OF
from mosaic.errors import BadRequest, UnsupportedField
from mosaic.protocol import Principal, Wire
from mosaic.runtime.asgi import read_json
from mosaic.settings import explain

MOST_ROWS = 10_000
"""A list is never longer, asked or not; what is beyond comes with the next page's token."""
_NOT_KEPT = re.compile("[\0\ud800-\udfff]")
_ETAG = re.compile(r'W/"[!#-~]*"|"([!#-~]*)"')
"""A weak one is like no other: ours are strong."""
_ETAGS = re.compile(rf"[ \t,]*(?:(?:{_ETAG.pattern})[ \t]*(?:,[ \t,]*|$))+")
"""RFC 9110: a list of which one must match, whose empty places are passed over."""
_MAX_BODY_BYTES = 4 * 1024 * 1024

Shape = TypeVar("Shape", bound=BaseModel)
Row = TypeVar("Row")


@dataclass(frozen=True)
class Query:
    """A query parameter that a route honours, as the OpenAPI document says it."""

    name: str
    about: str
    type: Literal["string", "boolean", "integer"] = "string"
    required: bool = False


PAGE = (
    Query("max_results", f"rows of a page; without it, or with 0, all, up to {MOST_ROWS}", "integer"),
    Query("page_token", "the next_page_token of the page before"),
)
IN_SCHEMA = (
    Query("catalog_name", "the catalog of the schema", required=True),
    Query("schema_name", "what is in which", required=True),
)
FORCE = Query("force", "whether to delete it with all that it holds", "boolean")
PRINCIPAL = Query("principal", "whose privileges")


@dataclass(frozen=True)
class Call:
    """A request, read; handlers are plain functions of it and run in a thread, since the catalog is a database."""

    principal: Principal
    path: dict[str, str]
    query: QueryParams
    body: Any
    agent: str
    """What the client says it is."""
    if_match: str | None
    """The header, as it came."""
    operation: "Operation"

    def parse(self, shape: type[Shape], **in_path: str) -> Shape:
        """The body as a shape; what the path says too may be repeated in it, but not otherwise.

        A field that is null asks for nothing, also one that is not known. Values of a shape that `hides` are in no
        message.
        """
        assert shape is self.operation.asked, f"{self.operation.path} parses a shape that it does not state"
        if not isinstance(self.body, dict):
            raise BadRequest(f"the body must be a JSON object, not {type(self.body).__name__}")
        body = {field: value for field, value in self.body.items() if value is not None}
        for field, value in in_path.items():
            repeated = body.pop(field, None)
            if repeated is not None and str(repeated).lower() != value.lower():
                said = "the field" if _hides(shape) else f"field {field!r} = {repeated!r}"
                raise BadRequest(f"{said}, but the path says {value!r}", param=field)
        _check_texts(body, shown=not _hides(shape))
        try:
            return shape.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(str(part) for part in first["loc"]) or None
            kind = UnsupportedField if first["type"] == "extra_forbidden" else BadRequest
            told = explain(error, shape) if not _hides(shape) else f"field {param!r}: {first['msg'].lower()}"
            raise kind(told, param=param) from None

    def over(self, defaults: dict[str, str]) -> "Call":
        """The same call, its body on top of `defaults`."""
        return replace(self, body={**defaults, **self.body}) if isinstance(self.body, dict) else self

    def find(self, parameter: str) -> str | None:
        """A query parameter; None if it is not there or empty."""
        stated = {one.name for one in self.operation.query}
        assert parameter in stated, f"{self.operation.path} reads {parameter!r}, which it does not state"
        return self.query.get(parameter) or None

    def asked(self, parameter: str) -> str:
        """A query parameter that must be there."""
        value = self.find(parameter)
        if not value:
            raise BadRequest(f"query parameter {parameter!r} is required", param=parameter)
        return value

    def flag(self, parameter: str) -> bool:
        """A query parameter that is true or false; false if it is not there."""
        value = (self.find(parameter) or "false").lower()
        if value not in ("true", "false"):
            raise BadRequest(f"query parameter {parameter!r} = {value!r}: it must be true or false", param=parameter)
        return value == "true"

    @property
    def expected_etag(self) -> str | None:
        """The etag that what is changed must have by If-Match, or several of which one; None if any will do."""
        assert self.operation.conditional, f"{self.operation.path} reads If-Match, which it does not state"
        if self.if_match is None or self.if_match.strip() == "*":
            return None
        if _ETAGS.fullmatch(self.if_match.strip()) is None:
            raise BadRequest(
                f"If-Match: {self.if_match[:80]} must be etags in quotes, as the ETag header gave them, with commas "
                'between, or "*" without quotes',
                param="If-Match",
            )
        return ONE_OF.join(found[1] or found[0] for found in _ETAG.finditer(self.if_match))

    def every(self, parameter: str) -> list[str]:
        """A query parameter that may be repeated; those that are not empty."""
        self.find(parameter)
        return [value for value in self.query.getlist(parameter) if value]

    def page(self, query: str, rows: Sequence[Row], key: Callable[[Row], str]) -> tuple[list[Row], str | None]:
        """The page of `rows` (sorted by `key`, which is unique) that is asked for, and the next one's token.

        `query` says what is listed: a token of another list is refused. Without max_results (or with 0, as
        databricks-sdk says it) everything is one page, since there are clients that ask for no second one.
        """
        digest = hashlib.sha256(query.encode()).hexdigest()[:16]
        after = _after(self.find("page_token"), digest)
        rest = [row for row in rows if after is None or key(row) > after]
        page = rest[: self._most_rows()]
        if len(page) == len(rest):
            return page, None
        return page, base64.urlsafe_b64encode(json.dumps([digest, key(page[-1])]).encode()).decode()

    def _most_rows(self) -> int:
        text = self.find("max_results") or "0"
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise BadRequest(f"max_results = {text!r} must be a whole number from 0", param="max_results")
        return min(int(text), MOST_ROWS) or MOST_ROWS


@dataclass(frozen=True)
class Operation:
    """A route's handler, and what of a request it honours: its body's shape and its query parameters.

    A handler that reads what its operation does not state fails: the OpenAPI document is made of this.
    """

    method: str
    path: str
    handler: Callable[[Call], Wire]
    asked: type[BaseModel] | None
    query: tuple[Query, ...]
    conditional: bool
    """Whether If-Match is honoured."""

    async def answer(self, http: Request) -> Response:
        """A body is read only where the method has a use for one."""
        reads = self.method in ("POST", "PUT", "PATCH") and _has_body(http)
        body = await read_json(http.scope, http.receive, _MAX_BODY_BYTES) if reads else {}
        lines = http.headers.getlist("if-match")
        agent, if_match = http.headers.get("user-agent", ""), ", ".join(lines) if lines else None
        if if_match is not None and not self.conditional and self.method != "GET":
            raise BadRequest(f"If-Match is not honoured by {self.method} {self.path}; leave it out", param="If-Match")
        call = Call(http.state.principal, http.path_params, http.query_params, body, agent, if_match, self)
        answer = await asyncio.to_thread(self.handler, call)
        etag = getattr(answer, "etag", None)
        headers = {} if etag is None else {"etag": f'"{etag}"'}
        return JSONResponse(answer.model_dump(mode="json"), headers=headers)


def route(
    method: str,
    path: str,
    handler: Callable[[Call], Wire],
    *,
    asked: type[BaseModel] | None = None,
    query: tuple[Query, ...] = (),
    conditional: bool = False,
) -> Route:
    """A route whose handler is a plain function; it answers the shape that the handler's annotation names.

    A `conditional` one honours If-Match; an answer with an `etag` says it as the header ETag.
    """
    return Route(path, Operation(method, path, handler, asked, query, conditional).answer, methods=[method])


def _hides(shape: type[BaseModel]) -> bool:
    return bool(getattr(shape, "hides", False))


def _has_body(http: Request) -> bool:
    return http.headers.get("content-length", "0") != "0" or "transfer-encoding" in http.headers


def _after(token: str | None, digest: str) -> str | None:
    if token is None:
        return None
    try:
        of, after = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
    except (ValueError, TypeError, RecursionError):
        raise BadRequest(f"page_token {token[:80]!r} is not one that this list gave", param="page_token") from None
    if of != digest or not isinstance(after, str):
        raise BadRequest(f"page_token {token[:80]!r} belongs to another list; ask that one", param="page_token")
    return after


def _check_texts(body: object, *, shown: bool) -> None:
    """No database keeps a NUL or half a surrogate pair in text."""
    left = [body]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and _NOT_KEPT.search(value):
            which = f"text {value[:80]!r}" if shown else "a text"
            raise BadRequest(f"{which} has a NUL or a lone surrogate, which cannot be kept")
