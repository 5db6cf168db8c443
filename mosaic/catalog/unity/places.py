"""Addresses as the protocol writes them (`file:///...`, `s3://...`), and as the rest of mosaic does (`/...`)."""

import re
from pathlib import PurePosixPath
from urllib.parse import unquote

from mosaic.errors import BadRequest

_FILE = re.compile(r"file:(?://(?:localhost)?)?(/(?!/)[^?#]*)")
_OBJECT = re.compile(r"(?:s3|gs|abfss)://([^/?#\s]+(?:/[^?#]*)?)")


def is_local(address: str) -> bool:
    """Whether it is on a disk of this machine."""
    return address.startswith("/")


def to_uri(address: str) -> str:
    """`/a b` -> `file:///a%20b`; addresses in object stores are URIs already."""
    return PurePosixPath(address).as_uri() if is_local(address) else address


def to_address(uri: str, field: str = "storage_location") -> str:
    """A client's location: file:// or an absolute path, s3://, gs://, abfss://; raises BadRequest for others.

    There is one spelling of every place, so that comparing addresses compares places.
    """
    file, store = _FILE.fullmatch(uri), _OBJECT.fullmatch(uri)
    address = unquote(file[1]) if file else uri
    path = store[1] if store else address.removeprefix("/") if is_local(address) else ""
    path = path.rstrip("/")
    if not path or "\0" in path:
        raise BadRequest(
            f"{field} {uri[:200]!r} must be an absolute file:///path, s3://, gs:// or abfss://",
            param=field,
        )
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise BadRequest(f"{field} {uri[:200]!r} may not have '..', '.' or '//'", param=field)
    return address.rstrip("/")


def contains(place: str, other: str) -> bool:
    """Whether an address is in another's folder, or is it."""
    return f"{other}/".startswith(f"{place.rstrip('/')}/")
