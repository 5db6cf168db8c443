"""The OpenAPI document of the gateway, made of the shapes that its routes read: what is asked in full, and the kinds
of what is answered."""

import functools
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mosaic.gateway.feedback import FeedbackRequest
from mosaic.gateway.messages_requests import CountRequest, MessagesRequest
from mosaic.gateway.moderate import ModerationRequest
from mosaic.gateway.requests import ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest, ScoreRequest
from mosaic.gateway.responses_requests import ResponsesRequest
from mosaic.runtime.asgi import is_anthropic

ASKED: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/score": ScoreRequest,
    "/v1/rerank": RerankRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/moderations": ModerationRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/v1/feedback": FeedbackRequest,
}
"""By the path of a POST."""
_ANSWERED = ("/v1/models", "/v1/models/{name}", "/v1/openapi.json")
_INVOCATIONS = "/serving-endpoints/{name}/invocations"
_STREAMS = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", _INVOCATIONS}
_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "the request is not acceptable as it stands, the message names the field; or a guardrail refuses its text",
    401: "no token, or one that is unknown, expired or revoked",
    403: "the caller may not use that endpoint",
    404: "no such endpoint, of which the message says which there are; no such request",
    405: "the path takes another method",
    413: "the body is too large",
    422: "the endpoint is for something else",
    429: "a limit is reached; `retry-after-ms` says until when, `x-should-retry: false` that waiting does not help",
    502: "the engine or the provider failed",
    503: "what would answer is not there now",
    504: "the provider did not answer in its time",
}


@functools.cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    shapes: list[tuple[type[BaseModel], Literal["validation"]]] = [(one, "validation") for one in ASKED.values()]
    references, definitions = models_json_schema(shapes, ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for path, shape in ASKED.items():
        paths[path] = {"post": _operation(path, shape.__doc__ or "", references[shape, "validation"])}
    chosen = {"type": "object", "description": "any of the bodies above, without model; or MLflow's, to predict"}
    paths[_INVOCATIONS] = {"post": _operation(_INVOCATIONS, "Databricks' one path for every task.", chosen)}
    for path in _ANSWERED:
        paths[path] = {"get": _operation(path, "", None)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The gateway of mosaic",
            "version": "1",
            "description": "Unknown fields are refused.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], "Error": _ERROR, "AnthropicError": _ANTHROPIC_ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, about: str, asked: dict[str, Any] | None) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if path in _STREAMS:
        answers["text/event-stream"] = {}
    error = _REFERENCE.format(model="AnthropicError" if is_anthropic(path) else "Error")
    refusals = {"application/json": {"schema": {"$ref": error}}}
    operation: dict[str, Any] = {
        "operationId": path.strip("/").replace("/", "_").replace("{", "").replace("}", "").replace(".", "_"),
        "summary": about.strip().partition("\n")[0],
        "responses": {
            "200": {"description": "the answer", "content": answers},
            **{str(status): {"description": told, "content": refusals} for status, told in _ERRORS.items()},
        },
    }
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [{**name, "description": "an endpoint's"}]
    if asked is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": asked}}}
    return operation


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT), request_id=_TEXT)
_ANTHROPIC_ERROR = _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_TEXT)
