"""Where tables and volumes may be: MANAGED in a folder of its own under the platform's root, EXTERNAL anywhere else.

Anywhere is a lot: the platform reads what its own user and its own keys of object stores can read. So to choose a place
needs CREATE EXTERNAL TABLE or CREATE EXTERNAL VOLUME on the metastore, which only administrators have unless granted.
What is external stands apart from everything that is registered: whoever may use it reaches its files, and those must
not be another table's. Credentials for a path look here too, since a path is whose folder it is in.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.unity.authorize import Authorize
from mosaic.catalog.unity.places import contains, is_local, resolved, to_address
from mosaic.errors import BadRequest
from mosaic.ids import new_id
from mosaic.protocol import Principal
from mosaic.storage import Storage

_FOLDERS = {"table": ("managed", "tbl"), "volume": ("volumes", "vol")}
"""Where managed things live under the root, and how their folders' names begin; `data/retention.py` knows them."""


class Place(NamedTuple):
    """A table or volume, and where it is."""

    kind: Literal["table", "volume"]
    name: str
    address: str


class Locations:
    def __init__(self, catalog: Catalog, storage: Storage, authorize: Authorize) -> None:
        self._catalog, self._storage, self._authorize = catalog, storage, authorize
        self._root = resolved(storage.root, "root") if is_local(storage.root) else storage.root

    def choose(self, kind: Literal["table", "volume"], name: str, how: str, asked: str | None, *, by: Principal) -> str:
        """The address for something new that is MANAGED or EXTERNAL.

        Raises BadRequest for one that it cannot have, and PermissionDenied for an EXTERNAL place that is not `by`'s to
        choose.
        """
        if how == "MANAGED":
            if asked is not None:
                raise BadRequest(
                    f"a MANAGED {kind} gets its place from the platform; leave storage_location out of {name!r}",
                    param="storage_location",
                )
            folder, prefix = _FOLDERS[kind]
            return self._storage.address(folder, new_id(prefix))  # never a deleted one's with the same name
        if asked is None:
            raise BadRequest(
                f"an EXTERNAL {kind} needs a storage_location; {name!r} has none", param="storage_location"
            )
        self._authorize(by, f"CREATE_EXTERNAL_{kind.upper()}", METASTORE, "")
        address = to_address(asked)
        if self.is_managed(address) or contains(address, self._root):
            raise BadRequest(
                f"storage_location {asked!r} is in the platform's own root, or has it within; {kind}s there are "
                "MANAGED, and get their place from the platform",
                param="storage_location",
            )
        if next(self.around(address), None) is not None:
            # Without its name, which the caller may not be meant to know.
            raise BadRequest(
                f"storage_location {asked!r} is in the place of another table or volume, or has it within",
                param="storage_location",
                code="location_overlap",
            )
        return address

    def is_managed(self, address: str) -> bool:
        return contains(self._root, address) or contains(self._storage.root, address)

    def around(self, address: str) -> Iterator[Place]:
        """Every table and volume whose place the address is in, is, or has within. Reads all of them."""
        for table in self._catalog.list_tables():
            if contains(table.location, address) or contains(address, table.location):
                yield Place("table", table.name, table.location)
        for volume in self._catalog.volumes.list():
            where = str(volume.spec["location"])
            if contains(where, address) or contains(address, where):
                yield Place("volume", volume.name, where)
