"""Volumes of the protocol: folders of files, under the platform's root (MANAGED) or elsewhere (EXTERNAL)."""

from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.records import Securable
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import IN_SCHEMA, PAGE, Call, route
from mosaic.catalog.unity.locations import Locations
from mosaic.catalog.unity.places import to_uri
from mosaic.catalog.unity.surface import Surface, described, split
from mosaic.protocol import Principal


class VolumeRoutes:
    """Making a volume gives it a name and a place; who may write to it brings the files."""

    def __init__(self, surface: Surface) -> None:
        self._volumes, self._authorize = surface.catalog.volumes, surface.authorize
        self._locations = Locations(surface.catalog, surface.storage, surface.authorize)
        self._seen, self._given = surface.seen, surface.given

    def routes(self, base: str) -> list[Route]:
        volume = f"{base}/volumes/{{full_name}}"
        return [
            route("POST", f"{base}/volumes", self.create, asked=shapes.CreateVolume),
            route("GET", f"{base}/volumes", self.list, query=(*IN_SCHEMA, *PAGE)),
            route("GET", volume, self.get),
            route("PATCH", volume, self.update, asked=shapes.UpdateVolume, conditional=True),
            route("DELETE", volume, self.delete, conditional=True),
        ]

    def create(self, call: Call) -> shapes.VolumeInfo:
        asked = call.parse(shapes.CreateVolume)
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.name}", "volume")
        by = self._authorize(call.principal, "CREATE_VOLUME", "schema", name.rpartition(".")[0])
        where = self._locations.choose("volume", name, asked.volume_type, asked.storage_location, by=call.principal)
        made = self._volumes.create(
            name,
            spec={"volume_type": asked.volume_type, "location": where},
            owner=by.name,
            by=by,
            comment=asked.comment or "",
        )
        return _shown(made)

    def list(self, call: Call) -> shapes.Volumes:
        schema = names.parse_schema(f"{call.asked('catalog_name')}.{call.asked('schema_name')}")
        self._authorize(call.principal, "USE_SCHEMA", "schema", schema)
        volumes = self._seen(call.principal, "volume", self._volumes.list(schema))
        page, token = call.page(f"volumes of {schema}", volumes, lambda volume: volume.name)
        return shapes.Volumes(volumes=[_shown(volume) for volume in page], next_page_token=token)

    def get(self, call: Call) -> shapes.VolumeInfo:
        return _shown(self._volumes.get(self._volume(call, "BROWSE")[0]))

    def update(self, call: Call) -> shapes.VolumeInfo:
        name, by = self._volume(call, "MANAGE")
        asked = call.parse(shapes.UpdateVolume, full_name=name, name=name)
        return _shown(self._volumes.update(name, by=by, **self._given(call, asked)))

    def delete(self, call: Call) -> shapes.Nothing:
        """A managed one's files go after the retention; those of an external one stay."""
        name, by = self._volume(call, "MANAGE")
        self._volumes.delete(name, by=by, expected_etag=call.expected_etag)
        return shapes.Nothing()

    def _volume(self, call: Call, privilege: str) -> tuple[str, Principal]:
        """The path's volume, once the caller may do this with it, and who does it."""
        name = names.parse_object(call.path["full_name"], "volume")
        return name, self._authorize(call.principal, privilege, "volume", name)


def _shown(volume: Securable) -> shapes.VolumeInfo:
    return shapes.VolumeInfo(
        **split(volume.name),
        **described(volume),
        volume_id=volume.id,
        volume_type=volume.spec["volume_type"],
        storage_location=to_uri(volume.spec["location"]),
    )
