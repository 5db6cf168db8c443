"""The layout of a root has a number, so that an older mosaic refuses what it does not understand."""

import json

from mosaic.errors import Conflict
from mosaic.storage.storage import Storage

FORMAT = 1
"""Of the root's layout; a root written by a later format is refused."""


def check_format(storage: Storage, version: str) -> None:
    """Write the root's format into a new root; raises Conflict for a root that a newer mosaic wrote."""
    address = storage.address("mosaic.json")
    if not storage.exists(address):
        storage.write_bytes(address, json.dumps({"format": FORMAT, "written_by": version}).encode())
        return
    found = json.loads(storage.read_bytes(address))
    if found["format"] > FORMAT:
        raise Conflict(
            f"the root {storage.root} was written by mosaic {found['written_by']} (format {found['format']}); "
            f"this is mosaic {version}, which knows formats up to {FORMAT}: use the newer one, or another root",
            code="root_is_newer",
        )
