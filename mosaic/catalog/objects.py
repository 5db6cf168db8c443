"""Volumes, functions and agents: a name, an owner and a spec, one class for all; what a spec may say is a function."""

import ast
import keyword
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from mosaic.catalog import names, securables, values
from mosaic.catalog.audit import Change, change, of_securable
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import Securable
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.catalog.updates import update
from mosaic.errors import BadRequest
from mosaic.protocol import Principal

_LONGEST_DEFINITION = 1024 * 1024

CheckSpec = Callable[[Mapping[str, Any], str], dict[str, Any]]
"""(what was given, the field's name) -> what is kept; raises BadRequest."""


class Securables:
    """`catalog.volumes`, `catalog.functions`, `catalog.agents`: things of one kind."""

    def __init__(self, store: Store, now: Callable[[], datetime], kind: str, check_spec: CheckSpec) -> None:
        self._store, self._now, self._kind, self._check_spec = store, now, kind, check_spec

    def create(
        self,
        name: str,
        *,
        spec: Mapping[str, Any],
        owner: str,
        comment: str = "",
        properties: Mapping[str, str] | None = None,
        by: Caller | None = None,
    ) -> Securable:
        """In a schema that exists; raises AlreadyExists, NotFound, and BadRequest for a wrong spec."""
        name, caller = names.parse_securable(self._kind, name), as_principal(by or owner)
        names.check_principal(owner)
        described: dict[str, Any] = {"comment": comment, "properties": values.texts(properties or {}, "properties")}
        kept = self._check_spec(spec, "spec")
        with self._change("create", name, caller) as going:
            stamped: dict[str, Any] = {"owner": owner, "created_by": caller.name, "now": self._now()}
            securables.insert(going.connection, self._kind, name, spec=kept, **stamped, **described)
            return as_securable(securables.get(going.connection, self._kind, name))

    def get(self, name: str) -> Securable:
        """Raises NotFound."""
        name = names.parse_securable(self._kind, name)
        with self._store.read() as connection:
            return as_securable(securables.get(connection, self._kind, name))

    def get_by_id(self, securable_id: str) -> Securable:
        """Raises NotFound."""
        with self._store.read() as connection:
            return as_securable(securables.get_by_id(connection, self._kind, securable_id))

    def find(self, name: str) -> Securable | None:
        """None if there is none of that name."""
        name = names.parse_securable(self._kind, name)
        with self._store.read() as connection:
            row = securables.find(connection, self._kind, name)
            return None if row is None else as_securable(row)

    def list(self, schema: str | None = None) -> list[Securable]:
        """By name; of one schema if given, which must exist."""
        parsed = None if schema is None else names.parse_schema(schema)
        with self._store.read() as connection:
            return [as_securable(row) for row in securables.list_rows(connection, self._kind, parsed)]

    def update(
        self,
        name: str,
        *,
        by: Caller,
        spec: Mapping[str, Any] | None = None,
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> Securable:
        """Change what is given, spec and properties as a whole. Raises NotFound, StaleEtag."""
        name, caller = names.parse_securable(self._kind, name), as_principal(by)
        changed: dict[str, Any] = {} if comment is None else {"comment": comment}
        if properties is not None:
            changed["properties"] = values.texts(properties, "properties")
        if spec is not None:
            changed["spec"] = self._check_spec(spec, "spec")
        with self._change("update", name, caller) as going:
            row = securables.get(going.connection, self._kind, name, lock=True)
            return as_securable(update(going, row, expected_etag, owner=owner, by=caller, now=self._now(), **changed))

    def delete(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away; `catalog.undrop` brings it back. Raises NotFound, StaleEtag."""
        name, caller = names.parse_securable(self._kind, name), as_principal(by)
        with self._change("delete", name, caller) as going:
            securables.delete(
                going.connection, self._kind, name, now=self._now(), by=caller.name, expected_etag=expected_etag
            )

    def _change(self, verb: str, name: str, by: Principal) -> "AbstractContextManager[Change, bool | None]":
        named = of_securable(self._kind, name)
        return change(self._store, f"{verb}{self._kind.capitalize()}", named, by=by, now=self._now())


def as_securable(row: Row) -> Securable:
    return Securable(**securables.described(row), kind=row.kind, spec=row.spec, config_version=row.config_version)


def volume_spec(given: Mapping[str, Any], field: str) -> dict[str, Any]:
    """{"volume_type": "MANAGED" or "EXTERNAL", "location": address}."""
    spec = values.json_object(given, field)
    if set(spec) != {"volume_type", "location"} or not isinstance(spec["location"], str) or not spec["location"]:
        raise BadRequest(f"the spec of a volume has volume_type and location, not {sorted(spec)}", param=field)
    if spec["volume_type"] not in ("MANAGED", "EXTERNAL"):
        raise BadRequest(f"volume_type {spec['volume_type']!r} must be MANAGED or EXTERNAL", param="volume_type")
    return spec


def function_spec(given: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Unity Catalog's words: input_params [{name, type_text, ...}], full_data_type, routine_body, routine_definition,
    external_language.

    Raises BadRequest for a parameter whose name is no identifier, and for Python that does not parse.
    """
    spec = values.json_object(given, field)
    definition = spec.get("routine_definition")
    if not isinstance(definition, str) or not 1 <= len(definition) <= _LONGEST_DEFINITION:
        raise BadRequest(
            f"routine_definition must be text of 1 to {_LONGEST_DEFINITION} characters", param="routine_definition"
        )
    body, language = spec.get("routine_body"), spec.get("external_language")
    if body not in ("SQL", "EXTERNAL"):
        raise BadRequest(f"routine_body {body!r} must be SQL or EXTERNAL", param="routine_body")
    if body == "EXTERNAL" and language != "PYTHON":
        raise BadRequest(f"external_language {language!r} must be PYTHON", param="external_language")
    params = spec.get("input_params", [])
    if not isinstance(params, list) or not all(isinstance(one, dict) for one in params):
        raise BadRequest("input_params must be a list of objects with a name and a type_text", param="input_params")
    called = [one.get("name") for one in params]
    for name in called:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise BadRequest(f"parameter {name!r} must be a name such as city", param="input_params")
    if len(set(called)) < len(called):
        raise BadRequest(f"parameters {called} have a name twice", param="input_params")
    if body == "EXTERNAL":
        _check_python(definition, called)
    return spec


def _check_python(definition: str, parameters: list[str]) -> None:
    """It is the body of a function of these parameters; only parsed, never run."""
    indented = "\n".join(f"    {line}" for line in definition.splitlines())
    try:
        ast.parse(f"def routine({', '.join(parameters)}):\n{indented}\n")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = (getattr(error, "lineno", None) or 2) - 1
        told = getattr(error, "msg", str(error))
        raise BadRequest(
            f"routine_definition is no Python: {told} in line {line}", param="routine_definition"
        ) from None
