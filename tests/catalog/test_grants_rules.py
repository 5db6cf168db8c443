"""The one query, and the reasons, against the rules as plain recursion, on random hierarchies with nested groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.catalog import Catalog, GrantChange
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.protocol import Principal
from tests.catalog.conftest import Databases

PEOPLE, GROUPS = ("ann", "bob", "cat"), ("g1", "g2", "g3", "g4")
EVERYBODY = (*PEOPLE, *GROUPS, "users")
OBJECTS = (
    *(("metastore", "metastore"), ("catalog", "c1"), ("catalog", "c2")),
    *(("schema", "c1.s1"), ("schema", "c1.s2"), ("schema", "c2.s1")),
    *(("table", "c1.s1.t"), ("model", "c1.s1.m"), ("endpoint", "c1.s2.e"), ("index", "c2.s1.i"), ("table", "c2.s1.t")),
)
CHANGEABLE = OBJECTS[1:]

Thing = tuple[str, str]


class World(NamedTuple):
    """Who is in which group, who owns what, what is granted, and who is deactivated."""

    members: frozenset[tuple[str, str]]
    owners: dict[Thing, str]
    grants: frozenset[tuple[Thing, str, str]]
    inactive: frozenset[str]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    # A group is only in groups with a higher number, so there is no cycle.
    pairs = [(person, group) for person in PEOPLE for group in (*GROUPS, "admins")]
    pairs += [(low, high) for at, low in enumerate(GROUPS) for high in GROUPS[at + 1 :]]
    few = st.frozensets(st.sampled_from(pairs), max_size=6)
    owner = st.sampled_from((*PEOPLE, *GROUPS, "users", "nobody", "nobody", "nobody", "nobody"))
    one_grant = st.sampled_from(OBJECTS).flatmap(
        lambda thing: st.tuples(st.just(thing), st.sampled_from(EVERYBODY), st.sampled_from(PRIVILEGES[thing[0]]))
    )
    uses = st.frozensets(st.sampled_from([(thing, who) for thing in CHANGEABLE[:5] for who in EVERYBODY]), max_size=12)
    grants = set(draw(st.frozensets(one_grant, max_size=15)))
    grants |= {(thing, who, f"USE {thing[0].upper()}") for thing, who in draw(uses)}
    return World(
        members=draw(few),
        owners={thing: draw(owner) for thing in CHANGEABLE},
        grants=frozenset(grants),
        inactive=draw(st.frozensets(st.sampled_from(PEOPLE), max_size=1)),
    )


# The rules once more, as slow and plain as can be


def above(thing: Thing) -> Thing | None:
    kind, name = thing
    if kind in ("metastore", "catalog"):
        return None if kind == "metastore" else ("metastore", "metastore")
    parent = name.rpartition(".")[0]
    return ("schema" if "." in parent else "catalog", parent)


def catalog_of(thing: Thing) -> Thing:
    return thing if thing[0] == "metastore" else ("catalog", thing[1].partition(".")[0])


def is_in(world: World, who: str, group: str) -> bool:
    if who == group or group == "users":
        return True
    return any(is_in(world, through, group) for member, through in world.members if member == who)


def owns(world: World, who: str, thing: Thing | None) -> bool:
    if thing is None:
        return False
    owner = "admins" if thing == OBJECTS[0] else world.owners[thing]
    return is_in(world, who, owner) or owns(world, who, above(thing))


def is_granted(world: World, who: str, privileges: set[str], thing: Thing | None) -> bool:
    if thing is None:
        return False
    here = any(on == thing and what in privileges and is_in(world, who, to) for on, to, what in world.grants)
    return here or is_granted(world, who, privileges, above(thing))


def holds(world: World, who: str, privilege: str, thing: Thing) -> bool:
    enough = {privilege}
    if privilege == "BROWSE":
        enough = set(PRIVILEGES[thing[0]])
    elif privilege not in ("MANAGE", "EXECUTE UNSAFE"):
        enough.add("ALL PRIVILEGES")
    owned = thing if privilege != "EXECUTE UNSAFE" else catalog_of(thing)
    return owns(world, who, owned) or is_granted(world, who, enough, thing)


def may(world: World, who: str, privilege: str, thing: Thing) -> bool:
    if who in world.inactive or not holds(world, who, privilege, thing):
        return False
    if privilege == "BROWSE":
        return True
    # What concerns the container itself needs only what is above it; what concerns its content needs it, too.
    itself = privilege in ("USE CATALOG", "USE SCHEMA", "APPLY TAG", "MANAGE", "ALL PRIVILEGES")
    if thing[0] == "catalog" and privilege == "USE SCHEMA":
        itself = False
    at = above(thing) if itself else thing
    while at is not None:
        if at[0] in ("catalog", "schema") and not holds(world, who, f"USE {at[0].upper()}", at):
            return False
        at = above(at)
    return True


@pytest.fixture(scope="module")
def empty(databases: Databases) -> str:
    """A database with the principals and groups, to be copied."""
    url = databases.new()
    catalog = Catalog.open(url)
    for person in (*PEOPLE, "nobody"):
        catalog.principals.create(person, by="admin")
    for group in GROUPS:
        catalog.principals.create_group(group, by="admin")
    for schema in ("c1.s1", "c1.s2", "c2.s1"):
        catalog.ensure_schema(schema)
    catalog.create_table("c1.s1.t", "/r", columns=[], primary_key=None, owner="nobody")
    catalog.create_table("c2.s1.t", "/r", columns=[], primary_key=None, owner="nobody")
    catalog.create_model("c1.s1.m", owner="nobody")
    catalog.endpoints.put("c1.s2.e", config={}, owner="nobody")
    catalog.put_index("c2.s1.i", table="c2.s1.t", spec={}, owner="nobody")
    catalog.close()
    return url


@contextmanager
def built(world: World, databases: Databases, empty: str) -> Iterator[Catalog]:
    url = databases.copy(empty)
    catalog = Catalog.open(url)
    for member, group in sorted(world.members):
        catalog.principals.add_member(group, member, by="admin")
    root = Principal(name="system", kind="service", is_admin=True)
    for kind, name in OBJECTS:
        of_this = sorted((to, what) for on, to, what in world.grants if on == (kind, name))
        changes = [GrantChange(principal=to, add=(what,)) for to, what in of_this]
        if changes:
            catalog.grants.change(kind, name, changes, by=root)
        if kind != "metastore":
            catalog.grants.set_owner(kind, name, world.owners[kind, name], by=root)
    for person in world.inactive:
        catalog.principals.set_active(person, False, by=root)
    yield catalog
    catalog.close()
    databases.drop(url)


@settings(max_examples=15, deadline=None)
@given(world=worlds())
@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_every_way_of_asking_agrees_with_the_rules(world: World, databases: Databases, empty: str) -> None:
    check_every_way(world, databases, empty)


@settings(max_examples=5, deadline=None)  # each takes four times as long
@given(world=worlds())
@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
def test_so_it_does_on_postgresql(world: World, databases: Databases, empty: str) -> None:
    check_every_way(world, databases, empty)


def check_every_way(world: World, databases: Databases, empty: str) -> None:
    with built(world, databases, empty) as catalog:
        grants = catalog.grants
        for who in (*PEOPLE, "g1"):
            for kind, name in OBJECTS:
                allowed = {one for one in PRIVILEGES[kind] if may(world, who, one, (kind, name))}
                asked = {one for one in PRIVILEGES[kind] if grants.is_allowed(who, one, kind, name)}
                assert asked == allowed, (who, kind, name)
                effective = grants.effective(who, kind, name)
                assert {one.privilege for one in effective if one.usable} == allowed, (who, kind, name)
                held = {one for one in PRIVILEGES[kind] if holds(world, who, one, (kind, name))}
                assert {one.privilege for one in effective} == (set() if who in world.inactive else held)
            for kind, parent in (("catalog", "metastore"), ("schema", "c1"), ("table", "c2.s1"), ("index", "c2.s1")):
                below = [thing for thing in OBJECTS if thing[0] == kind and (above(thing) or ("", ""))[1] == parent]
                seen = sorted(thing[1] for thing in below if may(world, who, "BROWSE", thing))
                assert grants.visible(who, kind, parent) == seen, (who, kind, parent)
