"""The gateway's HTTP surface: paths to handlers, bodies to requests, and a row for every request, refused ones too."""

from collections.abc import AsyncIterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, MosaicError, UnsupportedField
from mosaic.gateway.asking import Asking
from mosaic.gateway.cache import Cached
from mosaic.gateway.chat import Chat, Retriever
from mosaic.gateway.completions import Completions
from mosaic.gateway.embed import Embeddings
from mosaic.gateway.endpoints import Endpoint, Endpoints
from mosaic.gateway.feedback import Feedback, FeedbackRequest
from mosaic.gateway.images import as_logged
from mosaic.gateway.limits import Limits
from mosaic.gateway.messages import Counts, Messages
from mosaic.gateway.messages_requests import CountRequest, MessagesRequest
from mosaic.gateway.moderate import ModerationRequest, Moderations
from mosaic.gateway.openapi import document
from mosaic.gateway.predict import Predictions
from mosaic.gateway.requests import ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest, ScoreRequest
from mosaic.gateway.responses import Responses
from mosaic.gateway.responses_requests import ResponsesRequest
from mosaic.gateway.score import Scores
from mosaic.ids import new_id
from mosaic.monitoring import Exchange, Ledger
from mosaic.protocol import PREDICT_INPUTS, Principal
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.runtime.asgi import check_depth, header, is_anthropic, read_json
from mosaic.settings import explain

Parsed = TypeVar("Parsed", bound=BaseModel)


class GatewayRoutes:
    """`/v1/*` in OpenAI's shape, `/v1/messages` in Anthropic's, and Databricks' `invocations`."""

    def __init__(
        self,
        endpoints: Endpoints,
        limits: Limits,
        asking: Asking,
        retrieve: Retriever,
        *,
        max_body_bytes: int,
        feedback: Feedback | None = None,
    ) -> None:
        """Without `feedback` there is no path for it."""
        self._endpoints, self._max_body_bytes, self._feedback = endpoints, max_body_bytes, feedback
        cached = Cached(asking, endpoints.groups_of)
        self._chat = Chat(endpoints, limits, cached, retrieve)
        self._messages, self._responses = Messages(self._chat), Responses(self._chat)
        self._moderations = Moderations(endpoints, limits, asking)
        self._counts = Counts(endpoints, limits, asking)
        self._completions = Completions(endpoints, limits, cached)
        self._embeddings = Embeddings(endpoints, limits, asking)
        self._scores = Scores(endpoints, limits, asking)
        self._predictions = Predictions(endpoints, limits, asking)

    def routes(self) -> list[Route]:
        told = [] if self._feedback is None else [Route("/v1/feedback", self.feedback, methods=["POST"])]
        return [
            *told,
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/completions", self.text_completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/score", self.score, methods=["POST"]),
            Route("/v1/rerank", self.rerank, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/moderations", self.moderations, methods=["POST"]),
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
            Route("/v1/openapi.json", self.openapi, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.get_model, methods=["GET"]),
            Route("/serving-endpoints/{name}/invocations", self.invocations, methods=["POST"]),
        ]

    async def chat_completions(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return await _generated(self._chat, parse(ChatRequest, body), exchange)

    async def text_completions(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return await _generated(self._completions, parse(CompletionRequest, body), exchange)

    async def embeddings(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return JSONResponse(await self._embeddings.answer(parse(EmbeddingRequest, body), exchange))

    async def score(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return JSONResponse(await self._scores.score(parse(ScoreRequest, body), exchange))

    async def rerank(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return JSONResponse(await self._scores.rerank(parse(RerankRequest, body), exchange))

    async def responses(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return await _generated(self._responses, parse(ResponsesRequest, body), exchange)

    async def moderations(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return JSONResponse(await self._moderations.answer(parse(ModerationRequest, body), exchange))

    async def messages(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return await _generated(self._messages, parse(MessagesRequest, body), exchange)

    async def count_tokens(self, http: Request) -> Response:
        exchange, body = await self._accept(http)
        return JSONResponse(await self._counts.count(parse(CountRequest, body), exchange))

    async def invocations(self, http: Request) -> Response:
        """Databricks' one path for every task; what is asked is told by the fields of the body."""
        name = http.path_params["name"]
        exchange, body = await self._accept(http, model=name)
        known = {"messages", "prompt", "input", "query", "text_1", *PREDICT_INPUTS}
        if not isinstance(body, dict) or not known & body.keys():
            raise BadRequest(
                "the body needs messages (for a chat), prompt (for a completion), input (for embeddings), query (to "
                f"rerank), text_1 (to score), or one of {list(PREDICT_INPUTS)} (to predict)"
            )
        if "messages" in body:
            return await _generated(self._chat, parse(ChatRequest, body), exchange)
        if "prompt" in body:
            return await _generated(self._completions, parse(CompletionRequest, body), exchange)
        if "query" in body:
            return JSONResponse(await self._scores.rerank(parse(RerankRequest, body), exchange))
        if "text_1" in body:
            return JSONResponse(await self._scores.score(parse(ScoreRequest, body), exchange))
        if "input" in body:
            return JSONResponse(await self._embeddings.answer(parse(EmbeddingRequest, body), exchange))
        asked = {field: value for field, value in body.items() if field != "model"}
        return JSONResponse(await self._predictions.answer(name, asked, exchange))

    async def feedback(self, http: Request) -> Response:
        """What somebody says of an answer; it is in its own table, so that the request's row has none of its text."""
        assert self._feedback is not None, "there is no route otherwise"
        body = await read_json(http.scope, http.receive, self._max_body_bytes)
        check_depth(body)
        _text(body)
        told = parse(FeedbackRequest, body)
        return JSONResponse(await self._feedback.take(told, http.state.principal))

    async def openapi(self, http: Request) -> Response:
        return JSONResponse(document())

    async def list_models(self, http: Request) -> Response:
        usable = await self._endpoints.list(http.state.principal)
        return JSONResponse({"object": "list", "data": [_model(endpoint) for endpoint in usable]})

    async def get_model(self, http: Request) -> Response:
        exchange: Exchange = http.state.exchange
        endpoint = await self._endpoints.use(http.path_params["name"], http.state.principal, exchange.request_id)
        return JSONResponse(_model(endpoint))

    async def _accept(self, http: Request, *, model: str | None = None) -> tuple[Exchange, object]:
        """The body, noted in the row before anything is made of it; `model` is the endpoint if the path names it."""
        exchange: Exchange = http.state.exchange
        body = await read_json(http.scope, http.receive, self._max_body_bytes)
        check_depth(body)
        if model is not None and isinstance(body, dict):
            if body.get("model", model) != model:
                raise BadRequest(f"model = {body['model']!r} is not the endpoint {model!r} of the path", param="model")
            body = {**body, "model": model}
        exchange.note_principal(http.state.principal)
        exchange.cache_control = header(http.scope, b"cache-control") or ""
        text = _text(body)
        endpoint = await self._endpoints.look(str(body.get("model"))) if isinstance(body, dict) else None
        exchange.keeping = None if endpoint is None else endpoint.keeping
        if endpoint is not None and endpoint.input_guard is not None:
            exchange.is_guarded = True
        else:
            exchange.note(request=text)
        if isinstance(body, dict):
            named = str(body.get("model")) if endpoint is None else endpoint.name
            exchange.note(endpoint=named, streamed=bool(body.get("stream", False)))
        return exchange, body


def _text(body: object) -> str:
    told = as_logged(body)
    try:
        told.encode()
    except UnicodeEncodeError:
        raise BadRequest("the body has half of a surrogate pair (\\ud800 to \\udfff), which is not text") from None
    return told


def parse(shape: type[Parsed], body: object) -> Parsed:
    """The body as the request that it should be; raises BadRequest naming the field, the value and what would be
    right."""
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(body).__name__}")
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        kind = UnsupportedField if first["type"] == "extra_forbidden" else BadRequest
        raise kind(explain(error, shape), param=_field(first["loc"], body)) from None


def _field(location: tuple[int | str, ...], body: object) -> str | None:
    """Where in the body an error is: its location without the names of the shapes that were tried."""
    found: list[str] = []
    for place, part in enumerate(location):
        there = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if there:
            body = body[part]  # type: ignore[index]
        elif place + 1 < len(location) or not isinstance(body, dict):
            continue
        found.append(str(part))
    return ".".join(found) or None


async def _generated(by: Chat | Completions | Messages | Responses, request: Any, exchange: Exchange) -> Response:
    """One JSON object, or a stream; `request` is what `by` answers."""
    if not request.stream:
        return JSONResponse(await by.complete(request, exchange))
    events = by.stream(request, exchange)
    # The first event is awaited before the response starts: what is refused is a status, not a broken stream.
    first = await anext(events)
    return StreamingResponse(
        _chained(first, events),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()  # type: ignore[attr-defined]  # a generator: told at once when the client has gone


def _model(endpoint: Endpoint) -> dict[str, object]:
    return {"id": endpoint.served_name, "object": "model", "created": endpoint.created_seconds, "owned_by": "mosaic"}


class Record:
    """Opens the row when a request arrives and closes it before the last byte of the answer leaves."""

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self._app, self._ledger = app, ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        exchange = state["exchange"] = self._ledger.open(
            header(scope, b"x-request-id") or new_id("req"),
            client_request_id=header(scope, b"x-client-request-id"),
            parent_request_id=header(scope, b"x-mosaic-parent-request-id"),
            method=scope["method"],
            path=scope["path"],
        )
        if is_anthropic(scope["path"]):
            exchange.tell({"request-id": exchange.request_id})  # as Anthropic's clients know it
        status = 500

        async def send_recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(name.encode(), value.encode()) for name, value in exchange.headers.items()]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            elif not message.get("more_body", False) and not exchange.closed:
                _note_outcome(exchange, state)
                await exchange.close(status)
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        finally:
            if not exchange.closed:  # cancelled, or broken off: nobody is left to wait for the disk
                _note_outcome(exchange, state)
                exchange.close_now(499)


def _note_outcome(exchange: Exchange, state: dict[str, object]) -> None:
    principal, error = state.get("principal"), state.get("error")
    if isinstance(principal, Principal):
        exchange.note_principal(principal)
    if isinstance(error, MosaicError) and exchange.is_guarded and exchange.get("endpoint_config_version") is None:
        # It was not understood, so no guard has read it, and what is said of a wrong field quotes it.
        exchange.note(error=f"{error.code}: {error.param}")
    elif isinstance(error, MosaicError):
        exchange.note_error(error)
    elif error is not None:
        exchange.note(error=str(error))


def gateway_app(routes: GatewayRoutes, ledger: Ledger, catalog: Catalog) -> ASGIApp:
    """The whole gateway as one ASGI application; the stack reads from the outside in."""
    router = Router(routes=routes.routes(), redirect_slashes=False)
    return Record(ShapeErrors(Authenticate(router, catalog.check_token, deny=catalog.deny_token)), ledger)
