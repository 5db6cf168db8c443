"""Users, services and nested groups: who may change them, and what is refused."""

import threading
from datetime import timedelta

import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import AlreadyExists, BadRequest, Conflict, NotFound, PermissionDenied, Unauthenticated
from mosaic.protocol import Principal


def test_principals(catalog: Catalog) -> None:
    principals = catalog.principals
    assert [(one.name, one.kind) for one in principals.list()] == [
        ("admin", "user"),
        ("admins", "group"),
        ("system", "service"),
        ("users", "group"),
    ]
    made = principals.create("ann@example.org", by="admin")
    assert (made.kind, made.active, made.created_by) == ("user", True, "admin") and principals.get(made.name) == made
    catalog.create_token("bot", kind="service")  # whoever has a token is a principal
    assert principals.get("bot").kind == "service" and [one.name for one in principals.list("service")] == [
        "bot",
        "system",
    ]
    with pytest.raises(AlreadyExists, match="the name 'bot' is taken by a service"):
        principals.create_group("bot", by="admin")
    with pytest.raises(NotFound, match=r"no principal 'bop'; there are \['admin', 'admins', 'ann@example.org', 'bot'"):
        principals.get("bop")
    with pytest.raises(BadRequest, match="kind 'group' of a principal must be 'user' or 'service'"):
        principals.create("x", kind="group", by="admin")  # type: ignore[arg-type]
    for name in ("", "a b", "x" * 256, "\u00fc"):
        with pytest.raises(BadRequest, match="must be 1 to 255 printable characters"):
            principals.create_group(name, by="admin")


def test_only_administrators_change_principals(catalog: Catalog) -> None:
    principals = catalog.principals
    principals.create("eve", by="admin")
    principals.create_group("team", by="admin")
    for refused in (
        lambda: principals.create("x", by="eve"),
        lambda: principals.create_group("x", by="eve"),
        lambda: principals.delete_group("team", by="eve"),
        lambda: principals.add_member("team", "eve", by="eve"),
        lambda: principals.remove_member("team", "eve", by="eve"),
        lambda: principals.set_active("eve", False, by="eve"),
        lambda: principals.create("x", by="nobody"),
        lambda: principals.create("x", by=Principal(name="nobody", is_admin=True)),
    ):
        with pytest.raises(PermissionDenied, match="only administrators may, who are the members of group 'admins'"):
            refused()
    assert principals.create("x", by=Principal(name="eve", is_admin=True)).created_by == "eve"


def test_nested_groups(catalog: Catalog) -> None:
    principals = catalog.principals
    principals.create("ann", by="admin")
    for group in ("a", "b", "c"):
        principals.create_group(group, by="admin")
    principals.add_member("a", "ann", by="admin")
    principals.add_member("b", "a", by="admin")
    principals.add_member("c", "b", by="admin")
    principals.add_member("c", "ann", by="admin")
    principals.add_member("c", "ann", by="admin")  # as it is
    assert principals.members("c") == ["ann", "b"] and principals.groups_of("ann") == ["a", "b", "c", "users"]
    with pytest.raises(Conflict, match="'c' cannot be put into group 'a': c in a in b in c would be a cycle"):
        principals.add_member("a", "c", by="admin")
    with pytest.raises(Conflict, match="a in a would be a cycle"):
        principals.add_member("a", "a", by="admin")
    principals.delete_group("b", by="admin")
    assert principals.groups_of("ann") == ["a", "c", "users"] and principals.members("c") == ["ann"]
    principals.add_member("a", "c", by="admin")  # no cycle any more
    with pytest.raises(NotFound, match=r"no member of group 'c' 'a'; there are \['ann'\]"):
        principals.remove_member("c", "a", by="admin")
    with pytest.raises(NotFound, match=r"no group 'ann'; there are \['a', 'admins', 'c', 'users'\]"):
        principals.add_member("ann", "a", by="admin")
    with pytest.raises(NotFound, match="no principal 'bob'"):
        principals.add_member("a", "bob", by="admin")


def test_the_platforms_own_groups(catalog: Catalog) -> None:
    principals = catalog.principals
    principals.create_group("team", by="admin")
    for group in ("users", "admins"):
        with pytest.raises(BadRequest, match=f"group '{group}' is the platform's own and cannot be deleted"):
            principals.delete_group(group, by="admin")
    with pytest.raises(BadRequest, match="every active principal is in group 'users'"):
        principals.add_member("users", "admin", by="admin")
    with pytest.raises(BadRequest, match="everybody is in group 'users', so it is in no other"):
        principals.add_member("admins", "users", by="admin")
    with pytest.raises(BadRequest, match="principal 'admins' is a group, and a group has no tokens"):
        catalog.create_token("admins")


def test_a_deleted_groups_grants_do_not_come_back(catalog: Catalog) -> None:
    principals, grants = catalog.principals, catalog.grants
    principals.create("ann", by="admin")
    principals.create_group("team", by="admin")
    principals.add_member("team", "ann", by="admin")
    grants.grant("catalog", "main", "team", ["USE CATALOG"], by="admin")
    grants.set_owner("schema", "main.docs", "team", by="admin")
    with pytest.raises(Conflict, match=r"group 'team' owns \['schema main.docs'\]; give them another owner first"):
        principals.delete_group("team", by="admin")
    assert grants.is_allowed("ann", "USE CATALOG", "catalog", "main")
    grants.set_owner("schema", "main.docs", "admin", by="admin")
    principals.delete_group("team", by="admin")
    assert grants.list("catalog", "main") == []
    principals.create_group("team", by="admin")
    principals.add_member("team", "ann", by="admin")
    assert not grants.is_allowed("ann", "USE CATALOG", "catalog", "main")


def test_nobody_locks_everybody_out(catalog: Catalog) -> None:
    """The command line acts for `admin`: without it nothing could be put right again."""
    principals = catalog.principals
    principals.create("ann", by="admin")
    principals.add_member("admins", "ann", by="admin")
    catalog.create_token("mosaic-internal", kind="service")
    for name in ("admin", "system", "mosaic-internal"):
        with pytest.raises(BadRequest, match=f"principal '{name}' is .*; only users and services are deactivated"):
            principals.set_active(name, False, by="ann")
    with pytest.raises(BadRequest, match="'admin' is whom the command line acts for, and stays in group 'admins'"):
        principals.remove_member("admins", "admin", by="ann")
    principals.set_active("ann", False, by="admin")
    principals.remove_member("admins", "ann", by="admin")


def test_a_deactivated_principal_has_neither_tokens_nor_grants(catalog: Catalog) -> None:
    principals, grants = catalog.principals, catalog.grants
    _, secret = catalog.create_token("ann")
    grants.grant("catalog", "main", "ann", ["USE CATALOG"], by="admin")
    assert principals.set_active("ann", False, by="admin").active is False
    with pytest.raises(Unauthenticated, match=r"principal 'ann' of token tok_.* is deactivated") as caught:
        catalog.check_token(secret)
    assert caught.value.code == "principal_inactive"
    assert not grants.is_allowed("ann", "USE CATALOG", "catalog", "main") and principals.groups_of("ann") == []
    principals.set_active("ann", True, by="admin")
    assert catalog.check_token(secret).name == "ann" and grants.is_allowed("ann", "USE CATALOG", "catalog", "main")
    with pytest.raises(BadRequest, match="principal 'admins' is a group; only users and services are deactivated"):
        principals.set_active("admins", False, by="admin")
    with pytest.raises(BadRequest, match="principal 'system' is the platform itself"):
        principals.set_active("system", False, by="admin")


def test_two_memberships_at_once_cannot_close_a_cycle(catalog: Catalog) -> None:
    for group in ("a", "b"):
        catalog.principals.create_group(group, by="admin")
    others = [Catalog.open(catalog.url) for _ in range(2)]
    barrier, refused = threading.Barrier(2), []

    def work(number: int, group: str, member: str) -> None:
        barrier.wait()
        try:
            others[number].principals.add_member(group, member, by="admin")
        except Conflict as error:
            refused.append(error.message)

    threads = [threading.Thread(target=work, args=args) for args in ((0, "a", "b"), (1, "b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert len(refused) == 1 and "would be a cycle" in refused[0]
    assert len(catalog.principals.members("a")) + len(catalog.principals.members("b")) == 1


def test_a_group_is_not_deleted_while_what_it_owns_may_come_back(catalog: Catalog, clock: FixedClock) -> None:
    catalog.principals.create_group("g", by="admin")
    catalog.create_model("main.ml.theirs", owner="g")
    catalog.delete_model("main.ml.theirs")
    with pytest.raises(Conflict, match=r"group 'g' owns \['model main\.ml\.theirs \(dropped\)'\]; give .*, and undrop"):
        catalog.principals.delete_group("g", by="admin")
    catalog.undrop("model", "main.ml.theirs")
    assert catalog.get_model("main.ml.theirs").owner == "g"
    with pytest.raises(Conflict, match=r"group 'g' owns \['model main\.ml\.theirs'\]; give them another owner first$"):
        catalog.principals.delete_group("g", by="admin")
    catalog.delete_model("main.ml.theirs")
    clock.now += timedelta(days=7, seconds=1)  # from now on it cannot come back
    catalog.principals.delete_group("g", by="admin")
    with pytest.raises(Conflict, match="over 7 days ago"):
        catalog.undrop("model", "main.ml.theirs")
