"""Connections in Databricks' shape: an external provider with its options. Secrets come in here and never go out."""

from typing import ClassVar

from pydantic import Field
from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.records import Securable
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import PAGE, Call, route
from mosaic.catalog.unity.shapes import Answer, Asked, Kept
from mosaic.catalog.unity.surface import Surface, described
from mosaic.protocol import Principal


class CreateConnection(Asked):
    hides: ClassVar[bool] = True

    name: str
    connection_type: str = Field(min_length=1, max_length=255)
    options: shapes.Options
    """As the provider wants them; secrets such as password or api_key are kept encrypted and not shown again."""
    comment: str | None = None
    properties: shapes.Properties | None = None


class UpdateConnection(shapes.Update):
    """Of a connection; its options with its secrets are changed as a whole."""

    hides: ClassVar[bool] = True

    options: shapes.Options | None = None


class ConnectionInfo(Kept):
    name: str
    full_name: str
    connection_type: str
    options: dict[str, str]
    """Without the secrets."""
    secret_options: list[str]
    """The names of the options that are there and not shown."""
    comment: str | None
    properties: dict[str, str]
    owner: str
    created_at: int
    created_by: str
    updated_at: int
    updated_by: str | None
    connection_id: str
    securable_type: str = "CONNECTION"
    url: str | None
    credential_type: None = None
    metastore_id: None = None
    provisioning_info: None = None
    read_only: bool = False


class ListedConnections(Answer):
    connections: list[ConnectionInfo]
    next_page_token: str | None


class ConnectionRoutes:
    def __init__(self, surface: Surface) -> None:
        self._connections, self._authorize = surface.catalog.connections, surface.authorize
        self._seen, self._given = surface.seen, surface.given

    def routes(self, base: str) -> list[Route]:
        connection = f"{base}/connections/{{name}}"
        return [
            route("POST", f"{base}/connections", self.create, asked=CreateConnection),
            route("GET", f"{base}/connections", self.list, query=PAGE),
            route("GET", connection, self.get),
            route("PATCH", connection, self.update, asked=UpdateConnection, conditional=True),
            route("DELETE", connection, self.delete, conditional=True),
        ]

    def create(self, call: Call) -> ConnectionInfo:
        asked = call.parse(CreateConnection)
        name = names.parse_securable("connection", asked.name)
        by = self._authorize(call.principal, "CREATE_CONNECTION", "metastore", "")
        made = self._connections.create(
            name,
            connection_type=asked.connection_type,
            options=asked.options,
            owner=by.name,
            by=by,
            comment=asked.comment or "",
            properties=asked.properties,
        )
        return _shown(made)

    def list(self, call: Call) -> ListedConnections:
        self._authorize(call.principal, "BROWSE", "metastore", "")
        connections = self._seen(call.principal, "connection", self._connections.list())
        page, token = call.page("connections", connections, lambda connection: connection.name)
        return ListedConnections(connections=[_shown(one) for one in page], next_page_token=token)

    def get(self, call: Call) -> ConnectionInfo:
        return _shown(self._connections.get(self._connection(call, "BROWSE")[0]))

    def update(self, call: Call) -> ConnectionInfo:
        name, by = self._connection(call, "MANAGE")
        asked = call.parse(UpdateConnection, name=name)
        return _shown(self._connections.update(name, by=by, **self._given(call, asked)))

    def delete(self, call: Call) -> shapes.Nothing:
        """The secrets go at once; a connection that is undropped needs them again."""
        name, by = self._connection(call, "MANAGE")
        self._connections.delete(name, by=by, expected_etag=call.expected_etag)
        return shapes.Nothing()

    def _connection(self, call: Call, privilege: str) -> tuple[str, Principal]:
        """The path's connection, once the caller may do this with it, and who does it."""
        name = names.parse_securable("connection", call.path["name"])
        return name, self._authorize(call.principal, privilege, "connection", name)


def _shown(connection: Securable) -> ConnectionInfo:
    spec = connection.spec
    return ConnectionInfo(
        name=connection.name,
        full_name=connection.name,
        connection_type=spec["connection_type"],
        options=spec["options"],
        secret_options=spec["secrets"],
        properties=connection.properties,
        connection_id=connection.id,
        url=spec["options"].get("base_url") or spec["options"].get("host"),
        **described(connection),
    )
