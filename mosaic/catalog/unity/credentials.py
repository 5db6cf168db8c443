"""Temporary credentials for the files of a table, a volume or a model version, or for a path.

On local disk there is nothing to give: whoever reaches the files reads them, and the answer says only where they are.
For an object store somebody has to make credentials that end and reach no further than one folder; who does is handed
in. The platform's own keys are never given away.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.audit import of_securable
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import Call, Query, route
from mosaic.catalog.unity.locations import Locations
from mosaic.catalog.unity.places import contains, is_local, to_address, to_uri
from mosaic.catalog.unity.surface import Surface, milliseconds
from mosaic.errors import BadRequest, NotFound, PermissionDenied, Unimplemented
from mosaic.protocol import Wire

_LOCAL_LIFE = timedelta(hours=1)
_USE = {"table": ("SELECT", "MODIFY"), "volume": ("READ_VOLUME", "WRITE_VOLUME")}
"""With what privilege the files are read, and written."""
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
    """What is given out is written into the audit before it is; what cannot be written down is not given."""

    def __init__(self, surface: Surface, vend: Vend | None) -> None:
        self._catalog, self._authorize, self._vend = surface.catalog, surface.authorize, vend
        self._locations = Locations(surface.catalog, surface.storage, surface.authorize)

    def routes(self, base: str, base_20: str) -> list[Route]:
        both = (base, base_20)  # databricks-sdk asks for credentials of all but model versions under 2.0
        of_table, of_volume, of_path = shapes.TableCredentials, shapes.VolumeCredentials, shapes.PathCredentials
        of_version = shapes.ModelVersionCredentials
        return [
            *(
                route("POST", f"{one}/temporary-table-credentials", self.of_table, asked=of_table, query=_OLD_WAY)
                for one in both
            ),
            *(route("POST", f"{one}/temporary-volume-credentials", self.of_volume, asked=of_volume) for one in both),
            *(route("POST", f"{one}/temporary-path-credentials", self.of_path, asked=of_path) for one in both),
            route("POST", f"{base}/temporary-model-version-credentials", self.of_model_version, asked=of_version),
        ]

    def of_table(self, call: Call) -> shapes.TemporaryCredentials:
        said = {one.name: call.find(one.name) for one in _OLD_WAY}
        asked = call.over({field: value for field, value in said.items() if value}).parse(shapes.TableCredentials)
        # An id has to be looked up before anything can be asked about its table. Ids cannot be guessed.
        table = self._catalog.get_table_by_id(asked.table_id)
        write = asked.operation == "READ_WRITE"
        self._check_use(call, "table", table.name, write=write)
        named = of_securable("table", table.name, operation=asked.operation)
        return self._give(call, "generateTemporaryTableCredential", named, table.location, write=write)

    def of_volume(self, call: Call) -> shapes.TemporaryCredentials:
        asked = call.parse(shapes.VolumeCredentials)
        volume = self._catalog.volumes.get_by_id(asked.volume_id)
        write = asked.operation == "WRITE_VOLUME"
        self._check_use(call, "volume", volume.name, write=write)
        named = of_securable("volume", volume.name, operation=asked.operation)
        return self._give(call, "generateTemporaryVolumeCredential", named, str(volume.spec["location"]), write=write)

    def of_path(self, call: Call) -> shapes.TemporaryCredentials:
        """Within a volume or an external table; all that a path touches must be the caller's to use so.

        A refusal does not tell whether anything is there.
        """
        asked = call.parse(shapes.PathCredentials)
        address, write = to_address(asked.url, "url"), asked.operation == "PATH_READ_WRITE"
        action, named = "generateTemporaryPathCredential", {"url": to_uri(address), "operation": asked.operation}
        refused = PermissionDenied(
            f"no volume and no external table that {call.principal.name!r} may use for {asked.operation} has "
            f"{asked.url[:200]!r} within",
            param="url",
        )
        touched = [*self._locations.around(address)]
        managed_table = any(one.kind == "table" and self._locations.is_managed(one.address) for one in touched)
        if managed_table or not any(contains(one.address, address) for one in touched):
            self._catalog.audit.deny(action, named, refused, by=call.principal)
            raise refused
        for one in touched:
            try:
                self._check_use(call, one.kind, one.name, write=write)
            except (PermissionDenied, NotFound):
                raise refused from None
        return self._give(call, action, named, address, write=write)

    def of_model_version(self, call: Call) -> shapes.TemporaryCredentials:
        asked = call.parse(shapes.ModelVersionCredentials)
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.model_name}", "model")
        write = asked.operation == "READ_WRITE_MODEL_VERSION"
        self._authorize(call.principal, "CREATE_MODEL_VERSION" if write else "EXECUTE", "model", name)
        version = self._catalog.get_model_version(f"{name}/{asked.version}")
        if write and version.status == "READY":
            raise BadRequest(f"{version.full_name!r} is READY; its files do not change", code="failed_precondition")
        named = of_securable("model", name, version=str(asked.version), operation=asked.operation)
        return self._give(call, "generateTemporaryModelVersionCredential", named, version.source, write=write)

    def _check_use(self, call: Call, kind: str, name: str, *, write: bool) -> None:
        """Credentials to write read as well."""
        reading, writing = _USE[kind]
        self._authorize(call.principal, reading, kind, name)
        if write:
            self._authorize(call.principal, writing, kind, name)

    def _give(
        self, call: Call, action: str, named: Mapping[str, str], address: str, *, write: bool
    ) -> shapes.TemporaryCredentials:
        if is_local(address):
            found = Credentials(expires_at=datetime.now(UTC) + _LOCAL_LIFE)
        elif self._vend is None:
            raise Unimplemented(
                f"no temporary credentials for {address!r}: nobody makes them for this object store here"
            )
        else:
            found = self._vend(address, write)
        self._catalog.audit.note(action, named, by=call.principal)
        return shapes.TemporaryCredentials(
            aws_temp_credentials=found.aws,
            azure_user_delegation_sas=found.azure,
            gcp_oauth_token=found.gcp,
            expiration_time=milliseconds(found.expires_at),
            url=to_uri(address),
            endpoint_url=found.endpoint_url,
        )
