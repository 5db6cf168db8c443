"""Unity Catalog's privileges: which fit a kind of securable, what covers one, and what else it needs. Pure rules.

A privilege holds on the securable where it is granted and on everything below. Whoever owns a securable, or is in a
group that does, holds every privilege on it and below; EXECUTE UNSAFE only who owns the catalog or the metastore. To
use something one also needs USE CATALOG on its catalog and USE SCHEMA on its schema, its owner too; only owners above
are not asked.
"""

from typing import NamedTuple

from mosaic.catalog.names import METASTORE
from mosaic.errors import BadRequest

ALL_PRIVILEGES = "ALL PRIVILEGES"
"""Every privilege that fits, now and later, but MANAGE and EXECUTE UNSAFE."""
BROWSE = "BROWSE"
MANAGE = "MANAGE"
EXECUTE_UNSAFE = "EXECUTE UNSAFE"
"""Loading a model version that has pickles, which run code when they are loaded; ALL PRIVILEGES does not cover it."""
READING = frozenset(
    {BROWSE, "USE CATALOG", "USE SCHEMA", "SELECT", "EXECUTE", EXECUTE_UNSAFE, "READ VOLUME", "USE CONNECTION"}
)
"""Privileges that change nothing."""
OWNED_UNSAFE = (METASTORE, "catalog")
"""What one has to own to hold EXECUTE UNSAFE by that: giving a model to the platform does not make it run its code."""

_ANYWHERE = ("APPLY TAG", BROWSE, MANAGE, ALL_PRIVILEGES)
_USED = {
    "table": ("SELECT", "MODIFY"),
    "index": ("SELECT",),
    "model": ("EXECUTE", EXECUTE_UNSAFE),
    "prompt": ("EXECUTE",),
    "policy": ("EXECUTE",),
    "endpoint": ("EXECUTE",),
    "agent": ("EXECUTE",),
    "function": ("EXECUTE",),
    "volume": ("READ VOLUME", "WRITE VOLUME"),
}
_IN_SCHEMA = (
    "USE SCHEMA",
    *("CREATE TABLE", "CREATE MODEL", "CREATE FUNCTION", "CREATE VOLUME"),
    *("SELECT", "MODIFY", "EXECUTE", EXECUTE_UNSAFE, "READ VOLUME", "WRITE VOLUME"),
)

PRIVILEGES: dict[str, tuple[str, ...]] = {
    # Not ALL PRIVILEGES: by inheritance it would open every table, which is what the administrators' group is for.
    METASTORE: (
        *("CREATE CATALOG", "CREATE CONNECTION", "CREATE EXTERNAL TABLE", "CREATE EXTERNAL VOLUME"),
        *(BROWSE, MANAGE),
    ),
    "connection": ("USE CONNECTION", *_ANYWHERE),
    "catalog": ("USE CATALOG", "CREATE SCHEMA", *_IN_SCHEMA, *_ANYWHERE),
    "schema": (*_IN_SCHEMA, *_ANYWHERE),
    **{kind: (*used, *_ANYWHERE) for kind, used in _USED.items()},
}
"""What can be granted and asked, by the kind of the securable."""

CREATED_WITH = {
    "catalog": "CREATE CATALOG",
    "schema": "CREATE SCHEMA",
    "table": "CREATE TABLE",
    "index": "CREATE TABLE",
    "model": "CREATE MODEL",
    "endpoint": "CREATE MODEL",
    "agent": "CREATE MODEL",
    "function": "CREATE FUNCTION",
    "prompt": "CREATE FUNCTION",
    "policy": "CREATE FUNCTION",
    "connection": "CREATE CONNECTION",
    "volume": "CREATE VOLUME",
}
"""The privilege on the parent with which something of a kind is made; an index is a table's, as on Databricks."""

_USE = {"catalog": "USE CATALOG", "schema": "USE SCHEMA"}


class Need(NamedTuple):
    """A privilege on the securable of that kind in a chain from the metastore down to what is asked about."""

    privilege: str
    kind: str


def check_kind(kind: str) -> None:
    """Raises BadRequest with the kinds that there are."""
    if kind not in PRIVILEGES:
        raise BadRequest(f"nothing in the catalog is a {kind!r}; the kinds are {list(PRIVILEGES)}", param="kind")


def parse(privilege: str, kind: str) -> str:
    """`use_catalog` -> `USE CATALOG`; raises BadRequest, with what fits, for one that does not fit the kind."""
    check_kind(kind)
    parsed = privilege.replace("_", " ").upper()
    if parsed in PRIVILEGES[kind]:
        return parsed
    known = {name for names in PRIVILEGES.values() for name in names}
    wrong = f"does not fit a {kind}" if parsed in known else "does not exist"
    raise BadRequest(
        f"privilege {privilege!r} {wrong}; those of a {kind} are {list(PRIVILEGES[kind])}", param="privilege"
    )


def level(kind: str) -> int:
    """How far below the metastore: catalogs and connections 1, schemas 2, what is in schemas 3."""
    return {METASTORE: 0, "catalog": 1, "connection": 1, "schema": 2}.get(kind, 3)


def covering(need: Need) -> tuple[str, ...]:
    """The grants, on the need's securable or above it, that satisfy a need."""
    if need.privilege == BROWSE:
        return PRIVILEGES[need.kind]  # whoever may do anything with a thing may know of it
    if need.privilege in (MANAGE, ALL_PRIVILEGES, EXECUTE_UNSAFE):
        return (need.privilege,)
    return (need.privilege, ALL_PRIVILEGES)


def needs(privilege: str, kind: str) -> list[Need]:
    """All that is needed for a privilege to have effect, from the catalog down; the privilege itself is last."""
    asked = Need(privilege, kind)
    if privilege == BROWSE:
        return [asked]
    above = [Need(use, container) for container, use in _USE.items() if level(container) < level(kind)]
    # What is asked about the things in a container uses the container too.
    if kind in _USE and privilege not in (_USE[kind], *_ANYWHERE):
        above.append(Need(_USE[kind], kind))
    return [*above, asked]
