"""Grants through the front door: who may do what, why, and what is refused in which words."""

import threading
from pathlib import Path

import pytest

from mosaic.catalog import Catalog, GrantChange
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.protocol import Principal

TABLE = ("table", "main.docs.entries")


@pytest.fixture
def catalog(catalog: Catalog) -> Catalog:
    """With a table of ann's, and bob in `team` in `analysts`."""
    catalog.create_table("main.docs.entries", "/r", columns=[], primary_key=None, owner="ann")
    catalog.create_model("main.ml.bot", owner="ann")
    catalog.endpoints.put("assistant", config={}, owner="ann")
    for name in ("ann", "bob", "eve"):
        catalog.principals.create(name, by="admin")
    for group in ("team", "analysts"):
        catalog.principals.create_group(group, by="admin")
    catalog.principals.add_member("team", "bob", by="admin")
    catalog.principals.add_member("analysts", "team", by="admin")
    return catalog


def open_up(catalog: Catalog) -> None:
    catalog.grants.grant("catalog", "main", "users", ["USE CATALOG"], by="admin")
    catalog.grants.grant("schema", "main.docs", "users", ["USE SCHEMA"], by="admin")


def test_a_grant_above_and_to_a_group_above_is_inherited(catalog: Catalog, clock: FixedClock) -> None:
    grants = catalog.grants
    open_up(catalog)
    assert not grants.is_allowed("bob", "SELECT", *TABLE)
    made = grants.grant("schema", "Main.Docs", "analysts", ["select", "MODIFY"], by="admin")
    assert [(one.privilege, one.kind, one.name, one.granted_by, one.granted_at) for one in made] == [
        ("MODIFY", "schema", "main.docs", "admin", clock.now),
        ("SELECT", "schema", "main.docs", "admin", clock.now),
    ]
    assert grants.is_allowed("bob", "SELECT", *TABLE) and grants.is_allowed("bob", "modify", *TABLE)
    assert not grants.is_allowed("eve", "SELECT", *TABLE) and not grants.is_allowed(
        "bob", "EXECUTE", "model", "main.ml.bot"
    )
    # What is granted above does not show as granted here, and cannot be taken back here.
    assert grants.list(*TABLE) == [] == grants.revoke(*TABLE, "analysts", ["SELECT"], by="admin")
    assert grants.is_allowed("bob", "SELECT", *TABLE)
    assert [one.privilege for one in grants.revoke("schema", "main.docs", "analysts", ["SELECT"], by="admin")] == [
        "MODIFY"
    ]
    assert not grants.is_allowed("bob", "SELECT", *TABLE)
    catalog.principals.remove_member("analysts", "team", by="admin")
    assert not grants.is_allowed("bob", "MODIFY", *TABLE)


def test_the_catalog_and_the_schema_must_be_usable_even_for_an_owner(catalog: Catalog) -> None:
    grants = catalog.grants
    grants.grant(*TABLE, "bob", ["SELECT"], by="admin")
    assert not grants.is_allowed("ann", "SELECT", *TABLE) and not grants.is_allowed("bob", "SELECT", *TABLE)
    open_up(catalog)
    assert grants.is_allowed("ann", "SELECT", *TABLE) and grants.is_allowed("bob", "SELECT", *TABLE)
    assert grants.is_allowed("ann", "MANAGE", *TABLE) and not grants.is_allowed("bob", "MODIFY", *TABLE)
    grants.revoke("catalog", "main", "users", ["USE CATALOG"], by="admin")
    assert not grants.is_allowed("ann", "SELECT", *TABLE)


def test_ownership_by_a_group_reaches_all_below(catalog: Catalog) -> None:
    grants = catalog.grants
    grants.set_owner("schema", "main.docs", "analysts", by="admin")
    assert not grants.is_allowed("bob", "SELECT", *TABLE)  # owns the schema, may not use the catalog
    grants.grant("catalog", "main", "bob", ["USE CATALOG"], by="admin")
    assert grants.is_allowed("bob", "SELECT", *TABLE) and grants.is_allowed(
        "bob", "CREATE TABLE", "schema", "main.docs"
    )
    assert not grants.is_allowed("bob", "CREATE TABLE", "schema", "main.ml")
    assert grants.grant(*TABLE, "eve", ["SELECT"], by="bob")[0].granted_by == "bob"
    grants.set_owner(*TABLE, "eve", by="bob")
    assert catalog.get_table("main.docs.entries").owner == "eve"
    assert catalog.get_table("main.docs.entries").config_version == 1


def test_all_privileges_is_everything_but_manage(catalog: Catalog) -> None:
    grants = catalog.grants
    grants.grant("catalog", "main", "eve", ["ALL PRIVILEGES"], by="admin")
    for privilege in ("SELECT", "MODIFY", "APPLY TAG", "BROWSE"):
        assert grants.is_allowed("eve", privilege, *TABLE)
    assert grants.is_allowed("eve", "EXECUTE", "endpoint", "assistant")
    assert not grants.is_allowed("eve", "MANAGE", *TABLE)
    with pytest.raises(PermissionDenied, match=r"'eve' may not MANAGE on table .*: missing MANAGE on table main\.docs"):
        grants.grant(*TABLE, "bob", ["SELECT"], by="eve")


def test_manage_grants_but_does_not_read(catalog: Catalog) -> None:
    grants = catalog.grants
    open_up(catalog)
    grants.grant("schema", "main.docs", "bob", ["MANAGE"], by="admin")
    assert not grants.is_allowed("bob", "SELECT", *TABLE) and grants.is_allowed("bob", "BROWSE", *TABLE)
    grants.grant(*TABLE, "eve", ["SELECT"], by="bob")
    assert grants.is_allowed("eve", "SELECT", *TABLE)
    # A manager of the metastore is no administrator, and cannot make itself one.
    grants.grant("metastore", "metastore", "bob", ["MANAGE"], by="admin")
    with pytest.raises(PermissionDenied, match="'bob' may not give the metastore away: only administrators may"):
        grants.set_owner("metastore", "metastore", "bob", by="bob")
    with pytest.raises(PermissionDenied, match="'bob' may not add 'bob' to group 'admins': only administrators may"):
        catalog.principals.add_member("admins", "bob", by="bob")


def test_browse_shows_that_it_is_there_and_no_more(catalog: Catalog) -> None:
    grants = catalog.grants
    assert grants.visible("bob", "table", "main.docs") == [] == grants.visible("bob", "catalog", "metastore")
    grants.grant("catalog", "main", "bob", ["BROWSE"], by="admin")
    assert grants.visible("bob", "table", "main.docs") == ["main.docs.entries"]
    assert grants.visible("bob", "schema", "main") == ["main.docs", "main.ml", "main.serving"]
    assert grants.visible("bob", "catalog", "metastore") == ["main"]
    assert not grants.is_allowed("bob", "SELECT", *TABLE) and not grants.is_allowed(
        "bob", "USE CATALOG", "catalog", "main"
    )
    # Any privilege on a thing itself shows it; an owner's is its own.
    grants.grant("model", "main.ml.bot", "eve", ["EXECUTE"], by="admin")
    assert grants.visible("eve", "model", "main.ml") == ["main.ml.bot"] == grants.visible("ann", "model", "main.ml")
    assert grants.visible("eve", "table", "main.docs") == []
    assert grants.visible(Principal(name="eve", is_admin=True), "table", "main.docs") == ["main.docs.entries"]
    # Names that one may not know are not told in errors.
    with pytest.raises(NotFound, match=r"no table 'main\.docs\.x'; there is none that you may see"):
        grants.is_allowed("eve", "SELECT", "table", "main.docs.x")
    with pytest.raises(NotFound, match=r"no table 'main\.docs\.x'; there are \['main\.docs\.entries'\]"):
        grants.is_allowed("bob", "SELECT", "table", "main.docs.x")


def test_administrators_are_above_all(catalog: Catalog) -> None:
    grants = catalog.grants
    assert grants.is_allowed("admin", "SELECT", *TABLE)
    assert not grants.is_allowed("eve", "SELECT", *TABLE)
    assert grants.is_allowed(Principal(name="eve", is_admin=True), "SELECT", *TABLE)
    told = grants.explain(Principal(name="eve", is_admin=True), "SELECT", *TABLE)
    assert told.allowed and "eve has an administrator's token" in str(told)
    catalog.principals.add_member("admins", "team", by="admin")
    assert grants.is_allowed("bob", "CREATE CATALOG", "metastore", "metastore")
    catalog.principals.set_active("bob", False, by="admin")
    assert not grants.is_allowed(Principal(name="bob", is_admin=True), "SELECT", *TABLE)
    assert not grants.is_allowed(Principal(name="nobody", is_admin=True), "SELECT", *TABLE)


def test_effective_says_from_where_and_whether_it_has_effect(catalog: Catalog) -> None:
    grants = catalog.grants
    grants.grant("schema", "main.docs", "analysts", ["ALL PRIVILEGES"], by="admin")
    found = {one.privilege: one for one in grants.effective("bob", *TABLE)}
    assert set(found) == {"SELECT", "MODIFY", "APPLY TAG", "BROWSE", "ALL PRIVILEGES"}
    reason = found["SELECT"].reason
    assert (reason.kind, reason.name, reason.privilege) == ("schema", "main.docs", "ALL PRIVILEGES")
    assert reason.members == ("bob", "team", "analysts")
    assert not found["SELECT"].usable and found["BROWSE"].usable
    open_up(catalog)
    assert all(one.usable for one in grants.effective("bob", *TABLE))
    assert grants.effective("eve", *TABLE) == [] == grants.effective("nobody", *TABLE)


def test_explain_prints_the_path_or_each_missing_link(catalog: Catalog) -> None:
    grants = catalog.grants
    assert str(grants.explain("bob", "SELECT", *TABLE)) == (
        "bob may not SELECT on table main.docs.entries\n"
        "|-- USE CATALOG on catalog main: missing\n"
        "|-- USE SCHEMA on schema main.docs: missing\n"
        "`-- SELECT on table main.docs.entries: missing"
    )
    open_up(catalog)
    grants.grant("catalog", "main", "analysts", ["SELECT"], by="admin")
    assert str(grants.explain("bob", "SELECT", *TABLE)) == (
        "bob may SELECT on table main.docs.entries\n"
        "|-- USE CATALOG on catalog main: bob in users, granted USE CATALOG on catalog main by admin\n"
        "|-- USE SCHEMA on schema main.docs: bob in users, granted USE SCHEMA on schema main.docs by admin\n"
        "`-- SELECT on table main.docs.entries: bob in team in analysts, granted SELECT on catalog main by admin"
    )
    assert str(grants.explain("ann", "modify", *TABLE)).endswith(
        "`-- MODIFY on table main.docs.entries: ann, owner of table main.docs.entries"
    )
    assert str(grants.explain("nobody", "SELECT", *TABLE)) == (
        "nobody may not SELECT on table main.docs.entries\n`-- no principal 'nobody' is known"
    )
    catalog.principals.set_active("ann", False, by="admin")
    assert grants.explain("ann", "SELECT", *TABLE).problem == "'ann' is deactivated"


def test_check_names_who_what_and_what_is_missing(catalog: Catalog) -> None:
    grants = catalog.grants
    grants.grant("schema", "main.docs", "bob", ["USE SCHEMA", "SELECT"], by="admin")
    with pytest.raises(PermissionDenied) as caught:
        grants.check("bob", "SELECT", *TABLE)
    assert (
        caught.value.message == "'bob' may not SELECT on table 'main.docs.entries': missing USE CATALOG on catalog main"
    )
    with pytest.raises(PermissionDenied, match=r"'nobody' may not SELECT on .*: no principal 'nobody' is known"):
        grants.check("nobody", "SELECT", *TABLE)
    grants.grant("catalog", "main", "bob", ["USE CATALOG"], by="admin")
    grants.check("bob", "SELECT", *TABLE)


def test_bad_input(catalog: Catalog) -> None:
    grants = catalog.grants
    with pytest.raises(
        BadRequest, match=r"privilege 'REED' does not exist; those of a table are \['SELECT', 'MODIFY', "
    ):
        grants.grant(*TABLE, "bob", ["REED"], by="admin")
    with pytest.raises(BadRequest, match=r"privilege 'EXECUTE' does not fit a table; those of a table are \['SELECT'"):
        grants.is_allowed("bob", "EXECUTE", *TABLE)
    with pytest.raises(BadRequest, match="'ALL PRIVILEGES' does not fit a metastore"):
        grants.grant("metastore", "metastore", "bob", ["ALL PRIVILEGES"], by="admin")
    with pytest.raises(
        BadRequest, match=r"nothing in the catalog is a 'view'; the kinds are \['metastore', 'connection', 'catalog'"
    ):
        grants.explain("bob", "SELECT", "view", "main.docs.v")
    with pytest.raises(NotFound, match=r"no principal 'bop'; there are \['admin', 'admins', 'analysts', 'ann', 'bob'"):
        grants.grant(*TABLE, "bop", ["SELECT"], by="admin")
    with pytest.raises(NotFound, match=r"no principal 'bop'"):
        grants.list(*TABLE, "bop")
    with pytest.raises(NotFound, match=r"no principal 'bop'"):
        grants.set_owner(*TABLE, "bop", by="admin")
    with pytest.raises(BadRequest, match='part "e\'; DROP TABLE audit; --" must be'):
        grants.is_allowed("bob", "SELECT", "table", "main.docs.e'; DROP TABLE audit; --")
    with pytest.raises(BadRequest, match="there is one metastore, and its name is 'metastore', not 'main'"):
        grants.list("metastore", "main")
    with pytest.raises(BadRequest, match="nothing is above the metastore"):
        grants.visible("bob", "metastore", "x")
    with pytest.raises(BadRequest, match=r"\['SELECT'\] is to be both added and removed for 'bob'"):
        grants.change(*TABLE, [GrantChange(principal="bob", add=("SELECT",), remove=("select",))], by="admin")
    with pytest.raises(BadRequest, match="no privilege to add or remove for 'bob'"):
        grants.grant(*TABLE, "bob", [], by="admin")
    assert not grants.is_allowed("' OR 1=1 --", "SELECT", *TABLE)
    with pytest.raises(PermissionDenied, match="catalog 'system' is the platform's own"):
        catalog.ensure_schema("system.access", owner="system")
        grants.set_owner("schema", "system.access", "bob", by="admin")


def test_a_deleted_names_grants_do_not_come_back(catalog: Catalog) -> None:
    open_up(catalog)
    catalog.grants.grant(*TABLE, "bob", ["SELECT"], by="admin")
    catalog.delete_table("main.docs.entries")
    with pytest.raises(NotFound):
        catalog.grants.is_allowed("bob", "SELECT", *TABLE)
    catalog.create_table("main.docs.entries", "/r2", columns=[], primary_key=None, owner="ann")
    assert not catalog.grants.is_allowed("bob", "SELECT", *TABLE)


def test_grants_at_once_are_each_there_once_with_one_audit_row(catalog: Catalog, tmp_path: Path) -> None:
    # A catalog each, so that they meet at the database's lock and not at a lock of ours.
    others = [Catalog.open(catalog.url) for _ in range(4)]
    before = len(catalog.audit.list(limit=1000))
    barrier, failed = threading.Barrier(4), []

    def work(number: int) -> None:
        try:
            barrier.wait()
            others[number].grants.grant(*TABLE, "bob", ["SELECT"], by="admin")
            others[number].grants.grant(
                *TABLE, "bob", [["MODIFY"], ["APPLY TAG"], ["BROWSE"], ["MANAGE"]][number], by="admin"
            )
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert failed == []
    assert [one.privilege for one in catalog.grants.list(*TABLE)] == [
        "APPLY TAG",
        "BROWSE",
        "MANAGE",
        "MODIFY",
        "SELECT",
    ]
    assert len(catalog.audit.list(limit=1000)) == before + 5


def test_what_is_taken_back_is_gone_at_once_for_another_process(catalog: Catalog) -> None:
    other = Catalog.open(catalog.url)
    open_up(catalog)
    for _ in range(3):
        catalog.grants.grant(*TABLE, "bob", ["SELECT"], by="admin")
        assert other.grants.is_allowed("bob", "SELECT", *TABLE)
        catalog.grants.revoke(*TABLE, "bob", ["SELECT"], by="admin")
        assert not other.grants.is_allowed("bob", "SELECT", *TABLE)
    other.close()


def test_who_owns_a_model_does_not_say_that_its_code_may_run(catalog: Catalog) -> None:
    grants = catalog.grants
    open_up(catalog)
    unsafe, model = "EXECUTE UNSAFE", ("model", "main.ml.hers")
    catalog.create_model("main.ml.hers", owner="bob")
    grants.grant("catalog", "main", "bob", ["USE CATALOG", "USE SCHEMA"], by="admin")
    grants.grant("schema", "main.ml", "bob", ["MANAGE"], by="admin")
    with pytest.raises(PermissionDenied, match="'bob' may not MANAGE on catalog 'main': missing MANAGE on catalog"):
        grants.grant(*model, "eve", ["EXECUTE", unsafe], by="bob")
    with pytest.raises(PermissionDenied, match="MANAGE on catalog"):
        grants.grant("schema", "main.ml", "eve", [unsafe], by="bob")
    assert grants.list(*model) == [] and catalog.audit.newest(1)[0].response.status_code == 403
    # Nor does owning it, so that giving it away gives no more.
    assert grants.is_allowed("bob", "EXECUTE", *model) and not grants.is_allowed("bob", unsafe, *model)
    grants.grant("catalog", "main", "eve", ["USE CATALOG", "USE SCHEMA"], by="admin")
    grants.set_owner(*model, "eve", by="bob")
    assert not grants.is_allowed("eve", unsafe, *model)
    assert not grants.explain("eve", unsafe, *model).allowed
    grants.grant("catalog", "main", "bob", ["MANAGE"], by="admin")
    assert [one.privilege for one in grants.grant(*model, "eve", [unsafe], by="bob")] == [unsafe]
    assert grants.is_allowed("eve", unsafe, *model)


def test_only_administrators_are_told_who_there_is(catalog: Catalog) -> None:
    grants = catalog.grants
    open_up(catalog)
    catalog.create_model("main.ml.hers", owner="bob")
    grants.grant("catalog", "main", "bob", ["USE CATALOG", "USE SCHEMA"], by="admin")
    for ask in (
        lambda: grants.set_owner("model", "main.ml.hers", "zoe", by="bob"),
        lambda: grants.grant("model", "main.ml.hers", "zoe", ["EXECUTE"], by="bob"),
        lambda: catalog.registry.update_model("main.ml.hers", owner="zoe", by="bob"),
        lambda: grants.list("model", "main.ml.hers", "zoe"),
    ):
        with pytest.raises(NotFound, match=r"^no principal 'zoe'$"):
            ask()
    with pytest.raises(NotFound, match=r"no principal 'zoe'; there are \['admin', "):
        grants.set_owner("model", "main.ml.hers", "zoe", by="admin")
