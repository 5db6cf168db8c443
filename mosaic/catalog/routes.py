"""What the catalog answers beyond Unity Catalog's protocol: search, undrop and prompts under /api/2.0/mosaic; in
Databricks' shapes API tokens (`token_routes.py`) and who the caller is (`me_routes.py`). Who may do what is asked as
there, by `authorize`.
"""

from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.catalog import Catalog
from mosaic.catalog.me_routes import MeRoutes
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import CREATED_WITH, check_kind
from mosaic.catalog.prompts import PROMPT
from mosaic.catalog.records import Found, PromptVersion
from mosaic.catalog.token_routes import TokenRoutes
from mosaic.catalog.unity.authorize import Authorize, by_grants
from mosaic.catalog.unity.call import Call, Query, route
from mosaic.catalog.unity.shapes import Answer, Asked, Nothing, SetAlias
from mosaic.catalog.unity.surface import milliseconds
from mosaic.errors import BadRequest, NotFound, not_found
from mosaic.protocol import Principal

BASE = "/2.0/mosaic"
_KINDS = {"registered_model": "model"}
_SEARCH = (
    Query("words", "that all must be in the name or comment"),
    Query("tag", "key:value, or key alone for any value; may be repeated"),
    Query("kind", "of what is looked for; may be repeated"),
    Query("limit", "the most hits, 100 if not given", "integer"),
)


def catalog_routes(catalog: Catalog, *, authorize: Authorize | None = None) -> list[Route]:
    """The routes, for an application with the prefix /api that has put a Principal into `request.state.principal`."""
    asks = authorize or by_grants(catalog)
    return [
        *FindingRoutes(catalog, asks).routes(),
        *PromptRoutes(catalog, asks).routes(),
        *TokenRoutes(catalog, asks).routes(),
        *MeRoutes(catalog, asks).routes(),
    ]


class Hits(Answer):
    hits: list[Found]


class Undrop(Asked):
    securable_type: str
    full_name: str


class Undropped(Answer):
    securable_type: str
    full_name: str


class FindingRoutes:
    """Finding what is there, and bringing back what was dropped."""

    def __init__(self, catalog: Catalog, authorize: Authorize) -> None:
        self._catalog, self._authorize = catalog, authorize

    def routes(self) -> list[Route]:
        return [
            route("GET", f"{BASE}/search", self.search, query=_SEARCH),
            route("POST", f"{BASE}/undrop", self.undrop, asked=Undrop),
        ]

    def search(self, call: Call) -> Hits:
        """As far as the caller may BROWSE."""
        self._authorize(call.principal, "BROWSE", METASTORE, "")
        tags = {}
        for tag in call.every("tag"):
            key, colon, value = tag.partition(":")
            tags[key] = value if colon else None
        limit = call.find("limit") or "100"
        if not (limit.isascii() and limit.isdigit()) or len(limit) > 9:
            raise BadRequest(f"limit = {limit[:80]!r} must be a whole number", param="limit")
        hits = self._catalog.search(
            call.find("words") or "",
            principal=call.principal,
            kinds=[_KINDS.get(kind, kind) for kind in call.every("kind")],
            tags=tags,
            limit=int(limit),
        )
        return Hits(hits=hits)

    def undrop(self, call: Call) -> Undropped:
        """Who may MANAGE what it stood in brings it back; so does its owner who could make such a thing there today."""
        asked = call.parse(Undrop)
        kind = _KINDS.get(asked.securable_type.lower(), asked.securable_type.lower())
        check_kind(kind)
        if kind == METASTORE:
            raise BadRequest("the metastore is never dropped", param="securable_type")
        name = names.parse_securable(kind, asked.full_name)
        parent = name.rpartition(".")[0]
        above = "schema" if "." in parent else "catalog" if parent else METASTORE
        dropped = [one for one in self._catalog.dropped() if one.kind == kind]
        same = [one for one in dropped if one.name == name]
        privilege = "MANAGE"
        if same and self._owns(call, same[-1].owner):
            manages = self._catalog.grants.is_allowed(call.principal, "MANAGE", above, parent or METASTORE)
            privilege = "MANAGE" if manages else CREATED_WITH[kind].replace(" ", "_")
        by = self._authorize(call.principal, privilege, above, parent)
        if not same:
            beside = {one.name for one in dropped if one.name.rpartition(".")[0] == parent}
            raise not_found(f"dropped {kind}", name, beside, param="full_name")
        self._catalog.undrop(kind, name, by=by, expected_id=same[-1].id)
        return Undropped(securable_type=kind, full_name=name)

    def _owns(self, call: Call, owner: str) -> bool:
        return owner in (call.principal.name, *self._catalog.principals.groups_of(call.principal.name))


class RegisterPrompt(Asked):
    name: str
    template: str
    comment: str | None = None


class PromptInfo(Answer):
    name: str
    comment: str
    owner: str
    created_at: int
    created_by: str


class ListedPrompts(Answer):
    prompts: list[PromptInfo]


class PromptAliases(Answer):
    versions: list[int]
    aliases: dict[str, int]


class PromptRoutes:
    """A template is read with EXECUTE, as a function's code is; a prompt that is there is its managers' to change."""

    def __init__(self, catalog: Catalog, authorize: Authorize) -> None:
        self._catalog, self._prompts, self._authorize = catalog, catalog.prompts, authorize

    def routes(self) -> list[Route]:
        prompt = f"{BASE}/prompts/{{full_name}}"
        schema = Query("schema", "catalog.schema, whose prompts", required=True)
        return [
            route("POST", f"{BASE}/prompts", self.register, asked=RegisterPrompt),
            route("GET", f"{BASE}/prompts", self.list, query=(schema,)),
            route("GET", prompt, self.get),
            route("DELETE", prompt, self.delete),
            route("GET", f"{prompt}/versions/{{version}}", self.get_version),
            route("GET", f"{prompt}/aliases/{{alias}}", self.get_alias),
            route("PUT", f"{prompt}/aliases/{{alias}}", self.set_alias, asked=SetAlias),
            route("DELETE", f"{prompt}/aliases/{{alias}}", self.delete_alias),
        ]

    def register(self, call: Call) -> PromptVersion:
        """The next version; the first makes the prompt."""
        asked = call.parse(RegisterPrompt)
        name = names.parse_object(asked.name, PROMPT)
        schema = name.rpartition(".")[0]
        try:
            by, new = self._authorize(call.principal, "MANAGE", PROMPT, name), False
        except NotFound:
            by, new = self._authorize(call.principal, "CREATE_FUNCTION", "schema", schema), True
        told = asked.comment or ""
        return self._prompts.register(name, asked.template, owner=by.name, by=by, comment=told, new=new)

    def list(self, call: Call) -> ListedPrompts:
        schema = names.parse_schema(call.asked("schema"))
        self._authorize(call.principal, "USE_SCHEMA", "schema", schema)
        seen = set(self._catalog.grants.visible(call.principal, PROMPT, schema))
        return ListedPrompts(
            prompts=[
                PromptInfo(
                    name=one.name,
                    comment=one.comment,
                    owner=one.owner,
                    created_at=milliseconds(one.created_at),
                    created_by=one.created_by,
                )
                for one in self._prompts.list(schema)
                if one.name in seen
            ]
        )

    def get(self, call: Call) -> PromptAliases:
        name, _ = self._prompt(call, "BROWSE")
        now = {event.alias: event.version for event in self._prompts.alias_history(name)}
        return PromptAliases(
            versions=[one.version for one in self._prompts.versions(name)],
            aliases={alias: version for alias, version in sorted(now.items()) if version is not None},
        )

    def delete(self, call: Call) -> Nothing:
        name, by = self._prompt(call, "MANAGE")
        self._prompts.delete(name, by=by)
        return Nothing()

    def get_version(self, call: Call) -> PromptVersion:
        name, _ = self._prompt(call, "EXECUTE")
        return self._prompts.get(f"{name}/{names.parse_number(call.path['version'], name)}")

    def get_alias(self, call: Call) -> PromptVersion:
        name, _ = self._prompt(call, "EXECUTE")
        return self._prompts.get(f"{name}@{names.parse_alias(call.path['alias'])}")

    def set_alias(self, call: Call) -> PromptVersion:
        name, by = self._prompt(call, "MANAGE")
        asked, alias = call.parse(SetAlias), names.parse_alias(call.path["alias"])
        self._prompts.set_alias(name, alias, asked.version_num, by=by)
        return self._prompts.get(f"{name}/{asked.version_num}")

    def delete_alias(self, call: Call) -> Nothing:
        name, by = self._prompt(call, "MANAGE")
        self._prompts.set_alias(name, call.path["alias"], None, by=by)
        return Nothing()

    def _prompt(self, call: Call, privilege: str) -> tuple[str, Principal]:
        """The path's prompt, once the caller may do this with it, and who does it."""
        name = names.parse_object(call.path["full_name"], PROMPT)
        return name, self._authorize(call.principal, privilege, PROMPT, name)
