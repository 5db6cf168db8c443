"""Addresses as the protocol writes them (`file:///...`, `s3://...`), and as the rest of mosaic does (`/...`)."""

import re
from pathlib import PurePosixPath
from urllib.parse import unquote

from mosaic.errors import BadRequest

_FILE = re.compile(r"file:(?://(?:localhost)?)?(/(?!/)[^?#]*)")
_PATH = re.compile(r"/(?!/).*", re.DOTALL)
_OBJECT = re.compile(r"(s3|gs|abfss)://[^/?#\s]+(/[^?#]*)?")


def to_uri(address: str) -> str:
    """`/a b` -> `file:///a%20b`; addresses in object stores are URIs already."""
    return address if "://" in address else PurePosixPath(address).as_uri()


def to_address(uri: str) -> str:
    """A client's location: file:// or an absolute path, s3://, gs://, abfss://; raises BadRequest for others."""
    address = uri
    if found := _FILE.fullmatch(uri):
        address = unquote(found[1])
    if not (_PATH.fullmatch(address) or _OBJECT.fullmatch(address)) or "\0" in address:
        raise BadRequest(
            f"storage_location {uri[:200]!r} must be an absolute file:///path, s3://, gs:// or abfss://",
            param="storage_location",
        )
    if ".." in address.split("/"):
        raise BadRequest(f"storage_location {uri[:200]!r} may not have '..'", param="storage_location")
    return address.rstrip("/") or "/"
