"""The OpenAPI document of the protocol as it is spoken here, made of the routes and shapes themselves."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.routing import Route

from mosaic.catalog.unity.authorize import Authorize
from mosaic.catalog.unity.call import Call, Operation, Query, route
from mosaic.catalog.unity.shapes import Answer, OpenApi

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "a name, field, query parameter or body that is not acceptable; the message names it",
    401: "no token, or one that is unknown, expired or revoked",
    403: "the caller may not do this",
    404: "nothing has that name; the message says what there is",
    409: "the name is taken, or somebody else changed it",
    412: "it is not as it was when it had the etag of If-Match",
    413: "the body is too large",
    501: "a part of the protocol that is not spoken here",
}
_EXAMPLES = {
    "name": "main",
    "full_name": "main.docs.entries",
    "version": "1",
    "alias": "champion",
    "securable_type": "table",
    "subentity_name": "1",
    "entity_type": "tables",
    "entity_name": "main.docs.entries",
    "tag_key": "team",
}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "the ETag that it must have, in quotes, or several with commas between of which one; * for any",
    "schema": {"type": "string"},
}
_LEVELS = {"catalogs": 1, "schemas": 2}
"""How many parts a name has, by the noun of the path; three for all others."""


class ErrorDetail(Answer):
    type: str = Field(alias="@type")
    reason: str
    """Finer than the code, such as TABLE_NOT_FOUND or INVALID_REQUEST."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """`field`: the field or parameter that the error is about; left out where it is about none."""


class Error(Answer):
    """What every refusal answers."""

    error_code: str
    message: str
    """What was asked, and what would be right or what there is."""
    details: list[ErrorDetail]
    request_id: str


def document_route(path: str, spoken: Sequence[Route], authorize: Authorize) -> Route:
    """The route that answers the document of the routes that are spoken, and of itself."""

    def read_document(call: Call) -> OpenApi:
        """This document."""
        authorize(call.principal, "BROWSE", "metastore", "")
        return made()

    @functools.cache
    def made() -> OpenApi:
        return document([*spoken, own])

    own = route("GET", path, read_document)
    return own


def document(routes: Sequence[Route]) -> OpenApi:
    """OpenAPI 3.1 for routes that `route` made."""
    operations = [operation_of(one) for one in routes]
    shapes: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [(Error, "validation")]
    shapes += [(one.asked, "validation") for one in operations if one.asked is not None]
    shapes += [(answered(one.handler), "serialization") for one in operations]
    references, definitions = models_json_schema(list(dict.fromkeys(shapes)), ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for one in operations:
        asked = None if one.asked is None else references[one.asked, "validation"]
        answer = references[answered(one.handler), "serialization"]
        paths.setdefault(one.path, {})[one.method.lower()] = _described(one, asked, answer)
    return OpenApi(
        openapi="3.1.0",
        info={
            "title": "Unity Catalog's protocol, as mosaic speaks it",
            "version": "2.1",
            "description": "Unknown fields of a body are refused, unknown query parameters are not read.",
        },
        servers=[{"url": "/api"}],
        security=[{"token": []}],
        paths=paths,
        components={
            "schemas": definitions["$defs"],
            "responses": {
                str(status): {"description": about, "content": _json(references[Error, "validation"])}
                for status, about in _ERRORS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    )


def operation_of(one: Route) -> Operation:
    """What a route that `route` made does."""
    operation = getattr(one.endpoint, "__self__", None)
    assert isinstance(operation, Operation), f"{one.path} was not made by route()"
    assert operation.asked is not None or one.methods is None or not one.methods & {"POST", "PUT", "PATCH"}, (
        f"{one.path} does not state the shape of its body"
    )
    return operation


def answered(handler: Callable[[Call], BaseModel]) -> type[BaseModel]:
    """The shape that a handler is annotated with."""
    shape = inspect.signature(handler).return_annotation
    assert isinstance(shape, type) and issubclass(shape, BaseModel), f"{handler} does not say what it answers"
    return shape


def _described(operation: Operation, asked: Any, answer: Any) -> dict[str, Any]:
    handler, noun = operation.handler, operation.path.split("/")[3]
    words = re.sub(r"[^a-z0-9]+", "_", operation.path.partition("unity-catalog")[2] or operation.path).strip("_")
    version = "" if operation.path.startswith("/2.1/") else "_2_0"
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}_{words}{version}",
        "tags": [noun],
        "summary": handler.__name__.replace("_", " "),
        "parameters": [
            *(_in_path(name, noun) for name in re.findall(r"{(\w+)}", operation.path)),
            *(_in_query(one) for one in operation.query),
            *([_IF_MATCH] if operation.conditional else []),
        ],
        "responses": {
            "200": {"description": "done", "content": _json(answer)},
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in _ERRORS},
        },
    }
    if handler.__doc__:
        described["description"] = inspect.cleandoc(handler.__doc__)
    if asked is not None:
        # A body that has to say nothing may be left out.
        fields = operation.asked.model_fields.values() if operation.asked else ()
        described["requestBody"] = {"required": any(one.is_required() for one in fields), "content": _json(asked)}
    return described


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _in_path(name: str, noun: str) -> dict[str, Any]:
    example = _EXAMPLES[name]
    if name == "full_name":
        example = ".".join(example.split(".")[: _LEVELS.get(noun, 3)])
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "example": example}


def _in_query(one: Query) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": one.type}
    if one.type == "integer":
        schema["minimum"] = 0
    return {"name": one.name, "in": "query", "required": one.required, "description": one.about, "schema": schema}
