"""Volumes, functions, agents, connections and prompts: made, changed under an etag, dropped, and what is refused."""

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from mosaic.catalog import Catalog
from mosaic.errors import AlreadyExists, BadRequest, Conflict, NotFound, StaleEtag, Unavailable
from mosaic.protocol import Principal

VOLUME = {"volume_type": "MANAGED", "location": "/r/volumes/v"}
SQUARE = {
    "input_params": [{"name": "x", "type_text": "int"}],
    "full_data_type": "int",
    "routine_body": "EXTERNAL",
    "external_language": "PYTHON",
    "routine_definition": "y = x * x\nreturn y",
}


def test_a_volume_from_its_making_to_its_drop(catalog: Catalog) -> None:
    made = catalog.volumes.create(
        "Main.Docs.Raw", spec=VOLUME, owner="ann", comment="c", properties={"a": "b"}, by="bob"
    )
    assert (made.name, made.owner, made.created_by, made.spec) == ("main.docs.raw", "ann", "bob", VOLUME)
    assert catalog.volumes.get("main.docs.RAW") == made == catalog.volumes.get_by_id(made.id)
    assert catalog.volumes.list("main.docs") == [made] and catalog.volumes.list("main.ml") == []
    changed = catalog.volumes.update("main.docs.raw", by="ann", comment="d", expected_etag=made.etag)
    assert (changed.comment, changed.updated_by) == ("d", "ann") and changed.etag != made.etag
    with pytest.raises(StaleEtag, match=f"has the etag '{changed.etag}', not '{made.etag}': it was changed since"):
        catalog.volumes.update("main.docs.raw", by="ann", comment="e", expected_etag=made.etag)
    with pytest.raises(StaleEtag):
        catalog.volumes.delete("main.docs.raw", expected_etag=made.etag)
    catalog.grants.set_owner("volume", "main.docs.raw", "admin", by="admin")
    assert catalog.volumes.get("main.docs.raw").etag != changed.etag  # a change of owner is one, too
    catalog.volumes.delete("main.docs.raw", by="ann")
    assert catalog.volumes.find("main.docs.raw") is None
    with pytest.raises(AlreadyExists, match=r"volume 'main\.docs\.raw' already exists"):
        for _ in range(2):
            catalog.volumes.create("main.docs.raw", spec=VOLUME, owner="ann")
    told = [(one.action_name, one.user_identity.email) for one in catalog.audit.newest(5)]
    assert told == [
        ("createVolume", "bob"),
        ("updateVolume", "ann"),
        ("updateVolume", "admin"),
        ("deleteVolume", "ann"),
        ("createVolume", "ann"),
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"routine_definition": "return ("}, "routine_definition is no Python: .* in line 1"),
        ({"routine_definition": "a = 1\n  b = 2"}, "is no Python: unexpected indent in line 2"),
        ({"routine_definition": ""}, "must be text of 1 to 1048576 characters"),
        ({"routine_body": "JAVA"}, "routine_body 'JAVA' must be SQL or EXTERNAL"),
        ({"external_language": "R"}, "external_language 'R' must be PYTHON"),
        ({"input_params": [{"name": "x y"}]}, "parameter 'x y' must be a name such as city"),
        ({"input_params": [{"name": "class"}]}, "parameter 'class' must be a name"),
        ({"input_params": [{"name": "x"}, {"name": "x"}]}, r"parameters \['x', 'x'\] have a name twice"),
        ({"input_params": "x"}, "input_params must be a list"),
    ],
)
def test_functions_that_cannot_be(catalog: Catalog, change: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        catalog.functions.create("main.docs.square", spec={**SQUARE, **change}, owner="ann")
    assert catalog.functions.list() == []
    assert catalog.functions.create("main.docs.square", spec=SQUARE, owner="ann").spec == SQUARE


def test_wrong_volumes(catalog: Catalog) -> None:
    for spec, told in (
        ({"volume_type": "MANAGED"}, r"has volume_type and location, not \['volume_type'\]"),
        ({"volume_type": "OTHER", "location": "/x"}, "volume_type 'OTHER' must be MANAGED or EXTERNAL"),
    ):
        with pytest.raises(BadRequest, match=told):
            catalog.volumes.create("main.docs.raw", spec=spec, owner="ann")
    with pytest.raises(NotFound, match=r"no schema 'main\.nowhere'"):
        catalog.volumes.create("main.nowhere.raw", spec=VOLUME, owner="ann")


def test_connections_keep_their_secrets(tmp_path: Path) -> None:
    url, key = f"sqlite:///{tmp_path}/c.db", tmp_path / "keys" / "catalog.key"
    catalog = Catalog.open(url, key_file=key)
    options = {"base_url": "https://api.example.com/v1", "api_key": "sk-very-secret"}
    made = catalog.connections.create("OpenAI", connection_type="openai", options=options, owner="ann")
    assert made.name == "openai" and made.spec == {
        "connection_type": "OPENAI",
        "options": {"base_url": "https://api.example.com/v1"},
        "secrets": ["api_key"],
    }
    assert key.stat().st_mode & 0o777 == 0o600 and [one.name for one in key.parent.iterdir()] == ["catalog.key"]
    gateway = Principal(name="mosaic-internal", kind="service")
    assert pickle.loads(pickle.dumps(catalog)).connections.secrets("openai", by=gateway) == {
        "api_key": "sk-very-secret"
    }
    catalog.connections.update("openai", by="ann", options={"api_key": "sk-another"})
    assert catalog.connections.secrets("openai", by=gateway) == {"api_key": "sk-another"}
    assert catalog.audit.newest(1)[0].action_name == "getConnectionSecrets"

    assert catalog.grants.is_allowed("admin", "USE CONNECTION", "connection", "openai")
    assert not catalog.grants.is_allowed("ann", "USE CONNECTION", "connection", "openai")  # not known yet
    catalog.create_token("bob")
    catalog.grants.grant("connection", "openai", "bob", ["USE CONNECTION"], by="admin")
    assert catalog.grants.is_allowed("bob", "USE CONNECTION", "connection", "openai")
    assert "granted USE CONNECTION on connection openai" in str(
        catalog.grants.explain("bob", "USE CONNECTION", "connection", "openai")
    )

    everything = (tmp_path / "c.db").read_bytes() + (tmp_path / "c.db-wal").read_bytes()
    assert b"sk-very-secret" not in everything and b"sk-another" not in everything
    other = Catalog.open(url, key_file=tmp_path / "other.key")
    catalog.connections.create("mine", connection_type="http", options={"token": "t"}, owner="ann")
    with pytest.raises(Conflict, match="were encrypted with another key"):
        other.connections.secrets("mine", by=gateway)
    with pytest.raises(Unavailable, match="opened without a key file, so it keeps no secrets"):
        Catalog.open(url).connections.create("no", connection_type="http", options={"token": "t"}, owner="ann")
    catalog.connections.delete("openai", by="ann")
    catalog.undrop("connection", "openai")
    assert catalog.connections.secrets("openai", by=gateway) == {}  # gone for good


def test_a_key_that_several_make_at_once_is_one_key(tmp_path: Path) -> None:
    catalogs = [Catalog.open(f"sqlite:///{tmp_path}/c.db", key_file=tmp_path / "k") for _ in range(4)]
    names = [f"c{number}" for number in range(4)]

    def make(catalog: Catalog, name: str) -> None:
        catalog.connections.create(name, connection_type="http", options={"token": name}, owner="ann")

    threads = [threading.Thread(target=make, args=pair) for pair in zip(catalogs, names, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [catalogs[0].connections.secrets(name, by="ann") for name in names] == [{"token": name} for name in names]


def test_prompts_have_versions_and_aliases(catalog: Catalog) -> None:
    first = catalog.prompts.register("main.ml.Greeting", "Say {{ greeting }} to {{name}}.", owner="ann", comment="c")
    second = catalog.prompts.register("main.ml.greeting", "Greet {{name}}, {{name}}!", by="bob")
    assert (first.full_name, first.variables, second.version) == ("main.ml.greeting/1", ("greeting", "name"), 2)
    assert first.format(greeting="hi", name="{{greeting}}") == "Say hi to {{greeting}}."
    assert second.format(name="Bo") == "Greet Bo, Bo!"
    with pytest.raises(BadRequest, match=r"misses \['name'\]; its variables are \['greeting', 'name'\]"):
        first.format(greeting="hi")
    with pytest.raises(BadRequest, match=r"has no \['nmae'\]"):
        second.format(name="a", nmae="b")
    catalog.prompts.set_alias("main.ml.greeting", "live", 1)
    catalog.prompts.set_alias("main.ml.greeting", "live", 2, by="bob")
    assert catalog.prompts.get("main.ml.greeting@live") == second
    assert [(one.version, one.principal) for one in catalog.prompts.alias_history("main.ml.greeting")] == [
        (1, "admin"),
        (2, "bob"),
    ]
    with pytest.raises(
        NotFound, match=r"no prompt alias 'main\.ml\.greeting@dead'; there are \['main\.ml\.greeting@live'"
    ):
        catalog.prompts.get("main.ml.greeting@dead")
    with pytest.raises(NotFound, match=r"no version 3 of prompt 'main\.ml\.greeting'; there are \[1, 2\]"):
        catalog.prompts.get("main.ml.greeting/3")
    with pytest.raises(BadRequest, match="template must have 1 to"):
        catalog.prompts.register("main.ml.greeting", "")
    with pytest.raises(BadRequest, match="template has a NUL or a lone surrogate"):
        catalog.prompts.register("main.ml.greeting", "half \ud83d a face")
    with pytest.raises(NotFound, match=r"no model 'main\.ml\.greeting'"):
        catalog.get_model("main.ml.greeting")  # a prompt is no model
    assert [one.name for one in catalog.prompts.list("main.ml")] == ["main.ml.greeting"]
    assert len(catalog.prompts.versions("main.ml.greeting")) == 2
    catalog.prompts.delete("main.ml.greeting")
    assert catalog.prompts.list() == []
