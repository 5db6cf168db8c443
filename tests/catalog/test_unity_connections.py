"""Connections over HTTP in Databricks' shape: their secrets come in, and are nowhere after that."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databricks.sdk.service import catalog as uc

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.storage import Storage
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_namespaces import NOW

SECRET = "sk-Very.Secret-QxV7"
CONNECTION: dict[str, Any] = {
    "name": "OpenAI",
    "connection_type": "openai",
    "options": {"base_url": "https://api.example.org/v1", "api_key": SECRET},
    "comment": "c",
    "properties": {"team": "ml"},
}


@pytest.fixture
def keyed(catalog: Catalog, catalog_url: str, clock: FixedClock, tmp_path: Path) -> Iterator[Unity]:
    """A catalog that can keep secrets."""
    with_key = Catalog.open(catalog_url, now=clock, key_file=tmp_path / "catalog.key")
    yield Unity(with_key, Storage(str(tmp_path / "root")))
    with_key.close()


def test_connections(keyed: Unity) -> None:
    made = keyed.make("/connections", **CONNECTION)
    assert made == {
        "name": "openai",
        "full_name": "openai",
        "connection_type": "OPENAI",
        "options": {"base_url": "https://api.example.org/v1"},
        "secret_options": ["api_key"],
        "comment": "c",
        "properties": {"team": "ml"},
        "owner": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "connection_id": made["connection_id"],
        "securable_type": "CONNECTION",
        "url": "https://api.example.org/v1",
        "credential_type": None,
        "metastore_id": None,
        "provisioning_info": None,
        "read_only": False,
    }
    told = uc.ConnectionInfo.from_dict(made)
    assert told.name == "openai" and told.securable_type is uc.SecurableType.CONNECTION
    assert keyed.catalog.connections.secrets("openai", by="ann") == {"api_key": SECRET}
    for path in ("/connections", "/connections/openai"):
        hidden = keyed("GET", path, token=keyed.reader)
        assert hidden.status_code == 403 or hidden.json() == {"connections": [], "next_page_token": None}
    admin = keyed.catalog.check_token(keyed.admin)
    keyed.catalog.grants.grant("connection", "openai", "bob", ["USE CONNECTION"], by=admin)
    assert keyed("GET", "/connections/openai", token=keyed.reader).json() == made
    assert keyed("GET", "/connections", token=keyed.reader).json()["connections"] == [made]
    assert keyed("PATCH", "/connections/openai", json={"options": {}}, token=keyed.reader).status_code == 403
    assert keyed("DELETE", "/connections/openai", token=keyed.reader).status_code == 403
    assert keyed("POST", "/connections", json=CONNECTION | {"name": "x"}, token=keyed.reader).status_code == 403
    again = keyed("POST", "/connections", json=CONNECTION)
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_EXISTS")
    body = {"options": {"host": "h", "password": SECRET + "2"}, "owner": "bob"}
    changed = keyed("PATCH", "/connections/openai", json=body).json()
    assert changed == made | {
        "options": {"host": "h"},
        "secret_options": ["password"],
        "url": "h",
        "owner": "bob",
        "updated_by": "ann",
    }
    assert keyed.catalog.connections.secrets("openai", by="bob") == {"password": SECRET + "2"}
    assert keyed("DELETE", "/connections/openai").json() == {}
    assert keyed("GET", "/connections/openai").status_code == 404


WRONG: list[Any] = [
    {**CONNECTION, "name": "a b"},
    {**CONNECTION, "name": None},
    {**CONNECTION, "connection_type": ""},
    {**CONNECTION, "options": SECRET},
    {**CONNECTION, "options": [SECRET]},
    {**CONNECTION, "options": {"api_key": [SECRET]}},
    {**CONNECTION, "options": {"api_key": {"value": SECRET}}},
    {**CONNECTION, "options": {"api_key": SECRET + "\0"}},
    {**CONNECTION, "options": {"api_key": SECRET, "port": 1}},
    {**CONNECTION, "options": {"base_url": f"https://me:{SECRET}@host/v1"}},
    {**CONNECTION, "api_key": SECRET},
    {**CONNECTION, "secrets": {"api_key": SECRET}},
    {**CONNECTION, "connection_type": {"api_key": SECRET}},
    {**CONNECTION, "comment": [SECRET]},
    {**CONNECTION, "properties": {"a": {"b": SECRET}}},
    {"name": {"x": SECRET}},
    [CONNECTION],
    SECRET,
]
NAMES = ("password", "api_key", "Bearer-Token", "personalAccessToken", "client_secret", "pem_private_key", "sas_token")
NAMES += ("GoogleServiceAccountKeyJson", "PWD", "Authorization", "credentials", "refresh_token", "x_api_key", "PAT")
NAMES += (
    "pass",
    "smtpPass",
    "githubPat",
    "APIKey",
    "dsn",
    "connStr",
    "connectionString",
    "http-headers",
    "Cookie",
    "jwt",
)
OPEN = {
    "tokenEndpoint": "https://login.example.org/oauth2/v2.0/token",
    "access-key-id": "AKIA1",
    "base_url": "https://h:8443/v1?version=2&partition_key=day",
    "path": "/secrets/bypass",
    "grant_type": "password",
    "scope": "api://app/token openid",
    "patience": "3",
    "sigma": "basic",
    "compassion": "x=1",
}
HAS_SECRET = {
    "odbc": f"Server=x;Uid=me;Password={SECRET}",
    "jdbc": f"jdbc:x://h/db?user=me&pass={SECRET}",
    "url": f"https://h/?api_key={SECRET}",
    "address": f"https://h/?x=1&key={SECRET}",
    "blob": f"https://a.blob.core.windows.net/c?sv=1&sig={SECRET}",
    "storage": f"AccountName=a;AccountKey={SECRET}",
    "extra": json.dumps({"token": SECRET}),
    "quoted": f"https://h/?api%5Fkey%3D{SECRET}",
    "more": f"Authorization: Bearer {SECRET}",
    "login": f"Basic {SECRET}",
    "assertion": f"eyJhbGciOiJIUzI1NiJ9.{SECRET}",
}


def test_a_secret_is_nowhere(
    keyed: Unity, catalog_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    told = [keyed("POST", "/connections", json=CONNECTION)]
    for number, option in enumerate(NAMES):
        body = {"name": f"c{number}", "connection_type": "HTTP", "options": {option: SECRET, "host": "h"}}
        told.append(keyed("POST", "/connections", json=body))
        assert told[-1].json()["options"] == {"host": "h"} and told[-1].json()["secret_options"] == [option]
    assert all(one.status_code == 200 for one in told)
    for body in WRONG:
        for method, path in (("POST", "/connections"), ("PATCH", "/connections/openai")):
            told.append(keyed(method, path, json=body))
            assert told[-1].status_code == 400, (method, body, told[-1].text)
    for content in (f'{{"options": {{"api_key": "{SECRET}"', f'{{"options": {{"api_key": "{SECRET}\n"}}}}', SECRET):
        told.append(keyed("POST", "/connections", content=content))
        assert told[-1].status_code == 400
    told.append(keyed("PATCH", "/connections/openai", json={"options": {"api_key": SECRET}}))
    told.append(keyed("PATCH", "/connections/openai", json={"name": SECRET}))
    told.append(keyed("POST", "/connections", json=CONNECTION | {"name": "d"}, token=keyed.reader))
    told += [keyed("GET", path) for path in ("/connections", "/connections/openai", "/openapi.json")]
    told.append(keyed("DELETE", "/connections/openai"))
    everywhere = [f"{one.text} {one.headers}" for one in told]
    everywhere += [caplog.text, *capfd.readouterr(), json.dumps(str(keyed.catalog.audit.list(limit=1000)))]
    engine = sa.create_engine(catalog_url)
    tables = sa.inspect(engine).get_table_names()
    assert "secret" in tables and "audit" in tables
    with engine.connect() as connection:
        everywhere += [repr(connection.execute(sa.text(f"SELECT * FROM {one}")).fetchall()) for one in tables]
    engine.dispose()
    everywhere += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(everywhere) > 60 and not [text for text in everywhere if SECRET in text]


def test_what_is_no_secret_is_shown(keyed: Unity) -> None:
    made = keyed.make("/connections", name="c", connection_type="HTTP", options=OPEN)
    assert (made["options"], made["secret_options"]) == (OPEN, [])


def test_a_value_with_a_secret_in_it_is_not_taken_to_be_shown(keyed: Unity) -> None:
    keyed.make("/connections", name="c", connection_type="HTTP", options={"host": "h"})
    for option, value in HAS_SECRET.items():
        for method, path, body in (
            ("POST", "/connections", {"name": "d", "connection_type": "HTTP"}),
            ("PATCH", "/connections/c", {}),
        ):
            refused = keyed(method, path, json={**body, "options": {option: value}})
            assert refused.status_code == 400 and f"option {option!r} reads as if" in refused.text, refused.text
            assert SECRET not in refused.text
    assert keyed("GET", "/connections/c").json()["options"] == {"host": "h"}
    whole = {"connection_string": HAS_SECRET["odbc"], "headers": HAS_SECRET["more"]}
    changed = keyed("PATCH", "/connections/c", json={"options": whole}).json()
    assert (changed["options"], changed["secret_options"]) == ({}, ["connection_string", "headers"])
    assert keyed.catalog.connections.secrets("c", by="ann") == whole


def test_messages_say_where_not_what(keyed: Unity) -> None:
    def told(body: Any) -> str:
        return str(keyed("POST", "/connections", json=body).json()["message"])

    assert told({**CONNECTION, "options": {"api_key": 1}}) == "field 'options.api_key': input should be a valid string"
    assert told({**CONNECTION, "api_key": "x"}) == "field 'api_key': extra inputs are not permitted"
    assert told({"name": "x", "connection_type": "HTTP"}) == "field 'options': field required"


def test_without_a_key_no_secret_is_taken(unity: Unity) -> None:
    refused = unity("POST", "/connections", json=CONNECTION)
    assert refused.status_code == 503 and "without a key file" in refused.json()["message"]
    assert SECRET not in refused.text and unity("GET", "/connections").json()["connections"] == []
    assert unity("POST", "/connections", json=CONNECTION | {"options": {"host": "h"}}).status_code == 200
