"""The audit trail: a row for each change and each denial, in step with what it tells of."""

import json
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa

from mosaic.catalog import Catalog, GrantChange
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.ids import is_id
from mosaic.protocol import Principal

SCHEMA = ("schema", "main.docs")

GRANT = """
import sys
from mosaic.catalog import Catalog
catalog = Catalog.open(sys.argv[1])
number = len(catalog.principals.list("group"))
while True:
    group = f"group{number}"
    catalog.principals.create_group(group, by="admin")
    catalog.grants.grant("schema", "main.docs", group, ["SELECT"], by="admin")
    print(group, flush=True)
    number += 1
"""


def test_a_change_is_one_row(catalog: Catalog, clock: FixedClock) -> None:
    token, _ = catalog.create_token("root", is_admin=True)
    last = catalog.audit.list()[-1].sequence
    caller = Principal(name="root", is_admin=True, token_id=token.id)
    asking = caller.model_copy(update={"request_id": "req_1", "source_ip_address": "127.0.0.1", "user_agent": "curl/8"})
    catalog.principals.create("ann", by=caller)
    changes = [
        GrantChange(principal="ann", add=("select", "USE SCHEMA")),
        GrantChange(principal="users", add=("BROWSE",)),
    ]
    catalog.grants.change(*SCHEMA, changes, by=asking)
    catalog.grants.change(*SCHEMA, changes, by=caller)  # as it is: no row
    catalog.grants.set_owner(*SCHEMA, "ann", by=caller)
    first, second, third = catalog.audit.list(after=last)
    assert (first.service_name, first.action_name) == ("accounts", "add")
    assert first.request_params == {"name": "ann", "kind": "user"}
    assert (second.service_name, second.action_name, second.request_id) == (
        "unityCatalog",
        "updatePermissions",
        "req_1",
    )
    assert (second.source_ip_address, second.user_agent, first.user_agent) == ("127.0.0.1", "curl/8", None)
    assert (second.user_identity.email, second.token_id) == ("root", token.id) and is_id(second.event_id, "evt")
    assert (second.event_time, second.event_date) == (clock.now, date(2026, 11, 1))
    assert (second.response.status_code, second.response.error_message) == (200, None)
    assert second.request_params["securable_full_name"] == "main.docs"
    assert json.loads(second.request_params["changes"]) == [
        {"principal": "ann", "add": ["SELECT", "USE SCHEMA"], "remove": []},
        {"principal": "users", "add": ["BROWSE"], "remove": []},
    ]
    assert (third.action_name, third.request_params["owner"]) == ("updateSchema", "ann")


def test_every_method_that_changes_writes_one_row(catalog: Catalog) -> None:
    principals, grants = catalog.principals, catalog.grants
    last = catalog.audit.list()[-1].sequence
    principals.create("ann", by="admin")
    principals.create_group("team", by="admin")
    principals.add_member("team", "ann", by="admin")
    grants.grant(*SCHEMA, "team", ["SELECT"], by="admin")
    grants.revoke(*SCHEMA, "team", ["SELECT"], by="admin")
    principals.remove_member("team", "ann", by="admin")
    principals.set_active("ann", False, by="admin")
    principals.set_active("ann", True, by="admin")
    principals.delete_group("team", by="admin")
    assert [event.action_name for event in catalog.audit.list(after=last)] == [
        *("add", "createGroup", "addPrincipalToGroup", "updatePermissions", "updatePermissions"),
        *("removePrincipalFromGroup", "deactivateUser", "activateUser", "removeGroup"),
    ]


def test_a_denial_is_a_row_and_changes_nothing(catalog: Catalog) -> None:
    catalog.principals.create("eve", by="admin")
    last, revision = catalog.audit.list()[-1].sequence, catalog.revision()
    with pytest.raises(PermissionDenied) as caught:
        eve = Principal(name="eve", request_id="req_2")
        catalog.grants.check(eve, "USE SCHEMA", *SCHEMA, action="getSchema")
    with pytest.raises(PermissionDenied):
        catalog.grants.grant(*SCHEMA, "eve", ["ALL PRIVILEGES"], by="eve")
    with pytest.raises(PermissionDenied):
        catalog.principals.create_group("mine", by="eve")
    denied, tried, other = catalog.audit.list(after=last)
    assert (denied.action_name, denied.request_id, denied.user_identity.email) == ("getSchema", "req_2", "eve")
    assert denied.request_params["privilege"] == "USE SCHEMA"
    assert (denied.response.status_code, denied.response.error_message) == (403, caught.value.message)
    assert (tried.action_name, tried.response.status_code) == ("updatePermissions", 403)
    assert (other.action_name, other.response.status_code) == ("createGroup", 403)
    assert catalog.grants.list(*SCHEMA) == [] and catalog.revision() == revision
    assert "mine" not in [one.name for one in catalog.principals.list()]


def test_what_fails_half_way_leaves_neither_change_nor_row(catalog: Catalog) -> None:
    catalog.principals.create("ann", by="admin")
    before = catalog.audit.list()
    changes = [GrantChange(principal="ann", add=("SELECT",)), GrantChange(principal="nobody", add=("SELECT",))]
    with pytest.raises(NotFound, match="no principal 'nobody'"):
        catalog.grants.change(*SCHEMA, changes, by="admin")
    assert catalog.grants.list(*SCHEMA) == [] and catalog.audit.list() == before


def test_pages(catalog: Catalog) -> None:
    for number in range(5):
        catalog.principals.create(f"user{number}", by="admin")
    seen, after = [], catalog.audit.list()[-6].sequence
    while page := catalog.audit.list(after=after, limit=2):
        seen += [event.request_params["name"] for event in page]
        after = page[-1].sequence
    assert seen == [f"user{number}" for number in range(5)]
    for limit in (0, 10_001):
        with pytest.raises(BadRequest, match=f"limit = {limit} must be from 1 to 10000"):
            catalog.audit.list(limit=limit)


def test_no_secret_is_in_it(catalog: Catalog) -> None:
    _, secret = catalog.create_token("eve")
    caller = catalog.check_token(secret)
    with pytest.raises(PermissionDenied):
        catalog.grants.check(caller, "USE SCHEMA", *SCHEMA)
    engine = sa.create_engine(catalog.url)
    with engine.connect() as connection:
        told = str(connection.execute(sa.text("SELECT * FROM audit")).fetchall())
        hashes = connection.execute(sa.text("SELECT secret_sha256 FROM token")).scalars().all()
    engine.dispose()
    assert "eve" in told and secret not in told and not any(one in told for one in hashes)


def test_kill_9_leaves_audit_and_objects_in_agreement(catalog: Catalog, tmp_path: Path) -> None:
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", GRANT, catalog.url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        answered = [process.stdout.readline().strip() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        answered += process.communicate()[0].split()
        events = catalog.audit.list(limit=10_000)
        made = [event.request_params["name"] for event in events if event.action_name == "createGroup"]
        granted = [
            json.loads(event.request_params["changes"])[0]["principal"]
            for event in events
            if event.action_name == "updatePermissions"
        ]
        assert made == sorted(made, key=lambda name: int(name.removeprefix("group")))
        assert sorted(made) == [one.name for one in catalog.principals.list("group") if one.created_by == "admin"]
        assert sorted(granted) == [one.principal for one in catalog.grants.list(*SCHEMA)]
        assert set(answered) <= set(granted)
