"""`mosaic volume`: folders of files with a name and an owner."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mosaic.cli.options import ADMIN, described, pairs, with_access
from mosaic.cli.verbs import Noun, add_delete, add_get, add_list, add_update, made
from mosaic.errors import BadRequest
from mosaic.ids import new_id

if TYPE_CHECKING:
    from mosaic.data.access import Access

NOUN = Noun(
    kind="volume",
    columns=("name", "spec.volume_type", "spec.location", "owner", "comment"),
    list=lambda catalog, within: catalog.volumes.list(within),
    get=lambda catalog, name: catalog.volumes.get(name),
)


@click.group()
def volume() -> None:
    """Volumes: folders of files with a name and an owner."""


@volume.command()
@with_access
@click.option("--location", help="Address of a folder that is there.  [default: a new one under the storage's root]")
@described
@click.argument("name")
def create(
    access: "Access",
    name: str,
    location: str | None,
    comment: str,
    properties: Sequence[tuple[str, str]],
    owner: str,
    as_json: bool,
) -> None:
    """Make a volume called NAME: a folder of the platform's own, or an external one at a location."""
    spec = {"volume_type": "MANAGED", "location": access.storage.address("volumes", new_id("vol"))}
    if location is not None:
        spec = {"volume_type": "EXTERNAL", "location": _external(access, location)}
    kept = pairs(properties, "--property")
    record = access.catalog.volumes.create(name, spec=spec, owner=owner, comment=comment, properties=kept, by=ADMIN)
    made("volume", record, as_json)


add_list(volume, NOUN)
add_get(volume, NOUN)
add_update(volume, NOUN, lambda catalog, name, **given: catalog.volumes.update(name, **given))
add_delete(volume, NOUN, lambda catalog, name, **given: catalog.volumes.delete(name, **given))


def _external(access: "Access", location: str) -> str:
    from mosaic.catalog.unity.places import contains, to_address

    address = to_address(location)
    root = access.storage.root
    if contains(root, address) or contains(address, root):
        raise BadRequest(f"location {location!r} is in the platform's own root, or has it within; leave --location out")
    return address
