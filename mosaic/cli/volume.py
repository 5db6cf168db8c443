"""`mosaic volume`: folders of files with a name and an owner."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mosaic.cli.options import ADMIN, described, location_option, pairs, with_access
from mosaic.cli.places import choose_place
from mosaic.cli.verbs import Noun, add_delete, add_get, add_list, add_update, made

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
@location_option
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
    address = choose_place(access, "volume", name, location)
    spec = {"volume_type": "EXTERNAL" if location else "MANAGED", "location": address}
    kept = pairs(properties, "--property")
    record = access.catalog.volumes.create(name, spec=spec, owner=owner, comment=comment, properties=kept, by=ADMIN)
    made("volume", record, as_json)


add_list(volume, NOUN)
add_get(volume, NOUN)
add_update(volume, NOUN, lambda catalog, name, **given: catalog.volumes.update(name, **given))
add_delete(volume, NOUN, lambda catalog, name, **given: catalog.volumes.delete(name, **given))
