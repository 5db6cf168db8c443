"""Where a table or volume that a command makes will be: the protocol's rules, and what is named must be there."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mosaic.cli.options import ADMIN
from mosaic.errors import BadRequest

if TYPE_CHECKING:
    from mosaic.data.access import Access


def choose_place(access: "Access", kind: Literal["table", "volume"], name: str, location: str | None) -> str:
    """A new folder of the platform's own, or the external one at a location; raises BadRequest for what cannot be one.

    Whether an object store has anything under an address is not looked up: it has no folders.
    """
    from mosaic.catalog.unity.authorize import by_grants
    from mosaic.catalog.unity.locations import Locations
    from mosaic.catalog.unity.places import is_local

    locations = Locations(access.catalog, access.storage, by_grants(access.catalog))
    address = locations.choose(kind, name, "EXTERNAL" if location else "MANAGED", location, by=ADMIN)
    if location and is_local(address) and not Path(address).is_dir():
        raise BadRequest(f"location {location!r} is no folder of this machine; make it, or name one that is there")
    return address
