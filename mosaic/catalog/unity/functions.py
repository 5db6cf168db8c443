"""Functions of the protocol: code with a name, typed parameters and a type; here they are kept, not run.

Whoever may know of a function sees what it takes and returns; its code only who may execute or manage it.
"""

import json
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, field_validator
from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.records import Securable
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import IN_SCHEMA, PAGE, Call, route
from mosaic.catalog.unity.shapes import LONGEST_TYPE, Answer, Asked, Kept
from mosaic.catalog.unity.spark import parse_type
from mosaic.catalog.unity.surface import Surface, described, split
from mosaic.errors import BadRequest, NotFound
from mosaic.protocol import Principal

_NOT_DELTA = ("INTERVAL", "CHAR", "TABLE_TYPE", "USER_DEFINED_TYPE")
"""Types that a function may have and a table may not; their text is taken as it is."""
_MOST_PARAMETERS = 1000


class Parameter(Asked):
    name: str
    type_text: str = Field(min_length=1, max_length=LONGEST_TYPE)
    type_json: str | None = Field(default=None, max_length=LONGEST_TYPE)
    type_name: str
    type_precision: int | None = None
    type_scale: int | None = None
    type_interval_type: str | None = None
    position: int = Field(ge=0)
    parameter_mode: Literal["IN"] | None = None
    parameter_type: Literal["PARAM", "COLUMN"] | None = None
    parameter_default: str | None = None
    comment: str | None = None


class Parameters(Asked):
    parameters: list[Parameter] = Field(default_factory=list, max_length=_MOST_PARAMETERS)

    @field_validator("parameters")
    @classmethod
    def _types_can_be_read(cls, parameters: list[Parameter]) -> list[Parameter]:
        shapes.check_types_length(parameters)
        return parameters


class OnTable(Asked):
    table_full_name: str


class OnFunction(Asked):
    function_full_name: str


class Dependency(Asked):
    """One of them."""

    table: OnTable | None = None
    function: OnFunction | None = None


class Dependencies(Asked):
    dependencies: list[Dependency] = Field(default_factory=list, max_length=_MOST_PARAMETERS)


class Function(Asked):
    name: str
    catalog_name: str
    schema_name: str
    input_params: Parameters
    data_type: str
    full_data_type: str = Field(min_length=1, max_length=LONGEST_TYPE)
    return_params: Parameters | None = None
    routine_body: Literal["SQL", "EXTERNAL"]
    routine_definition: str
    routine_dependencies: Dependencies | None = None
    parameter_style: Literal["S"] = "S"
    is_deterministic: bool = False
    sql_data_access: Literal["CONTAINS_SQL", "READS_SQL_DATA", "NO_SQL"] = "NO_SQL"
    is_null_call: bool = False
    security_type: Literal["DEFINER"] = "DEFINER"
    specific_name: str | None = None
    comment: str | None = None
    properties: str | None = None
    """A JSON object of texts, as text."""
    external_language: str | None = None


_DESCRIBED = ("name", "catalog_name", "schema_name", "comment", "properties")
_KEPT = tuple(field for field in Function.model_fields if field not in _DESCRIBED)
"""What the catalog keeps in the spec."""


class CreateFunction(Asked):
    function_info: Function


class UpdateFunction(shapes.Update):
    """Of a function; another code is another function."""


class ParameterInfo(Answer):
    name: str
    type_text: str
    type_json: str
    type_name: str
    type_precision: int
    type_scale: int
    type_interval_type: str | None
    position: int
    parameter_mode: str
    parameter_type: str
    parameter_default: str | None
    comment: str | None


class ParameterInfos(Answer):
    parameters: list[ParameterInfo]


class FunctionInfo(Kept):
    name: str
    catalog_name: str
    schema_name: str
    full_name: str
    input_params: ParameterInfos
    data_type: str
    full_data_type: str
    return_params: ParameterInfos | None
    routine_body: Literal["SQL", "EXTERNAL"]
    routine_definition: str | None
    routine_dependencies: dict[str, Any] | None
    parameter_style: str
    is_deterministic: bool
    sql_data_access: str
    is_null_call: bool
    security_type: str
    specific_name: str
    comment: str | None
    properties: str | None
    owner: str
    created_at: int
    created_by: str
    updated_at: int
    updated_by: str | None
    function_id: str
    external_language: str | None
    external_name: None = None
    sql_path: None = None
    metastore_id: None = None
    browse_only: bool
    """Whether the caller may know of it and no more; its code is null then."""


class Functions(Answer):
    functions: list[FunctionInfo]
    next_page_token: str | None


class FunctionRoutes:
    def __init__(self, surface: Surface) -> None:
        self._functions, self._grants = surface.catalog.functions, surface.catalog.grants
        self._authorize, self._seen, self._given = surface.authorize, surface.seen, surface.given

    def routes(self, base: str) -> list[Route]:
        function = f"{base}/functions/{{full_name}}"
        return [
            route("POST", f"{base}/functions", self.create, asked=CreateFunction),
            route("GET", f"{base}/functions", self.list, query=(*IN_SCHEMA, *PAGE)),
            route("GET", function, self.get),
            route("PATCH", function, self.update, asked=UpdateFunction, conditional=True),
            route("DELETE", function, self.delete, conditional=True),
        ]

    def create(self, call: Call) -> FunctionInfo:
        asked = call.parse(CreateFunction).function_info
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.name}", "function")
        by = self._authorize(call.principal, "CREATE_FUNCTION", "schema", name.rpartition(".")[0])
        made = self._functions.create(
            name,
            spec=_spec(asked),
            owner=by.name,
            by=by,
            comment=asked.comment or "",
            properties=_properties(asked.properties),
        )
        return self._shown(call.principal, made)

    def list(self, call: Call) -> Functions:
        schema = names.parse_schema(f"{call.asked('catalog_name')}.{call.asked('schema_name')}")
        self._authorize(call.principal, "USE_SCHEMA", "schema", schema)
        functions = self._seen(call.principal, "function", self._functions.list(schema))
        page, token = call.page(f"functions of {schema}", functions, lambda function: function.name)
        shown = []
        for one in page:
            with suppress(NotFound):  # dropped since the list was read
                shown.append(self._shown(call.principal, one))
        return Functions(functions=shown, next_page_token=token)

    def get(self, call: Call) -> FunctionInfo:
        return self._shown(call.principal, self._functions.get(self._function(call, "BROWSE")[0]))

    def update(self, call: Call) -> FunctionInfo:
        name, by = self._function(call, "MANAGE")
        asked = call.parse(UpdateFunction, full_name=name, name=name)
        return self._shown(call.principal, self._functions.update(name, by=by, **self._given(call, asked)))

    def delete(self, call: Call) -> shapes.Nothing:
        name, by = self._function(call, "MANAGE")
        self._functions.delete(name, by=by, expected_etag=call.expected_etag)
        return shapes.Nothing()

    def _function(self, call: Call, privilege: str) -> tuple[str, Principal]:
        """The path's function, once the caller may do this with it, and who does it."""
        name = names.parse_object(call.path["full_name"], "function")
        return name, self._authorize(call.principal, privilege, "function", name)

    def _shown(self, principal: Principal, function: Securable) -> FunctionInfo:
        reads = any(
            self._grants.is_allowed(principal, privilege, "function", function.name)
            for privilege in ("EXECUTE", "MANAGE")
        )
        spec = function.spec
        kept = {field: spec[field] for field in _KEPT if field not in ("input_params", "return_params")}
        returned = spec["return_params"]
        return FunctionInfo(
            **split(function.name),
            **described(function),
            **{**kept, "routine_definition": spec["routine_definition"] if reads else None},
            function_id=function.id,
            input_params=ParameterInfos(parameters=[ParameterInfo(**one) for one in spec["input_params"]]),
            return_params=None
            if returned is None
            else ParameterInfos(parameters=[ParameterInfo(**one) for one in returned]),
            properties=json.dumps(function.properties) if function.properties else None,
            browse_only=not reads,
        )


def _spec(asked: Function) -> dict[str, Any]:
    """What the catalog keeps; raises BadRequest for what does not go together."""
    if asked.routine_body == "EXTERNAL" and (asked.sql_data_access != "NO_SQL" or asked.return_params is not None):
        raise BadRequest(
            f"an EXTERNAL function has sql_data_access 'NO_SQL', not {asked.sql_data_access!r}, and no return_params",
            param="sql_data_access",
        )
    _check_type(asked.full_data_type, asked.data_type, "data_type")
    language = None if asked.external_language is None else asked.external_language.upper()
    return {
        **{field: getattr(asked, field) for field in _KEPT},
        "specific_name": asked.specific_name or asked.name,
        "external_language": language,
        "input_params": _parameters(asked.input_params),
        "return_params": None if asked.return_params is None else _parameters(asked.return_params),
        "routine_dependencies": None
        if asked.routine_dependencies is None
        else asked.routine_dependencies.model_dump(exclude_none=True),
    }


def _parameters(asked: Parameters) -> list[dict[str, Any]]:
    """By position, every field there."""
    return [_parameter(one) for one in sorted(asked.parameters, key=lambda one: one.position)]


def _parameter(asked: Parameter) -> dict[str, Any]:
    _check_type(asked.type_text, asked.type_name, "input_params")
    spark = None if asked.type_name in _NOT_DELTA else parse_type(asked.type_text)
    precision, scale = (0, 0) if spark is None else spark.precision_scale
    of_type = asked.type_text if spark is None else spark.json
    field = {"name": asked.name, "type": of_type, "nullable": True, "metadata": {}}
    return {
        **asked.model_dump(),
        "type_json": asked.type_json or json.dumps(field, separators=(",", ":")),
        "type_precision": asked.type_precision or precision,
        "type_scale": asked.type_scale or scale,
        "parameter_mode": asked.parameter_mode or "IN",
        "parameter_type": asked.parameter_type or "PARAM",
    }


def _check_type(text: str, name: str, field: str) -> None:
    if name in _NOT_DELTA:
        return
    spark = parse_type(text)
    if spark.name != name:
        raise BadRequest(
            f"the type {text[:80]!r} has the name {spark.name!r}, not {name[:80]!r} (of those beyond Delta's there are "
            f"{list(_NOT_DELTA)})",
            param=field,
        )


def _properties(text: str | None) -> dict[str, str]:
    try:
        found = json.loads(text or "null") or {}
    except (ValueError, RecursionError):
        found = text
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BadRequest(
            f"properties {str(text)[:80]!r} must be a JSON object of texts, written as text", param="properties"
        )
    if len(found) > shapes.MOST_PROPERTIES:
        raise BadRequest(f"{len(found)} properties; up to {shapes.MOST_PROPERTIES} fit", param="properties")
    return found
