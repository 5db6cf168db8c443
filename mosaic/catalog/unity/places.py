"""Addresses as the protocol writes them (`file:///...`, `s3://...`), and as the rest of mosaic does (`/...`)."""

import os
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


_NOT_FOLDERS = ("/proc", "/sys", "/dev")
"""Where the kernel shows other places again under names of its own."""


def to_address(uri: str, field: str = "storage_location") -> str:
    """A client's location: file:// or an absolute path, s3://, gs://, abfss://; raises BadRequest for others.

    There is one spelling of every place, so that comparing addresses compares places: links are followed, and an
    address has no `%`, which Delta's readers decode once more.
    """
    file, store = _FILE.fullmatch(uri), _OBJECT.fullmatch(uri)
    address = unquote(file[1]) if file else uri
    path = store[1] if store else address.removeprefix("/") if is_local(address) else ""
    path = path.rstrip("/")
    if not path or "\0" in path:
        raise BadRequest(
            f"{field} {uri[:200]!r} must be an absolute /path or file:///path, s3://, gs:// or abfss://",
            param=field,
        )
    if any(part in ("", ".", "..") for part in path.split("/")) or "%" in path or "\\" in path:
        raise BadRequest(f"{field} {uri[:200]!r} may not have '..', '.', '//', '%' or a backslash", param=field)
    return resolved(address.rstrip("/"), field) if is_local(address) else address.rstrip("/")


def resolved(address: str, field: str = "storage_location") -> str:
    """A local address with every link on the way followed; raises BadRequest where that leads to no place for data."""
    real = address
    if not _is_below(address, _NOT_FOLDERS):
        try:
            real = os.path.realpath(address)
        except OSError as error:
            raise BadRequest(f"{field} {address[:200]!r} cannot be followed: {error.strerror}", param=field) from None
    if _is_below(real, _NOT_FOLDERS):
        raise BadRequest(f"{field} {address[:200]!r} is in {', '.join(_NOT_FOLDERS)}, not on a disk", param=field)
    return real


def contains(place: str, other: str) -> bool:
    """Whether an address is in another's folder, or is it."""
    return f"{other}/".startswith(f"{place.rstrip('/')}/")


def _is_below(address: str, places: tuple[str, ...]) -> bool:
    return any(contains(place, address) for place in places)
