"""The catalog's nouns: schemas, tables, models, aliases, indexes, endpoints; what is refused, and in which words."""

import pickle
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mosaic.catalog import Catalog, Table
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import AlreadyExists, BadRequest, Conflict, NotFound, PermissionDenied, Unavailable

COLUMNS = [{"name": "id", "type": "string"}, {"name": "text", "type": "string"}]


def create_table(catalog: Catalog, name: str = "main.docs.entries", **other: Any) -> Table:
    return catalog.create_table(name, f"/r/{name}", columns=COLUMNS, primary_key="id", owner="ann", **other)


def test_tables(catalog: Catalog, clock: FixedClock) -> None:
    table = create_table(catalog, "Main.DOCS.Entries", comment="c", properties={"delta.x": "y"})
    assert (table.name, table.owner, table.primary_key, table.config_version) == ("main.docs.entries", "ann", "id", 1)
    assert table.columns == COLUMNS and table.created_at == clock.now
    assert catalog.get_table("MAIN.docs.entries") == catalog.find_table("main.docs.entries") == table
    assert catalog.find_table("main.docs.other") is None
    with pytest.raises(AlreadyExists, match=r"table 'main\.docs\.entries' already exists"):
        create_table(catalog)
    with pytest.raises(NotFound, match=r"^no table 'main\.docs\.entry'$"):
        catalog.get_table("main.docs.entry")
    clock.now += timedelta(hours=1)
    changed = catalog.update_table("main.docs.entries", columns=[*COLUMNS, {"name": "n", "type": "long"}])
    assert (changed.config_version, changed.updated_at) == (2, clock.now) and len(changed.columns) == 3
    assert catalog.update_table("main.docs.entries", comment="c").config_version == 2  # nothing changed
    create_table(catalog, "main.ml.rows")
    assert [found.name for found in catalog.list_tables()] == ["main.docs.entries", "main.ml.rows"]
    assert [found.name for found in catalog.list_tables("main.ml")] == ["main.ml.rows"]


def test_a_deleted_name_can_be_taken_again(catalog: Catalog) -> None:
    first = create_table(catalog)
    catalog.delete_table("main.docs.entries")
    assert catalog.list_tables() == []
    with pytest.raises(NotFound, match=r"^no table 'main\.docs\.entries'$"):
        catalog.delete_table("main.docs.entries")
    assert create_table(catalog).id != first.id


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("entries", r"table name 'entries' has 1 part\(s\), but needs 3: catalog\.schema\.name"),
        ("main.docs.a.b", r"has 4 part\(s\)"),
        ("main.docs.a b", "part 'a b' must be 1 to 255 letters, digits, '_' or '-'"),
        ("main..a", "part '' must be"),
        ("main.docs." + "x" * 256, "must be 1 to 255"),
        ("main.docs.\u00fc", "part '\u00fc' must be"),
    ],
)
def test_wrong_names(catalog: Catalog, name: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        create_table(catalog, name)


def test_wrong_tables(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match=r"^no schema 'main\.doc'$"):
        create_table(catalog, "main.doc.entries")
    with pytest.raises(NotFound, match=r"no schema 'main\.doc'"):
        catalog.list_tables("main.doc")
    with pytest.raises(BadRequest, match=r"primary_key 'key' is no column; there are \['id', 'text'\]"):
        catalog.create_table("main.docs.t", "/r", columns=COLUMNS, primary_key="key", owner="ann")
    with pytest.raises(BadRequest, match="properties maps text to text, but has 'n': 1"):
        create_table(catalog, properties={"n": 1})
    with pytest.raises(BadRequest, match="columns cannot be kept as JSON"):
        catalog.create_table("main.docs.t", "/r", columns=[{"name": object()}], primary_key=None, owner="ann")
    with pytest.raises(BadRequest, match="owner 'a b' must be"):
        catalog.create_table("main.docs.t", "/r", columns=COLUMNS, primary_key=None, owner="a b")


def test_the_reserved_catalog_is_the_platforms(catalog: Catalog) -> None:
    with pytest.raises(PermissionDenied, match="catalog 'system' is the platform's own; 'admin' cannot make"):
        catalog.ensure_schema("System.monitoring")
    catalog.ensure_schema("system.monitoring", owner="system")
    with pytest.raises(PermissionDenied, match=r"'ann' cannot make 'system\.monitoring\.rows'"):
        create_table(catalog, "system.monitoring.rows")
    catalog.create_table("system.monitoring.rows", "/r", columns=[], primary_key=None, owner="system")
    with pytest.raises(PermissionDenied, match="'ann' cannot make"):
        catalog.endpoints.put("system.monitoring.e", config={}, owner="ann")


def test_models_versions_and_aliases(catalog: Catalog, clock: FixedClock) -> None:
    with pytest.raises(NotFound, match=r"^no model 'main\.ml\.bot'$"):
        catalog.create_model_version("main.ml.bot", source="/m/1", kind="full")
    catalog.create_model("main.ml.bot", owner="ann", comment="says hello")
    run_id = catalog.start_run("train", "bot", principal="ann")
    checksums = {"config.json": "a" * 64}
    first = catalog.create_model_version(
        "main.ml.bot",
        source="/m/1",
        kind="adapter",
        base_model="tiny",
        run_id=run_id,
        spec={"r": 8},
        checksums=checksums,
    )
    assert (first.full_name, first.version, first.model) == ("main.ml.bot/1", 1, "main.ml.bot")
    assert (first.base_model, first.run_id, first.spec, first.checksums) == ("tiny", run_id, {"r": 8}, checksums)
    second = catalog.create_model_version("main.ml.bot", source="/m/2", kind="full")
    assert catalog.get_model_version("Main.ML.bot/1") == first
    assert catalog.list_model_versions("main.ml.bot") == [first, second]

    catalog.set_alias("main.ml.bot", "Champion", 1, principal="ann")
    clock.now += timedelta(hours=1)
    catalog.set_alias("main.ml.bot", "champion", 2, principal="bob")
    catalog.set_alias("main.ml.bot", "champion", 2, principal="eve")  # as it is: no event
    assert catalog.get_model_version("main.ml.bot@champion") == second
    assert catalog.get_model("main.ml.bot").aliases == {"champion": 2}
    clock.now += timedelta(hours=1)
    catalog.delete_alias("main.ml.bot", "champion", principal="bob")
    with pytest.raises(NotFound, match=r"no model alias 'main\.ml\.bot@champion'; there is none that you may see"):
        catalog.get_model_version("main.ml.bot@champion")
    history = [(event.version, event.principal, event.at.hour) for event in catalog.alias_history("main.ml.bot")]
    assert history == [(1, "ann", 10), (2, "bob", 11), (None, "bob", 12)]

    def champion_at(hour: int, minute: int) -> str:
        moment = datetime(2026, 11, 1, hour, minute, tzinfo=UTC)
        return catalog.alias_at("main.ml.bot", "champion", moment).full_name

    assert (champion_at(10, 32), champion_at(11, 0)) == ("main.ml.bot/1", "main.ml.bot/2")
    for hour in (9, 12):
        with pytest.raises(NotFound, match=r"main\.ml\.bot@champion pointed at nothing at 2026-11-01T"):
            champion_at(hour, 0)
    (model,) = catalog.list_models()
    assert (model.versions, model.aliases, model.comment) == ([1, 2], {}, "says hello")


def test_wrong_models(catalog: Catalog) -> None:
    catalog.create_model("main.ml.bot", owner="ann")
    with pytest.raises(NotFound, match=r"no version 1 of model 'main\.ml\.bot'; it has no version yet"):
        catalog.get_model_version("main.ml.bot/1")
    catalog.create_model_version("main.ml.bot", source="/m", kind="full")
    catalog.set_alias("main.ml.bot", "champion", 1)
    with pytest.raises(NotFound, match=r"no version 7 of model 'main\.ml\.bot'; there are \[1\]"):
        catalog.get_model_version("main.ml.bot/7")
    with pytest.raises(NotFound, match=r"no version 7 of model"):
        catalog.set_alias("main.ml.bot", "champion", 7)
    assert catalog.get_model_version("main.ml.bot@champion").version == 1  # the failed change left nothing
    with pytest.raises(NotFound, match=r"no model alias 'main\.ml\.bot@best'; there are \['main\.ml\.bot@champion'\]"):
        catalog.get_model_version("main.ml.bot@best")
    with pytest.raises(BadRequest, match=r"names no version of a model; write main\.ml\.bot/3"):
        catalog.get_model_version("main.ml.bot")
    for name in ("main.ml.bot/0", "main.ml.bot/x", "main.ml.bot/99999999999", "main.ml.bot/"):
        with pytest.raises(BadRequest, match="must be a whole number from 1"):
            catalog.get_model_version(name)
    with pytest.raises(BadRequest, match="alias '3' must be"):
        catalog.set_alias("main.ml.bot", "3", 1)
    with pytest.raises(BadRequest, match="checksum of 'a' must be 64 hexadecimal digits"):
        catalog.create_model_version("main.ml.bot", source="/m", kind="full", checksums={"a": "b"})
    with pytest.raises(BadRequest, match=r"spec cannot be kept as JSON: Out of range float values"):
        catalog.create_model_version("main.ml.bot", source="/m", kind="full", spec={"loss": float("nan")})
    with pytest.raises(NotFound, match="no run 'run_1'; there is none that you may see"):
        catalog.create_model_version("main.ml.bot", source="/m", kind="full", run_id="run_1")
    with pytest.raises(AlreadyExists, match=r"model 'main\.ml\.bot' already exists"):
        catalog.create_model("main.ml.bot", owner="ann")
    assert catalog.find_model("main.ml.other") is None and catalog.find_model("main.ml.bot") is not None


def test_indexes(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match=r"no table 'main\.docs\.entries'"):
        catalog.put_index("main.docs.ix", table="main.docs.entries", spec={}, owner="ann")
    create_table(catalog)
    index = catalog.put_index("main.docs.ix", table="main.docs.entries", spec={"metric": "cosine"}, owner="ann")
    assert (index.name, index.table, index.spec) == ("main.docs.ix", "main.docs.entries", {"metric": "cosine"})
    again = catalog.put_index("main.docs.ix", table="main.docs.entries", spec={"metric": "cosine"}, owner="bob")
    assert again == index and catalog.list_indexes() == [index] and catalog.get_index("MAIN.docs.ix") == index
    with pytest.raises(Conflict, match=r"cannot be deleted while it has the indexes \['main\.docs\.ix'\]"):
        catalog.delete_table("main.docs.entries")
    catalog.delete_index("main.docs.ix")
    catalog.delete_table("main.docs.entries")


def test_endpoints(catalog: Catalog) -> None:
    made = catalog.endpoints.put("Assistant", config={"model": "main.ml.bot@champion"}, owner="ann")
    assert (made.name, made.served_name, made.config_version) == ("main.serving.assistant", "assistant", 1)
    same = catalog.endpoints.put("main.serving.assistant", config=made.config, owner="bob")
    assert same == made  # nothing changed, also not the owner
    changed = catalog.endpoints.put("assistant", config={"model": "x"}, owner="bob", expected_config_version=1)
    assert (changed.config_version, changed.owner, changed.id) == (2, "ann", made.id)
    with pytest.raises(Conflict, match="is at config version 2, not at 1; read it again"):
        catalog.endpoints.put("assistant", config={"model": "y"}, owner="bob", expected_config_version=1)
    with pytest.raises(Conflict, match="is at config version 2, not at 0"):
        catalog.endpoints.put("assistant", config={"model": "y"}, owner="bob", expected_config_version=0)
    whole = catalog.endpoints.put("main.ml.other", config={}, owner="ann", expected_config_version=0)
    assert whole.served_name == "main.ml.other"
    assert catalog.endpoints.get("assistant") == catalog.endpoints.get("Main.Serving.Assistant") == changed
    with pytest.raises(NotFound, match=r"^no endpoint 'gtp'$") as caught:
        catalog.endpoints.get("gtp")
    assert caught.value.param == "model" and caught.value.code == "endpoint_not_found"
    assert [endpoint.name for endpoint in catalog.endpoints.list()] == ["main.ml.other", "main.serving.assistant"]
    catalog.endpoints.delete("assistant")
    with pytest.raises(NotFound, match="no endpoint 'assistant'"):
        catalog.endpoints.get("assistant")
    assert catalog.endpoints.put("assistant", config={}, owner="ann").config_version == 1
    with pytest.raises(NotFound, match=r"no schema 'main\.none'"):
        catalog.endpoints.put("main.none.e", config={}, owner="ann")
    with pytest.raises(BadRequest, match="config cannot be kept as JSON"):
        catalog.endpoints.put("assistant", config={"a": {1, 2}}, owner="ann")
    with pytest.raises(BadRequest, match="config has keys that are not text"):
        catalog.endpoints.put("assistant", config={"a": {1: 2}}, owner="ann")


def test_what_is_the_platforms_own_is_not_dropped(catalog: Catalog) -> None:
    """A second catalog of the name would be made at the next start, and the answers in the first be out of reach."""
    catalog.ensure_schema("system.serving", owner="system")
    catalog.create_table("system.serving.inference", "/r", columns=[], primary_key=None, owner="system")
    for drop in (
        lambda: catalog.catalogs.delete("system", force=True, by="admin"),
        lambda: catalog.schemas.delete("system.serving", force=True, by="admin"),
        lambda: catalog.delete_table("system.serving.inference", by="admin"),
    ):
        with pytest.raises(PermissionDenied, match="catalog 'system' is the platform's own; 'admin' cannot drop"):
            drop()
    assert [one.name for one in catalog.list_tables("system.serving")] == ["system.serving.inference"]


def test_what_an_endpoint_serves_does_not_go_away(catalog: Catalog) -> None:
    """Neither by itself nor with its schema, with force or without: the endpoint would answer no more."""
    catalog.ensure_schema("main.more")
    for model in ("main.more.bot", "main.more.free"):
        catalog.create_model(model, owner="ann")
        for _ in range(3):
            catalog.create_model_version(model, source="/m", kind="full")
        for alias in ("champion", "old"):
            catalog.set_alias(model, alias, 2)
    arms = [{"name": name, "model": name} for name in ("echo", "main.more.bot/1", "main.more.bot@champion")]
    catalog.endpoints.put("assistant", config={"name": "assistant", "served_entities": arms}, owner="ann")
    for take_away in (
        lambda: catalog.registry.delete_model("main.more.bot", force=True),
        lambda: catalog.schemas.delete("main.more", force=True, by="admin"),
        lambda: catalog.registry.delete_version("main.more.bot", 1, by="admin"),
        lambda: catalog.registry.delete_version("main.more.bot", 2, by="admin"),
        lambda: catalog.delete_alias("main.more.bot", "champion"),
    ):
        with pytest.raises(Conflict, match=r"endpoint 'main\.serving\.assistant' serves 'main\.more\.bot[/@]"):
            take_away()
    assert catalog.get_model("main.more.bot").aliases == {"champion": 2, "old": 2}
    catalog.registry.delete_model("main.more.free", force=True)
    catalog.delete_alias("main.more.bot", "old")
    catalog.set_alias("main.more.bot", "champion", 3)
    catalog.registry.delete_version("main.more.bot", 2, by="admin")
    catalog.endpoints.delete("assistant")
    catalog.registry.delete_version("main.more.bot", 1, by="admin")
    catalog.schemas.delete("main.more", force=True, by="admin")


def test_another_serving_schema(tmp_path: Path) -> None:
    catalog = Catalog.open(f"sqlite:///{tmp_path}/c.db", serving_schema="prod.answers")
    assert catalog.endpoints.put("a", config={}, owner="ann").name == "prod.answers.a"
    assert pickle.loads(pickle.dumps(catalog)).endpoints.get("a").served_name == "a"


def test_the_revision_grows_with_every_write_and_only_then(catalog: Catalog) -> None:
    revision = catalog.revision()
    catalog.list_tables()
    catalog.ensure_schema("main.docs")
    with pytest.raises(NotFound):
        catalog.set_alias("main.ml.none", "a", 1)
    assert catalog.revision() == revision
    create_table(catalog)
    catalog.endpoints.put("a", config={}, owner="ann")
    assert catalog.revision() == revision + 2


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "is not one; write sqlite:////absolute"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mysql://h/x", r"the database 'mysql'; supported are \['postgresql', 'sqlite'\]"),
    ],
)
def test_wrong_urls(url: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        Catalog.open(url)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"this is no database at all, but it is long enough to be looked at" * 20)
    with pytest.raises(Unavailable, match="file is not a database"):
        Catalog.open(f"sqlite:///{tmp_path}/c.db")


def test_a_database_of_a_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    Catalog.open(f"sqlite:///{tmp_path}/c.db").close()
    with sqlite3.connect(tmp_path / "c.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(
        Conflict, match=r"at revision '9999', which this version does not know \(it knows \['0001', .*'0008'\]\)"
    ):
        Catalog.open(f"sqlite:///{tmp_path}/c.db")
