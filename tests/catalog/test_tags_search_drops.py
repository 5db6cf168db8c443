"""Tags; finding things as far as one may know of them; what was dropped and comes back."""

from datetime import timedelta

import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import AlreadyExists, BadRequest, Conflict, NotFound


def make_table(catalog: Catalog, name: str, comment: str = "") -> str:
    return catalog.create_table(name, f"/r/{name}", columns=[], primary_key=None, owner="admin", comment=comment).id


def test_tags(catalog: Catalog) -> None:
    make_table(catalog, "main.docs.entries")
    assert catalog.tags.set("table", "Main.docs.entries", {"pii": "no", "team": "search"}) == {
        "pii": "no",
        "team": "search",
    }
    assert catalog.tags.set("table", "main.docs.entries", {"pii": "yes"}) == {"pii": "yes", "team": "search"}
    assert catalog.tags.remove("table", "main.docs.entries", ["team"]) == {"pii": "yes"}
    with pytest.raises(NotFound, match=r"no tag 'team'; there are \['pii'\]"):
        catalog.tags.remove("table", "main.docs.entries", ["team"])
    before = len(catalog.audit.list())
    catalog.tags.set("table", "main.docs.entries", {"pii": "yes"})  # as it is: no row
    assert len(catalog.audit.list()) == before
    catalog.create_model("main.ml.bot", owner="ann")
    catalog.create_model_version("main.ml.bot", source="/m", kind="full")
    catalog.tags.set("model", "main.ml.bot", {"stage": "test"}, version=1)
    assert catalog.tags.list("model", "main.ml.bot") == {}
    assert catalog.tags.list("model", "main.ml.bot", version=1) == {"stage": "test"}
    for kind, name, tags, version, told in (
        ("model", "main.ml.bot", {"a": "b"}, 2, "no version 2 of model"),
        ("table", "main.docs.entries", {"a": "b"}, 1, "a table has no versions in the catalog"),
        ("table", "main.docs.entries", {" a": "b"}, None, "tag ' a' must have 1 to 255 printable characters"),
        ("table", "main.docs.entries", {"a": "x" * 1001}, None, "value of tag 'a' must be text of up to 1000"),
        ("table", "main.docs.entries", {str(n): "" for n in range(50)}, None, "would have 51 tags; 50 fit"),
        ("metastore", "metastore", {"a": "b"}, None, "the metastore has no tags"),
        ("table", "main.docs.other", {"a": "b"}, None, "no table 'main.docs.other'"),
    ):
        with pytest.raises((BadRequest, NotFound), match=told):
            catalog.tags.set(kind, name, tags, version=version)
    assert catalog.tags.list("table", "main.docs.entries") == {"pii": "yes"}


def test_search_finds_what_one_may_know_of(catalog: Catalog) -> None:
    make_table(catalog, "main.docs.entries", "Reference of the standard library")
    make_table(catalog, "main.ml.examples", "100% of the LIBRARY's examples_")
    catalog.create_model("main.ml.bot", owner="ann", comment="speaks of the library")
    catalog.tags.set("table", "main.docs.entries", {"pii": "no"})
    catalog.create_token("bob")

    def found(words: str = "", **how: object) -> list[str]:
        return [one.name for one in catalog.search(words, **how)]  # type: ignore[arg-type]

    assert found("library") == ["main.ml.bot", "main.docs.entries", "main.ml.examples"]
    assert found("library REFERENCE") == ["main.docs.entries"]
    assert found("library", kinds=["model"]) == ["main.ml.bot"]
    assert found("100%") == found("examples_") == ["main.ml.examples"] and found("_%_") == []  # no wildcards
    assert found(tags={"pii": None}) == found(tags={"pii": "no"}) == ["main.docs.entries"]
    assert found(tags={"pii": "yes"}) == [] and found("library", limit=1) == ["main.ml.bot"]
    assert catalog.search("reference")[0].tags == {"pii": "no"}
    assert found("library", principal="bob") == found("library", principal="nobody") == []
    catalog.grants.grant("table", "main.docs.entries", "bob", ["BROWSE"], by="admin")
    assert found("library", principal="bob") == ["main.docs.entries"]
    catalog.delete_table("main.docs.entries")
    assert found("reference") == [] and found("'; DROP TABLE securable; --") == []
    for how, told in (
        ({"limit": 0}, "limit = 0 must be from 1 to 1000"),
        ({"kinds": ["view"]}, "nothing in the catalog is a 'view'"),
        ({"words": "a " * 21}, "21 words are asked for"),
    ):
        with pytest.raises(BadRequest, match=told):
            catalog.search(**how)  # type: ignore[arg-type]


def test_what_was_dropped_comes_back_with_its_grants_and_tags(catalog: Catalog, clock: FixedClock) -> None:
    table_id = make_table(catalog, "main.docs.entries")
    catalog.tags.set("table", "main.docs.entries", {"pii": "no"})
    catalog.create_token("bob")
    catalog.grants.grant("table", "main.docs.entries", "bob", ["SELECT"], by="admin")
    catalog.delete_table("main.docs.entries", by="bob")
    (dropped,) = catalog.dropped()
    assert (dropped.id, dropped.kind, dropped.location, dropped.deleted_by) == (
        table_id,
        "table",
        "/r/main.docs.entries",
        "bob",
    )
    assert catalog.dropped(before=clock.now) == []
    clock.now += timedelta(days=6, hours=23)
    catalog.undrop("table", "main.docs.entries")
    assert catalog.get_table("main.docs.entries").id == table_id and catalog.dropped() == []
    assert catalog.tags.list("table", "main.docs.entries") == {"pii": "no"}
    assert [one.privilege for one in catalog.grants.list("table", "main.docs.entries")] == ["SELECT"]
    with pytest.raises(AlreadyExists, match="is there; it was not dropped, or the name was taken again"):
        catalog.undrop("table", "main.docs.entries")


def test_undrop_is_refused(catalog: Catalog, clock: FixedClock) -> None:
    first = make_table(catalog, "main.docs.entries")
    catalog.delete_table("main.docs.entries")
    clock.now += timedelta(hours=1)
    make_table(catalog, "main.docs.entries")
    with pytest.raises(AlreadyExists):
        catalog.undrop("table", "main.docs.entries")
    catalog.delete_table("main.docs.entries")
    catalog.undrop("table", "main.docs.entries")
    assert catalog.get_table("main.docs.entries").id != first  # the newest of that name
    with pytest.raises(NotFound, match=r"no dropped table 'main\.docs\.other'; there are \['main\.docs\.entries'\]"):
        catalog.undrop("table", "main.docs.other")
    catalog.delete_table("main.docs.entries")
    clock.now += timedelta(days=7, seconds=1)
    with pytest.raises(Conflict, match="over 7 days ago, or its data is purged; it cannot come back"):
        catalog.undrop("table", "main.docs.entries")


@pytest.mark.parametrize("taken", ["/lake/a/b", "/lake/a", "/lake/a/b/c/d"])
def test_what_another_took_the_place_of_does_not_come_back(catalog: Catalog, taken: str) -> None:
    """Whoever dropped it would hold the other's files."""
    catalog.ensure_schema("main.own")
    catalog.create_table("main.own.t", "/lake/a/b", columns=[], primary_key=None, owner="bob")
    catalog.schemas.delete("main.own", force=True, by="bob")
    volume = {"volume_type": "EXTERNAL", "location": taken}
    catalog.volumes.create("main.docs.v", spec=volume, owner="ann")
    with pytest.raises(Conflict, match=r"table 'main\.own\.t' cannot come back: where it was, another"):
        catalog.undrop("schema", "main.own", by="bob")
    catalog.volumes.update("main.docs.v", spec={**volume, "location": "/lake/a/bc"}, by="ann")
    catalog.undrop("schema", "main.own", by="bob")
    assert catalog.get_table("main.own.t").location == "/lake/a/b"
    catalog.volumes.delete("main.docs.v")
    catalog.undrop("volume", "main.docs.v")


def test_a_schema_comes_back_with_what_was_dropped_with_it(catalog: Catalog, clock: FixedClock) -> None:
    make_table(catalog, "main.docs.before")
    make_table(catalog, "main.docs.with")
    catalog.delete_table("main.docs.before")
    clock.now += timedelta(hours=1)
    catalog.schemas.delete("main.docs", force=True)
    with pytest.raises(Conflict, match=r"stands in schema 'main\.docs', which is dropped: undrop that first"):
        catalog.undrop("table", "main.docs.before")
    catalog.undrop("schema", "main.docs")
    assert [one.name for one in catalog.list_tables("main.docs")] == ["main.docs.with"]
    assert catalog.audit.newest(1)[0].request_params["with"] == "table main.docs.with"
    catalog.undrop("table", "main.docs.before")
    clock.now += timedelta(hours=1)
    catalog.catalogs.delete("main", force=True)
    catalog.undrop("catalog", "main")
    assert len(catalog.list_tables("main.docs")) == 2 and len(catalog.schemas.list("main")) == 2


def test_an_index_comes_back_after_its_table(catalog: Catalog) -> None:
    make_table(catalog, "main.docs.entries")
    catalog.put_index("main.docs.index", table="main.docs.entries", spec={}, owner="ann")
    catalog.delete_index("main.docs.index")
    catalog.delete_table("main.docs.entries")
    with pytest.raises(Conflict, match=r"is over table 'main\.docs\.entries', which is dropped"):
        catalog.undrop("index", "main.docs.index")
    catalog.undrop("table", "main.docs.entries")
    catalog.undrop("index", "main.docs.index")


def test_what_is_purged_stays_known_and_does_not_come_back(catalog: Catalog) -> None:
    table_id = make_table(catalog, "main.docs.entries")
    with pytest.raises(NotFound, match="nothing that was dropped has the id"):
        catalog.mark_purged(table_id)
    catalog.delete_table("main.docs.entries")
    catalog.mark_purged(table_id)
    assert catalog.dropped() == []
    event = catalog.audit.newest(1)[0]
    assert (event.action_name, event.request_params["securable_full_name"]) == ("purge", "main.docs.entries")
    with pytest.raises(Conflict, match="its data is purged"):
        catalog.undrop("table", "main.docs.entries")
    gone = make_table(catalog, "main.ml.gone")
    make_table(catalog, "main.ml.kept")
    catalog.schemas.delete("main.ml", force=True)
    catalog.mark_purged(gone)
    catalog.undrop("schema", "main.ml")
    assert [one.name for one in catalog.list_tables("main.ml")] == ["main.ml.kept"]
