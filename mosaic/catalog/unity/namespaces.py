"""Catalogs and schemas of the protocol, and the summary of the metastore over them."""

import uuid

from starlette.routing import Route

from mosaic.catalog import CatalogEntry, Schema, names
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import FORCE, PAGE, Call, Query, route
from mosaic.catalog.unity.places import to_uri
from mosaic.catalog.unity.surface import Surface, described

_CATALOG = Query("catalog_name", "whose schemas", required=True)


class NamespaceRoutes:
    def __init__(self, surface: Surface) -> None:
        self._catalog, self._storage, self._authorize = surface.catalog, surface.storage, surface.authorize
        self._seen, self._given = surface.seen, surface.given

    def routes(self, base: str) -> list[Route]:
        return [
            route("GET", f"{base}/metastore_summary", self.metastore_summary),
            route("POST", f"{base}/catalogs", self.create_catalog, asked=shapes.CreateCatalog),
            route("GET", f"{base}/catalogs", self.list_catalogs, query=PAGE),
            route("GET", f"{base}/catalogs/{{name}}", self.get_catalog),
            route(
                "PATCH",
                f"{base}/catalogs/{{name}}",
                self.update_catalog,
                asked=shapes.UpdateNamespace,
                conditional=True,
            ),
            route("DELETE", f"{base}/catalogs/{{name}}", self.delete_catalog, query=(FORCE,), conditional=True),
            route("POST", f"{base}/schemas", self.create_schema, asked=shapes.CreateSchema),
            route("GET", f"{base}/schemas", self.list_schemas, query=(_CATALOG, *PAGE)),
            route("GET", f"{base}/schemas/{{full_name}}", self.get_schema),
            route(
                "PATCH",
                f"{base}/schemas/{{full_name}}",
                self.update_schema,
                asked=shapes.UpdateNamespace,
                conditional=True,
            ),
            route("DELETE", f"{base}/schemas/{{full_name}}", self.delete_schema, query=(FORCE,), conditional=True),
        ]

    def metastore_summary(self, call: Call) -> shapes.MetastoreSummary:
        self._authorize(call.principal, "BROWSE", "metastore", "")
        # One root is one metastore; the id has to be the same in every replica and after every start.
        metastore_id = str(uuid.uuid5(uuid.NAMESPACE_URL, to_uri(self._storage.root)))
        return shapes.MetastoreSummary(
            metastore_id=metastore_id,
            global_metastore_id=f"mosaic:{metastore_id}",
            name="mosaic",
            owner="admin",
            storage_root=to_uri(self._storage.root),
        )

    def create_catalog(self, call: Call) -> shapes.CatalogInfo:
        asked = call.parse(shapes.CreateCatalog)
        name = names.parse_catalog(asked.name)
        by = self._authorize(call.principal, "CREATE_CATALOG", "metastore", "")
        return _catalog(
            self._catalog.catalogs.create(
                name,
                owner=call.principal.name,
                by=by,
                comment=asked.comment or "",
                properties=asked.properties,
            )
        )

    def list_catalogs(self, call: Call) -> shapes.Catalogs:
        self._authorize(call.principal, "BROWSE", "metastore", "")
        catalogs = self._seen(call.principal, "catalog", self._catalog.catalogs.list())
        page, token = call.page("catalogs", catalogs, lambda entry: entry.name)
        return shapes.Catalogs(catalogs=[_catalog(entry) for entry in page], next_page_token=token)

    def get_catalog(self, call: Call) -> shapes.CatalogInfo:
        name = names.parse_catalog(call.path["name"])
        self._authorize(call.principal, "USE_CATALOG", "catalog", name)
        return _catalog(self._catalog.catalogs.get(name))

    def update_catalog(self, call: Call) -> shapes.CatalogInfo:
        name = names.parse_catalog(call.path["name"])
        asked = call.parse(shapes.UpdateNamespace, name=name)
        by = self._authorize(call.principal, "MANAGE", "catalog", name)
        return _catalog(self._catalog.catalogs.update(name, by=by, **self._given(call, asked)))

    def delete_catalog(self, call: Call) -> shapes.Nothing:
        name = names.parse_catalog(call.path["name"])
        by = self._authorize(call.principal, "MANAGE", "catalog", name)
        self._catalog.catalogs.delete(name, force=call.flag("force"), by=by, expected_etag=call.expected_etag)
        return shapes.Nothing()

    def create_schema(self, call: Call) -> shapes.SchemaInfo:
        asked = call.parse(shapes.CreateSchema)
        name = names.parse_schema(f"{asked.catalog_name}.{asked.name}")
        by = self._authorize(call.principal, "CREATE_SCHEMA", "catalog", name.partition(".")[0])
        return _schema(
            self._catalog.schemas.create(
                name,
                owner=call.principal.name,
                by=by,
                comment=asked.comment or "",
                properties=asked.properties,
            )
        )

    def list_schemas(self, call: Call) -> shapes.Schemas:
        catalog = names.parse_catalog(call.asked("catalog_name"))
        self._authorize(call.principal, "USE_CATALOG", "catalog", catalog)
        schemas = self._seen(call.principal, "schema", self._catalog.schemas.list(catalog))
        page, token = call.page(f"schemas of {catalog}", schemas, lambda schema: schema.name)
        return shapes.Schemas(schemas=[_schema(schema) for schema in page], next_page_token=token)

    def get_schema(self, call: Call) -> shapes.SchemaInfo:
        name = names.parse_schema(call.path["full_name"])
        self._authorize(call.principal, "USE_SCHEMA", "schema", name)
        return _schema(self._catalog.schemas.get(name))

    def update_schema(self, call: Call) -> shapes.SchemaInfo:
        name = names.parse_schema(call.path["full_name"])
        asked = call.parse(shapes.UpdateNamespace, full_name=name)
        by = self._authorize(call.principal, "MANAGE", "schema", name)
        return _schema(self._catalog.schemas.update(name, by=by, **self._given(call, asked)))

    def delete_schema(self, call: Call) -> shapes.Nothing:
        name = names.parse_schema(call.path["full_name"])
        by = self._authorize(call.principal, "MANAGE", "schema", name)
        self._catalog.schemas.delete(name, force=call.flag("force"), by=by, expected_etag=call.expected_etag)
        return shapes.Nothing()


def _catalog(entry: CatalogEntry) -> shapes.CatalogInfo:
    return shapes.CatalogInfo(
        name=entry.name, full_name=entry.name, id=entry.id, properties=entry.properties, **described(entry)
    )


def _schema(schema: Schema) -> shapes.SchemaInfo:
    catalog, name = schema.name.split(".")
    return shapes.SchemaInfo(
        name=name,
        catalog_name=catalog,
        full_name=schema.name,
        schema_id=schema.id,
        properties=schema.properties,
        **described(schema),
    )
