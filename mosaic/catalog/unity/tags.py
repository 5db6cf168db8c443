"""Tags of the protocol, twice: as MLflow changes them (securable-tags, subentity-tags), and as databricks-sdk does.

Reading asks for BROWSE, changing for APPLY TAG on the securable; a version of a model is tagged under the model's.
"""

from pydantic import Field
from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.privileges import check_kind
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import PAGE, Call, Query, route
from mosaic.catalog.unity.shapes import Answer, Asked, TagKeyValue
from mosaic.catalog.unity.surface import Surface
from mosaic.errors import BadRequest, Unimplemented, not_found
from mosaic.protocol import Principal

_KINDS = {
    **{f"{kind}s": kind for kind in ("catalog", "schema", "table", "volume", "function", "model", "connection")},
    **dict.fromkeys(("registered_model", "registered_models"), "model"),
}
"""Where the clients have another word than the catalog."""
_MASK = Query("update_mask", "which fields are changed: tag_value, or * for the same", required=True)


class TagChanges(Asked):
    add_tags: list[TagKeyValue] = Field(default_factory=list, max_length=50)
    remove: list[str] = Field(default_factory=list, max_length=50)


class UpdateTags(Asked):
    changes: TagChanges


class AssignTag(Asked):
    entity_type: str
    entity_name: str
    tag_key: str
    tag_value: str = ""


class UpdateTag(Asked):
    entity_type: str | None = None
    entity_name: str | None = None
    tag_key: str | None = None
    tag_value: str = ""


class TagAssignment(Answer):
    entity_type: str
    entity_name: str
    tag_key: str
    tag_value: str
    source_type: None = None
    update_time: None = None
    updated_by: None = None


class TagAssignments(Answer):
    tag_assignments: list[TagAssignment]
    next_page_token: str | None


class TagRoutes:
    def __init__(self, surface: Surface) -> None:
        self._catalog, self._tags, self._authorize = surface.catalog, surface.catalog.tags, surface.authorize

    def routes(self, base: str) -> list[Route]:
        securable, entity = "{securable_type}/{full_name}", "{entity_type}/{entity_name}/tags"
        assignments = f"{base}/entity-tag-assignments"
        version = f"{base}/subentity-tags/{securable}/{{subentity_name}}"
        return [
            route("PATCH", f"{base}/securable-tags/{securable}", self.change, asked=UpdateTags),
            route("PATCH", version, self.change_of_version, asked=UpdateTags),
            route("POST", assignments, self.assign, asked=AssignTag),
            route("GET", f"{assignments}/{entity}", self.list, query=PAGE),
            route("GET", f"{assignments}/{entity}/{{tag_key}}", self.get),
            route("PATCH", f"{assignments}/{entity}/{{tag_key}}", self.update, asked=UpdateTag, query=(_MASK,)),
            route("DELETE", f"{assignments}/{entity}/{{tag_key}}", self.delete),
        ]

    def change(self, call: Call) -> shapes.Nothing:
        kind, name = self._securable(call)
        self._change(call, kind, name, None)
        return shapes.Nothing()

    def change_of_version(self, call: Call) -> shapes.Nothing:
        kind, name = self._securable(call)
        self._change(call, kind, name, names.parse_number(call.path["subentity_name"], name))
        return shapes.Nothing()

    def assign(self, call: Call) -> TagAssignment:
        asked = call.parse(AssignTag)
        kind, name = _entity(asked.entity_type, asked.entity_name)
        by = self._authorize(call.principal, "APPLY_TAG", kind, name)
        self._tags.change(kind, name, add={asked.tag_key: asked.tag_value}, new=True, by=by)
        return TagAssignment(**{**asked.model_dump(), "entity_name": name})

    def list(self, call: Call) -> TagAssignments:
        kind, name, _ = self._entity(call, "BROWSE")
        tags = sorted(self._tags.list(kind, name).items())
        page, token = call.page(f"tags of {kind} {name}", tags, lambda tag: tag[0])
        assigned = [_assigned(call, name, key, value) for key, value in page]
        return TagAssignments(tag_assignments=assigned, next_page_token=token)

    def get(self, call: Call) -> TagAssignment:
        kind, name, _ = self._entity(call, "BROWSE")
        return _assigned(call, name, call.path["tag_key"], self._value(call, kind, name))

    def update(self, call: Call) -> TagAssignment:
        kind, name, by = self._entity(call, "APPLY_TAG")
        key, mask = call.path["tag_key"], call.asked("update_mask")
        asked = call.parse(UpdateTag, entity_type=call.path["entity_type"], entity_name=name, tag_key=key)
        if mask not in ("tag_value", "*"):
            raise BadRequest(f"update_mask {mask[:80]!r} must be tag_value or *", param="update_mask")
        self._value(call, kind, name)
        self._tags.set(kind, name, {key: asked.tag_value}, by=by)
        return _assigned(call, name, key, asked.tag_value)

    def delete(self, call: Call) -> shapes.Nothing:
        kind, name, by = self._entity(call, "APPLY_TAG")
        self._tags.remove(kind, name, [call.path["tag_key"]], by=by)
        return shapes.Nothing()

    def _change(self, call: Call, kind: str, name: str, version: int | None) -> None:
        by = self._authorize(call.principal, "APPLY_TAG", kind, name)
        changes = call.parse(UpdateTags).changes
        added = {one.key: one.value for one in changes.add_tags}
        both = sorted(set(added) & set(changes.remove))
        if both or not (added or changes.remove):
            wrong = f"tags {both} are to be both added and removed" if both else "no tag to add or remove"
            raise BadRequest(f"{wrong} on {kind} {name!r}", param="changes")
        self._tags.change(kind, name, add=added, remove=changes.remove, version=version, by=by)

    def _securable(self, call: Call) -> tuple[str, str]:
        """MLflow calls a registered model a FUNCTION, as Databricks does inside.

        What is a function by that name is what is meant; but functions have no versions.
        """
        asked, name = call.path["securable_type"].lower(), call.path["full_name"]
        kind, name = _entity(asked, name)
        is_function = "subentity_name" not in call.path and self._catalog.functions.find(name) is not None
        if kind == "function" and not is_function and self._catalog.find_model(name) is not None:
            kind = "model"
        return kind, name

    def _entity(self, call: Call, privilege: str) -> tuple[str, str, Principal]:
        """The path's securable, once the caller may do this with it, and who does it."""
        kind, name = _entity(call.path["entity_type"], call.path["entity_name"])
        return kind, name, self._authorize(call.principal, privilege, kind, name)

    def _value(self, call: Call, kind: str, name: str) -> str:
        key, there = call.path["tag_key"], self._tags.list(kind, name)
        if key not in there:
            raise not_found("tag", key, there, param="tag_key")
        return there[key]


def _entity(asked: str, name: str) -> tuple[str, str]:
    if asked.lower() in ("column", "columns"):
        raise Unimplemented("columns have no tags of their own here; tag their table")
    kind = _KINDS.get(asked.lower(), asked.lower())
    check_kind(kind)
    if kind == names.METASTORE:
        raise BadRequest("the metastore has no tags", param="entity_type")
    return kind, names.parse_securable(kind, name)


def _assigned(call: Call, name: str, key: str, value: str) -> TagAssignment:
    return TagAssignment(entity_type=call.path["entity_type"], entity_name=name, tag_key=key, tag_value=value)
