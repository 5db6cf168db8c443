"""What the commands change: the catalog has it, the audit says by whom, and bad input changes nothing."""

import functools
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mosaic.errors import Unauthenticated
from tests.cli.conftest import SECRET, Mosaic

GREETING = "Good day, {{name}}"


def test_every_change_is_in_the_audit_as_the_administrators(mosaic: Mosaic, tmp_path: Path) -> None:
    source = tmp_path / "add.py"
    source.write_text("def add(a: int, b: int) -> int:\n    return a + b\n")
    (token,) = mosaic.catalog.list_tokens()
    changes = [
        "catalog create new",
        "catalog update new --comment fresh --property a=b",
        "schema create new.one",
        "schema update new.one --owner readers",
        "table update main.docs.entries --comment Entries",
        "volume create new.one.files",
        "volume update new.one.files --property a=b",
        f"function create new.one.add --source {source}",
        "function update new.one.add --comment Adds",
        "model update main.docs.bot --comment Talks",
        "model alias set main.docs.bot live 1",
        "model alias remove main.docs.bot live",
        "prompt register new.one.greeting --template -",
        "prompt alias set new.one.greeting live 1",
        "prompt alias remove new.one.greeting live",
        "connection create other --type openai --secret-from-stdin",
        "connection update other --comment Other",
        "tag set table main.docs.entries pii=no",
        "tag remove table main.docs.entries pii",
        "user create carol",
        "user deactivate carol",
        "user activate carol",
        "group create team",
        "group add team carol",
        "group remove team carol",
        "group delete team",
        "grants add bob MODIFY table main.docs.entries",
        "grant remove bob MODIFY table main.docs.entries",
        f"token revoke {token.id}",
        "token create carol",
        "connection delete other",
        "prompt delete new.one.greeting",
        "function delete new.one.add",
        "volume delete new.one.files",
        "model delete main.docs.bot --force",
        "table delete main.docs.private",
        "undrop table main.docs.private",
        "schema delete new.one",
        "catalog delete new",
    ]
    seen = mosaic.catalog.audit.newest(1)[0].sequence
    for change in changes:
        mosaic.ok(*change.split(), stdin=GREETING)
        events = mosaic.catalog.audit.list(after=seen)
        assert events, change
        seen = events[-1].sequence
        for event in events:
            told = (event.user_identity.email, event.user_agent, event.source_ip_address, event.response.status_code)
            assert told == ("admin", "mosaic command", None, 200), change
    told = mosaic.ok("audit", "tail", "-n", "1")
    assert "deleteCatalog" in told and "mosaic command" in told


def test_an_owner_has_to_be_there(mosaic: Mosaic) -> None:
    """Or a slip of the keyboard gives things to whoever gets that name later."""
    commands = {
        "catalog create new": mosaic.catalog.catalogs.list,
        "schema create main.new": functools.partial(mosaic.catalog.schemas.list, "main"),
        "volume create main.docs.files2": mosaic.catalog.volumes.list,
        "prompt register main.docs.hello --template -": mosaic.catalog.prompts.list,
    }
    for command, listed in commands.items():
        before = listed()
        ended = mosaic.run(*command.split(), "--owner", "bobb", stdin=GREETING)
        assert ended.code == 1 and "no principal 'bobb'; there are ['admin'" in ended.err and listed() == before


def test_json_of_what_was_made(mosaic: Mosaic, tmp_path: Path) -> None:
    catalog = mosaic.catalog
    template = tmp_path / "greeting.txt"
    template.write_text(GREETING)
    made = {
        "catalog create New --comment c --property a=b": lambda: catalog.catalogs.get("new"),
        "schema create new.one --owner bob": lambda: catalog.schemas.get("new.one"),
        "schema update new.one --comment changed": lambda: catalog.schemas.get("new.one"),
        "volume create new.one.files": lambda: catalog.volumes.get("new.one.files"),
        "volume create new.one.far --location s3://bucket/far": lambda: catalog.volumes.get("new.one.far"),
        f"prompt register new.one.p --template {template}": lambda: catalog.prompts.get("new.one.p/1"),
        "user create robot --service": lambda: catalog.principals.get("robot"),
        "group create team": lambda: catalog.principals.get("team"),
    }
    for command, record in made.items():
        assert mosaic.json(*command.split()) == record().model_dump(mode="json"), command
    assert catalog.catalogs.get("new").properties == {"a": "b"} and catalog.schemas.get("new.one").owner == "bob"
    place = catalog.volumes.get("new.one.files").spec
    assert place["volume_type"] == "MANAGED" and place["location"].startswith(f"{mosaic.home}/volumes/vol_")
    assert catalog.volumes.get("new.one.far").spec == {"volume_type": "EXTERNAL", "location": "s3://bucket/far"}


def test_a_token_with_scopes_and_an_end(mosaic: Mosaic) -> None:
    before = datetime.now(UTC)
    asked = ["--scope", "sql", "--scope", "mlflow", "--expires-in", "30d", "--json"]
    ended = mosaic.run("token", "create", "carol", *asked)
    assert (ended.code, ended.err) == (0, "user carol is made\n")  # or a slip of the keyboard would be a user
    made = ended.json
    secret = made.pop("secret")
    (record,) = [one for one in mosaic.catalog.list_tokens() if one.id == made["id"]]
    assert made == record.model_dump(mode="json") and record.scopes == ("sql", "mlflow")
    assert record.expires_at is not None and before <= record.expires_at - timedelta(days=30) <= datetime.now(UTC)
    assert mosaic.catalog.check_token(secret).name == "carol"
    assert secret not in mosaic.ok("token", "list", "--json") + mosaic.ok("audit", "list", "--json")
    ended = mosaic.run("token", "create", "robot", "--service", "--admin", "--comment", "for CI")
    assert ended.err == "service robot is made\n" and mosaic.catalog.check_token(ended.out.strip()).is_admin
    assert mosaic.catalog.check_token(mosaic.ok("token", "create", "robot", "--service").strip()).name == "robot"
    assert mosaic.ok("token", "revoke", record.id) == f"{record.id} is revoked\n"
    with pytest.raises(Unauthenticated, match="revoked"):
        mosaic.catalog.check_token(secret)


def test_dropped_and_brought_back_and_stale_etags(mosaic: Mosaic) -> None:
    etag = mosaic.json("table", "get", "main.docs.private")["etag"]
    mosaic.ok("table", "update", "main.docs.private", "--comment", "new", "--etag", etag)
    for stale in ("update main.docs.private --comment newer", "delete main.docs.private"):
        ended = mosaic.run("table", *stale.split(), "--etag", etag)
        assert ended.code == 1 and ended.err.startswith("mosaic: ") and etag in ended.err, ended
    assert mosaic.json("table", "get", "main.docs.private")["comment"] == "new"
    refused = mosaic.run("catalog", "delete", "main")
    assert refused.code == 1 and "is not empty" in refused.err
    assert "undrop catalog main" in mosaic.ok("catalog", "delete", "main", "--force")
    dropped = {(one["kind"], one["name"]) for one in mosaic.json("dropped")}
    assert ("catalog", "main") in dropped and ("table", "main.docs.private") in dropped
    assert mosaic.ok("undrop", "catalog", "main") == "catalog main is back\n"
    assert mosaic.json("dropped") == []
    assert len(mosaic.json("table", "list")) == 2


def test_secrets_come_from_stdin_or_a_file_and_are_shown_nowhere(mosaic: Mosaic, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from-a-file\r\n")
    shown = mosaic.ok(
        *("connection", "create", "a", "--type", "aws", "--secret-from-stdin", "--secret-name", "secret_access_key"),
        *("--secret-file", f"access_key={file}", "--option", "region=eu", "--json"),
        stdin="from-stdin\n",
    )
    for command in ("connection get a", "connection list", "audit list", "search a", "connection get openai"):
        shown += mosaic.ok(*command.split()) + mosaic.ok(*command.split(), "--json")
    assert not [secret for secret in ("from-a-file", "from-stdin", SECRET) if secret in shown]
    assert json.loads(mosaic.ok("connection", "get", "a", "--json"))["spec"] == {
        "connection_type": "AWS",
        "options": {"region": "eu"},
        "secrets": ["access_key", "secret_access_key"],
    }
    kept = mosaic.catalog.connections.secrets("a", by="admin")
    assert kept == {"access_key": "from-a-file", "secret_access_key": "from-stdin"}


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "told"),
    [
        (["--option", f"api_key={SECRET}"], None, 2, "arguments are shown by ps"),
        (["--option", f"PassWord={SECRET}"], None, 2, "arguments are shown by ps"),
        (["--option", f"base_url=https://me:{SECRET}@example.com"], None, 2, "has a password in its address"),
        (["--secret-file", f"pin={SECRET}"], None, 2, "there are api_key, token"),
        (["--secret-from-stdin"], b"", 1, "must have 1 to 65536 characters"),
        (["--secret-from-stdin"], b"x" * 65_538, 1, "must have 1 to 65536 characters"),
        (["--secret-from-stdin"], b"\xff\xfe", 1, "is not UTF-8"),
        (["--secret-from-stdin", "--secret-file", "api_key=/dev/null"], None, 1, "must have 1 to 65536"),
        (["--secret-file", "api_key=/nowhere/at/all"], None, 1, "cannot be read from '/nowhere/at/all'"),
        (["--secret-name", "pin", "--secret-from-stdin"], SECRET.encode(), 2, "'pin' is not one of"),
        (["--option", "a=1", "--option", "a=2"], None, 2, "--option 'a' is given twice"),
    ],
)
def test_a_connection_that_is_refused(
    shared: Mosaic, arguments: list[str], stdin: bytes | None, code: int, told: str
) -> None:
    ended = shared.run("connection", "create", "b", "--type", "openai", *arguments, stdin=stdin)
    assert (ended.code, ended.out) == (code, "") and told in ended.err and SECRET not in ended.err
    assert shared.catalog.connections.find("b") is None


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["catalog", "create", 'a"b'], 1, "catalog name 'a\"b'"),
        (["schema", "create", "main.o'brien"], 1, 'part "o\'brien" must be'),
        (["table", "list", "main.docs'; DROP TABLE securable; --"], 1, "must be 1 to 255 letters"),
        (["table", "get", "main.docs.\x1b[31mred\n"], 1, "\\x1b[31mred\\n"),
        (["table", "get", "a.b"], 1, "has 2 part(s), but needs 3"),
        (["table", "preview", "main.docs.entries@9"], 1, "has no readable version 9"),
        (["table", "preview", "main.docs.entries@x"], 1, "version 'x'"),
        (["table", "preview", "main.docs.entries", "--rows", "0"], 2, "0 is not in the range"),
        (["schema", "create", "nowhere.one"], 1, "nowhere"),
        (["catalog", "create", "main"], 1, "main"),
        (["catalog", "create", "new", "--property", "a"], 2, "'a' must be KEY=VALUE"),
        (["catalog", "create", "new", "--owner", "no body"], 1, "owner 'no body'"),
        (["catalog", "update", "main"], 2, "nothing is given to change"),
        (["catalog", "list", "--limit", "0"], 2, "0 is not in the range"),
        (["catalog", "fly"], 2, "No such command 'fly'"),
        (["fly"], 2, "No such command 'fly'"),
        (["grants", "list", "planet", "earth"], 2, "'planet' is not one of"),
        (["grants", "add", "bob", "FLY", "schema", "main.docs"], 1, "privilege 'FLY' does not exist"),
        (["grant", "explain", "bob", "MODIFY", "table", "main.docs.gone"], 1, "no table 'main.docs.gone'"),
        (["token", "create", "carol", "--expires-in", "soon"], 2, "'soon' is no duration"),
        (["token", "create", "carol", "--expires-in", "0d"], 2, "'0d' is no duration"),
        (["token", "create", "carol", "--expires-in", "999999w"], 1, "after the year 9999"),
        (["token", "create", "carol", "--scope", "all"], 1, "scope 'all' does not exist"),
        (["token", "revoke", "tok_none"], 1, "no token 'tok_none'"),
        (["model", "alias", "set", "main.docs.bot", "champion", "9"], 1, "no version 9"),
        (["model", "alias", "set", "main.docs.bot", "champion", "x"], 2, "'x' is not a valid integer"),
        (["model", "alias", "at", "main.docs.bot", "champion", "25:00"], 2, "'25:00' is no time"),
        (["model", "delete", "main.docs.bot"], 1, "delete them first"),
        (["audit", "list", "--since", "yesterday"], 2, "'yesterday' is no time"),
        (["tag", "set", "table", "main.docs.entries", "novalue"], 2, "'novalue' must be KEY=VALUE"),
        (["tag", "remove", "table", "main.docs.entries", "gone"], 1, "no tag 'gone'"),
        (["tag", "list", "table", "main.docs.entries", "--version", "1"], 1, "has no versions"),
        (["undrop", "table", "main.docs.entries"], 1, "is there"),
        (["group", "add", "readers", "nobody"], 1, "no principal 'nobody'"),
        (["group", "delete", "users"], 1, "the platform's own"),
        (["user", "create", "bob"], 1, "the name 'bob' is taken"),
        (["prompt", "get", "main.docs.greeting@live"], 1, "greeting@live"),
        (["prompt", "register", "main.docs.p", "--template", "/nowhere"], 2, "No such file"),
        (["function", "create", "main.docs.f", "--source", "/nowhere"], 2, "No such file"),
        (["volume", "create", "main.docs.v", "--location", "relative/path"], 1, "must be an absolute"),
        (["catalog", "list", "-f", "/nowhere.yaml"], 1, "settings file '/nowhere.yaml' cannot be read"),
    ],
    ids=lambda value: " ".join(value).encode("unicode_escape").decode() if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_changes_nothing(shared: Mosaic, command: list[str], code: int, told: str) -> None:
    before = shared.catalog.revision()
    ended = shared.run(*command)
    assert (ended.code, ended.out) == (code, "") and told in ended.err, ended
    assert shared.catalog.revision() == before
    if code == 1:
        assert ended.err.startswith("mosaic: ") and ended.err.count("\n") == 1
    assert "\x1b" not in ended.err and "Traceback" not in ended.err


def test_a_location_in_the_platforms_own_root_is_no_external_volume(shared: Mosaic) -> None:
    for location in (f"{shared.home}/managed", str(shared.home.parent), str(shared.home)):
        ended = shared.run("volume", "create", "main.docs.v", "--location", location)
        assert ended.code == 1 and "is in the platform's own root, or has it within" in ended.err
    assert shared.catalog.volumes.find("main.docs.v") is None


def test_names_with_quotes_where_they_are_allowed(mosaic: Mosaic) -> None:
    name = "o'brien\"--;[red]"
    mosaic.ok("user", "create", name)
    mosaic.ok("grants", "add", name, "SELECT", "table", "main.docs.entries")
    assert name in mosaic.ok("user", "list") and name in mosaic.ok("grants", "list", "table", "main.docs.entries")
    mosaic.ok("tag", "set", "table", "main.docs.entries", "a'b\"=c=d'\"")
    assert mosaic.json("tag", "list", "table", "main.docs.entries") == {"a'b\"": "c=d'\"", "domain": "docs"}
    assert [one["name"] for one in mosaic.json("search", "--tag", "a'b\"=c=d'\"")] == ["main.docs.entries"]
    assert mosaic.json("search", "'; DROP TABLE securable; --") == []


def test_what_was_denied_is_found(mosaic: Mosaic) -> None:
    with pytest.raises(Exception, match="may not"):
        mosaic.catalog.grants.check("bob", "MODIFY", "table", "main.docs.entries", action="writeTable")
    for options in ("--denied", "--action writeTable", "--principal bob", "--since 1m"):
        (event,) = mosaic.json("audit", "list", *options.split())
        assert event["action_name"] == "writeTable" and event["response"]["status_code"] == 403, options
    assert mosaic.json("audit", "list", "--denied", "--principal", "admin") == []
    line = mosaic.ok("audit", "tail", "--denied").splitlines()[1]
    assert "bob" in line and "table main.docs.entries privilege=MODIFY" in line and "403" in line


def test_the_audit_is_followed_until_interrupted(mosaic: Mosaic) -> None:
    command = [sys.executable, "-m", "mosaic.cli", "audit", "tail", "-n", "1", "--follow", "--json"]
    # Whoever runs the tests in the background may have had its own interrupts ignored, which children inherit.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    following = subprocess.Popen(
        [*command, "--storage", str(mosaic.home)], stdout=subprocess.PIPE, text=True, preexec_fn=heard
    )
    try:
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        assert first["action_name"] == "setTags"
        mosaic.ok("user", "create", "carol")
        second = json.loads(following.stdout.readline())
        assert second["request_params"]["name"] == "carol" and second["sequence"] > first["sequence"]
    finally:
        following.send_signal(signal.SIGINT)
    assert following.wait(timeout=20) == 0
    following.stdout.close()


def test_two_commands_at_once_leave_one_winner(mosaic: Mosaic) -> None:
    command = [sys.executable, "-m", "mosaic.cli", "schema", "create", "main.race", "--storage", str(mosaic.home)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(*one.communicate(timeout=60), one.returncode) for one in running]
    assert sorted(code for _, _, code in ended) == [0, 1]
    assert all("main.race" in err and err.startswith("mosaic: ") for _, err, code in ended if code)
