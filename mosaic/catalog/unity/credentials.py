"""Temporary credentials for the files of a table or a model version.

On local disk there is nothing to give: whoever reaches the files reads them, and the answer says only where they are.
For an object store somebody has to make credentials that end and reach no further than one folder; who does is handed
in. The platform's own keys are never given away.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import Call, Query, route
from mosaic.catalog.unity.places import is_local, to_uri
from mosaic.catalog.unity.surface import Surface, milliseconds
from mosaic.errors import BadRequest, Unimplemented
from mosaic.protocol import Wire

_LOCAL_LIFE = timedelta(hours=1)
# Old polars sends a query and no body.
_OLD_WAY = (Query("table_id", "as in the body"), Query("operation", "as in the body"))


class Credentials(Wire):
    """What opens one folder of an object store until they expire; exactly one kind of them is set."""

    expires_at: datetime
    aws: shapes.AwsCredentials | None = None
    azure: shapes.AzureSas | None = None
    gcp: shapes.GcpToken | None = None
    endpoint_url: str | None = None
    """The store's own address, where it is not the cloud's."""


Vend = Callable[[str, bool], Credentials]
"""(address of a folder in an object store, whether to write) -> credentials for it alone."""


class CredentialRoutes:
    def __init__(self, surface: Surface, vend: Vend | None) -> None:
        self._catalog, self._authorize, self._vend = surface.catalog, surface.authorize, vend

    def routes(self, base: str, base_20: str) -> list[Route]:
        of_table, of_version = shapes.TableCredentials, shapes.ModelVersionCredentials
        path = "temporary-table-credentials"
        return [
            route("POST", f"{base}/{path}", self.of_table, asked=of_table, query=_OLD_WAY),
            # where databricks-sdk asks
            route("POST", f"{base_20}/{path}", self.of_table, asked=of_table, query=_OLD_WAY),
            route("POST", f"{base}/temporary-model-version-credentials", self.of_model_version, asked=of_version),
        ]

    def of_table(self, call: Call) -> shapes.TemporaryCredentials:
        said = {one.name: call.find(one.name) for one in _OLD_WAY}
        asked = call.over({field: value for field, value in said.items() if value}).parse(shapes.TableCredentials)
        # An id has to be looked up before anything can be asked about its table. Ids cannot be guessed.
        table = self._catalog.get_table_by_id(asked.table_id)
        self._authorize(call.principal, "SELECT" if asked.operation == "READ" else "MODIFY", "table", table.name)
        return self._for(table.location, write=asked.operation == "READ_WRITE")

    def of_model_version(self, call: Call) -> shapes.TemporaryCredentials:
        asked = call.parse(shapes.ModelVersionCredentials)
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.model_name}", "model")
        write = asked.operation == "READ_WRITE_MODEL_VERSION"
        self._authorize(call.principal, "CREATE_MODEL_VERSION" if write else "EXECUTE", "model", name)
        version = self._catalog.get_model_version(f"{name}/{asked.version}")
        if write and version.status == "READY":
            raise BadRequest(f"{version.full_name!r} is READY; its files do not change", code="failed_precondition")
        return self._for(version.source, write=write)

    def _for(self, address: str, *, write: bool) -> shapes.TemporaryCredentials:
        if is_local(address):
            found = Credentials(expires_at=datetime.now(UTC) + _LOCAL_LIFE)
        elif self._vend is None:
            raise Unimplemented(
                f"no temporary credentials for {address!r}: nobody makes them for this object store here"
            )
        else:
            found = self._vend(address, write)
        return shapes.TemporaryCredentials(
            aws_temp_credentials=found.aws,
            azure_user_delegation_sas=found.azure,
            gcp_oauth_token=found.gcp,
            expiration_time=milliseconds(found.expires_at),
            url=to_uri(address),
            endpoint_url=found.endpoint_url,
        )
