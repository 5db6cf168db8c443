"""MLflow through control: the real server on its socket, MLflow's own client over a real socket, the platform's
tokens."""

import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.platform import PlatformSettings
from mosaic.platform.control import control_app
from mosaic.platform.mlflow_proxy import mlflow_door
from mosaic.platform.mlflow_rules import REFUSED, find_rule
from mosaic.platform.parts import build_parts
from mosaic.protocol import Principal
from mosaic.training import MlflowServer, Tracking
from mosaic.training.tracking import RunRecord
from tests.local import free_ports

ROOT = Path(__file__).parents[2]
MAX_ARTIFACT_BYTES = 12 * 1024 * 1024
API = "/api/2.0/mlflow"


@dataclass
class Door:
    """Control over a real socket with the MLflow server behind it, and who may ask."""

    uri: str
    server: MlflowServer
    catalog: Catalog
    tokens: dict[str, str]

    def ask(self, who: str | None, method: str, path: str, **other: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tokens[who]}"} if who else {}
        return httpx.request(method, self.uri + path, headers={**headers, **other.pop("headers", {})}, **other)

    def made(self, who: str, path: str, **body: Any) -> Any:
        answer = self.ask(who, "POST", API + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, who: str, **body: Any) -> str:
        """A new run of the experiment that the server itself makes."""
        return str(self.made(who, "/runs/create", **{"experiment_id": "0", **body})["run"]["info"]["run_id"])

    def tags(self, run_id: str) -> dict[str, str]:
        found = self.ask("ann", "GET", f"{API}/runs/get", params={"run_id": run_id}).json()["run"]
        return {tag["key"]: tag["value"] for tag in found["data"]["tags"]}

    def python(self, who: str, *arguments: str) -> str:
        """A client's own process: it knows the address and its token, nothing else of this platform."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_TOKEN": self.tokens[who],
            "MLFLOW_UC_OSS_TOKEN": self.tokens[who],
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, "-W", "ignore", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def under_api(app: ASGIApp) -> ASGIApp:
    """The application as Serve calls it with the route prefix /api."""

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/api"}, receive, send)

    return prefixed


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    root = tmp_path_factory.mktemp("mosaic")
    settings = PlatformSettings(storage=str(root), max_artifact_bytes=MAX_ARTIFACT_BYTES)
    parts = build_parts(settings)
    tokens = {who: parts.catalog.create_token(who)[1] for who in ("ann", "bob", "inner")}
    parts.catalog.ensure_schema("main.ml")
    for kind, name, privileges in (
        ("catalog", "main", ["USE CATALOG"]),
        ("schema", "main.ml", ["USE SCHEMA", "CREATE MODEL", "EXECUTE"]),
    ):
        parts.catalog.grants.grant(kind, name, "ann", privileges, by=Principal(name="admin", is_admin=True))
    tokens["root"] = parts.catalog.create_token("root", is_admin=True)[1]
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "mlflow" / "socket"
        app = control_app(parts, mlflow_door(settings, socket, parts.catalog, trusted=frozenset({"inner"})))
        port = free_ports(1)[0]
        config = uvicorn.Config(under_api(app), host="127.0.0.1", port=port, log_level="error", lifespan="off")
        control = uvicorn.Server(config)
        thread = threading.Thread(target=control.run)
        thread.start()
        with MlflowServer(root / "mlflow", socket) as server:
            yield Door(f"http://127.0.0.1:{port}", server, parts.catalog, tokens)
        control.should_exit = True
        thread.join()


def test_only_this_user_reaches_the_server_itself(door: Door, tmp_path: Path) -> None:
    folder = door.server.socket.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_ISSOCK(door.server.socket.stat().st_mode)
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(BadRequest, match=r"must be this user's alone \(mode 0700\)"):
        MlflowServer(tmp_path / "mlflow", tmp_path / "open" / "socket")
    with pytest.raises(BadRequest, match="longer than 95 bytes"):
        MlflowServer(tmp_path / "mlflow", tmp_path / ("x" * 100) / "socket")


def test_mlflows_client_does_all_its_work_through_control(door: Door, tmp_path: Path) -> None:
    (snippet,) = re.findall(
        r"```python\n(import mlflow\n.*?)```", (ROOT / "docs" / "catalog.md").read_text(), re.DOTALL
    )
    (tmp_path / "snippet.py").write_text(snippet.replace("http://127.0.0.1:8000", door.uri))
    said = door.python("ann", str(Path(__file__).with_name("mlflow_client.py")), str(tmp_path / "snippet.py"))
    told = json.loads(said.splitlines()[-1])
    assert told["hello"] == "hello" and told["same"] and told["files"] == ["files", "notes"]
    assert (told["found"], told["history"], told["predicts"]) == (2, 900, ["a"])
    assert (told["models"], told["traces"], told["spans"]) == (1, 1, ["inner", "outer"])
    assert (told["version"], told["registered_predicts"]) == (1, ["a"])
    assert door.catalog.get_model_version("main.ml.same/1").created_by == "ann"
    assert told["kept_in"].startswith("mlflow-artifacts:") and "mlflow.set_registry_uri" in told["registry"]
    assert door.tags(told["run"]) | {"mosaic.principal": "ann", "mlflow.user": "ann"} == door.tags(told["run"])
    for path in (f"/api/3.0/mlflow/traces/{told['trace']}", f"{API}/logged-models/{told['model']}"):
        assert "ann" in door.ask("bob", "GET", path).text  # anyone signed in may read
    for method, path, body in [
        ("DELETE", f"{API}/logged-models/{told['model']}", {}),
        ("PATCH", f"{API}/logged-models/{told['model']}/tags", {"tags": [{"key": "a", "value": "b"}]}),
        ("PATCH", f"{API}/traces/{told['trace']}/tags", {"key": "a", "value": "b"}),
        ("POST", "/api/3.0/mlflow/traces", {"trace": {"traceInfo": {"traceId": told["trace"], "state": "OK"}}}),
        ("POST", f"{API}/traces/delete-traces", {"experiment_id": told["experiment"], "request_ids": [told["trace"]]}),
        ("POST", f"{API}/experiments/delete", {"experiment_id": told["experiment"]}),
        ("POST", f"{API}/experiments/update", {"experimentId": told["experiment"], "new_name": "mine"}),
    ]:
        no = door.ask("bob", method, path, json=body)
        assert (no.status_code, no.json()["error_code"]) == (403, "PERMISSION_DENIED"), (path, no.text)
        assert "belongs to 'ann'" in no.json()["message"]


def test_without_a_token_there_is_no_way_in(door: Door) -> None:
    answer = door.ask(None, "POST", f"{API}/experiments/search", json={})
    assert answer.status_code == 401 and answer.json()["error_code"] == "INVALID_API_KEY"
    _, narrow = door.catalog.create_token("ann", scopes=["sql"])
    door.tokens["narrow"] = narrow
    assert door.ask("narrow", "POST", f"{API}/experiments/search", json={}).status_code == 403


CHANGES = [
    ("log-metric", {"key": "m", "value": 1.0, "timestamp": 1}),
    ("log-batch", {"metrics": [{"key": "m", "value": 1.0, "timestamp": 1, "step": 0}]}),
    ("log-parameter", {"key": "p", "value": "1"}),
    ("set-tag", {"key": "t", "value": "1"}),
    ("update", {"status": "FINISHED"}),
    ("delete", {}),
]


@pytest.mark.parametrize(("call", "body"), CHANGES, ids=[call for call, _ in CHANGES])
def test_anothers_run_is_not_changed_and_the_denial_is_written_down(
    door: Door, call: str, body: dict[str, Any]
) -> None:
    run_id = door.run("ann")
    before = door.catalog.audit.newest(1)[-1].sequence
    spellings: list[dict[str, Any]] = [
        {"run_id": run_id},
        {"runId": run_id},
        {"run_id": door.run("bob"), "runId": run_id},
    ]
    for spelling in spellings:
        no = door.ask("bob", "POST", f"{API}/runs/{call}", json={**spelling, **body})
        assert (no.status_code, no.json()["error_code"]) == (403, "PERMISSION_DENIED"), no.text
    rows = door.catalog.audit.list(after=before)
    assert {row.response.status_code for row in rows} == {403} and len(rows) == len(spellings)
    assert rows[0].user_identity.email == "bob" and rows[0].request_params == {"run_id": run_id, "owner": "ann"}
    assert rows[0].action_name.lower() == f"mlflowruns{call}post".replace("-", "")
    by_root = {"run_id": run_id, "key": "by", "value": "root"}
    assert door.ask("root", "POST", f"{API}/runs/set-tag", json=by_root).status_code == 200
    assert door.ask("ann", "POST", f"{API}/runs/{call}", json={"run_id": run_id, **body}).status_code == 200


def test_anothers_file_is_neither_written_nor_deleted(door: Door) -> None:
    run_id, files = door.run("ann"), "/api/2.0/mlflow-artifacts/artifacts"
    path = f"{files}/0/{run_id}/artifacts/a.txt"
    assert door.ask("ann", "PUT", path, content=b"ours").status_code == 200
    twice = f"{files}/0/{door.run('bob')}/artifacts/%252e%252e/%252e%252e/{run_id}/artifacts/a.txt"
    for method in ("PUT", "DELETE"):
        assert door.ask("bob", method, path, content=b"theirs").status_code == 403
        assert door.ask("bob", method, f"{files}/0/%2561/artifacts/x", content=b"").status_code in (400, 404)
        assert door.ask("bob", method, f"{files}/loose.txt", content=b"").status_code == 403
        assert door.ask("bob", method, f"{files}/7/{door.run('bob')}/artifacts/a.txt", content=b"").status_code == 400
        assert door.ask("bob", method, twice, content=b"theirs").status_code == 400
        by_uri = f"{files}/file:0/{run_id}/artifacts/a.txt"
        assert door.ask("bob", method, by_uri, content=b"theirs").status_code == 400
    assert door.ask("bob", "GET", path).content == b"ours"
    assert door.ask("ann", "DELETE", path).status_code == 200
    assert door.ask("ann", "GET", path).status_code in (404, 500)


def test_whose_it_is_cannot_be_forged(door: Door) -> None:
    forged = [{"key": "mosaic.principal", "value": "ann"}, {"key": "mlflow.user", "value": "ann"}]
    run_id = door.run("bob", user_id="ann", tags=[*forged, {"key": "kept", "value": "1"}])
    assert door.tags(run_id) | {"mosaic.principal": "bob", "mlflow.user": "bob", "kept": "1"} == door.tags(run_id)
    info = door.ask("bob", "GET", f"{API}/runs/get", params={"run_id": run_id}).json()["run"]["info"]
    assert info["user_id"] == "bob"
    for call, body in [
        ("set-tag", {"key": "mosaic.principal", "value": "ann"}),
        ("set-tag", {"key": "mlflow.user", "value": "ann"}),
        ("delete-tag", {"key": "mosaic.principal"}),
        ("log-batch", {"tags": forged}),
    ]:
        no = door.ask("bob", "POST", f"{API}/runs/{call}", json={"run_id": run_id, **body})
        assert no.status_code == 400 and "is the platform's own" in no.json()["message"]
    experiment = door.made("bob", "/experiments/create", name="bobs", tags=forged)["experiment_id"]
    shown = door.ask("ann", "GET", f"{API}/experiments/get", params={"experiment_id": experiment}).json()
    assert shown["experiment"]["tags"] == [{"key": "mosaic.principal", "value": "bob"}]
    for spelling in ("artifact_location", "artifactLocation"):
        no = door.ask("bob", "POST", f"{API}/experiments/create", json={"name": "x", spelling: "file:///etc"})
        assert no.status_code == 400 and "artifact_location is not for a client to choose" in no.json()["message"]
    inner = door.run("inner", tags=[{"key": "mosaic.principal", "value": "ann"}])
    assert door.tags(inner)["mosaic.principal"] == "ann"  # the platform's own token says for whom it logs


def test_an_assessment_of_anothers_trace_is_the_assessors(door: Door) -> None:
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    info = {"trace_id": "tr-1", "trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    started = door.ask("ann", "POST", "/api/3.0/mlflow/traces", json={"trace": {"trace_info": info}})
    assert started.status_code == 200, started.text
    trace = started.json()["trace"]["trace_info"]["trace_id"]
    path = f"/api/3.0/mlflow/traces/{trace}/assessments"
    source = {"source_type": "HUMAN", "source_id": "bob"}
    said = {"assessment_name": "good", "trace_id": trace, "source": source, "feedback": {"value": True}}
    times = {"create_time": "2026-01-01T00:00:00Z", "last_update_time": "2026-01-01T00:00:00Z"}
    forged = {"assessment": {**said, **times, "metadata": {"mosaic.principal": "ann"}}}
    made = door.ask("bob", "POST", path, json=forged)
    assert made.status_code == 200, made.text
    one = f"{path}/{made.json()['assessment']['assessment_id']}"
    assert door.ask("ann", "DELETE", one).status_code == 403
    change = {
        "assessment": {"assessment_name": "better", "metadata": {"mosaic.principal": "ann"}},
        "update_mask": "assessment_name,metadata",
    }
    assert door.ask("ann", "PATCH", one, json=change).status_code == 403
    assert door.ask("bob", "PATCH", one, json=change).status_code == 200
    assert door.ask("ann", "DELETE", one).status_code == 403
    assert door.ask("bob", "DELETE", one).status_code == 200


def test_the_registry_is_the_catalog(door: Door) -> None:
    no = door.ask("root", "POST", f"{API}/registered-models/create", json={"name": "bot"})
    assert no.status_code == 403 and 'mlflow.set_registry_uri("uc:http://' in no.json()["message"]


def test_what_the_table_does_not_know_does_not_pass(door: Door) -> None:
    for path, status in [("/runs/explode", 404), ("/runs/%2e%2e/runs/create", 404), ("/webhooks", 403)]:
        answer = door.ask("root", "POST", API + path, json={})
        assert answer.status_code == status and answer.json()["error_code"], answer.text
    no = door.ask("ann", "POST", f"{API}/runs/explode", json={})
    assert no.json()["error_code"] == "ENDPOINT_NOT_FOUND" and f"{API}/runs/explode" in no.json()["message"]
    for odd in ("a/../b", "a?b", "a b", "\u00e9", "x" * 200, "", None, 5, ["a"], {"a": 1}):
        for path, body in [
            (f"{API}/runs/set-tag", {"run_id": odd, "key": "a", "value": "b"}),
            ("/api/3.0/mlflow/traces", {"trace": {"trace_info": {"trace_id": odd}}}),
        ]:
            assert door.ask("ann", "POST", path, json=body).status_code == 400, odd
    for body in (b"[]", b"{", b'"{}"', b'{"run_id": 5, "key": "a", "value": "b"}', b'{"key": "a", "value": "b"}'):
        assert door.ask("ann", "POST", f"{API}/runs/set-tag", content=body).status_code == 400
    gone = door.ask("ann", "POST", f"{API}/runs/set-tag", json={"run_id": "0" * 32, "key": "a", "value": "b"})
    assert (gone.status_code, gone.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def served_routes() -> set[tuple[str, str]]:
    """(method, path) of everything that the real server answers, with a word in the place of each parameter."""
    program = (
        "from mlflow.server import app\nfrom mlflow.server.fastapi_app import app as outer\n"
        "for rule in app.url_map.iter_rules():\n"
        "    [print(m, rule.rule) for m in rule.methods - {'HEAD', 'OPTIONS'}]\n"
        "for route in outer.routes:\n    [print(m, route.path) for m in getattr(route, 'methods', None) or []]\n"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    command = [sys.executable, "-W", "ignore", "-c", program]
    with tempfile.TemporaryDirectory() as folder:
        listed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line.split(" ", 1) for line in listed.splitlines()]
    return {(method, re.sub(r"<[^>]+>|\{[^}]+\}", "word", path)) for method, path in lines}


def test_every_route_of_the_server_is_allowed_by_a_rule_or_refused() -> None:
    routes = {(method, path) for method, path in served_routes() if path.startswith("/api/")}
    assert len(routes) > 150
    passed, unknown = set(), []
    for method, path in routes:
        try:
            find_rule(method, path)
            passed.add(path)
        except PermissionDenied:
            continue
        except NotFound:
            unknown.append((method, path))
    assert not unknown, f"MLflow's server has routes that the table does not know: {unknown}"
    assert len(passed) > 40
    pointless = [prefix for prefix in REFUSED if not any(path.startswith(prefix) for _, path in routes)]
    assert not pointless, f"refused, but MLflow has no such route: {pointless}"


def test_sizes_are_limited_on_the_way(door: Door) -> None:
    path = f"/api/2.0/mlflow-artifacts/artifacts/0/{door.run('ann')}/artifacts/big.bin"
    chunk = b"x" * 1024 * 1024

    def stream() -> Iterator[bytes]:
        for _ in range(13):
            yield chunk

    told = http.client.HTTPConnection(door.uri.removeprefix("http://"))
    told.putrequest("PUT", path)
    told.putheader("Authorization", f"Bearer {door.tokens['ann']}")
    told.putheader("Content-Length", str(MAX_ARTIFACT_BYTES + 1))
    told.endheaders()
    answer = told.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error_code"] == "REQUEST_TOO_LARGE"
    with suppress(httpx.TransportError):  # where the answer comes while the client still sends
        assert door.ask("ann", "PUT", path, content=stream()).status_code == 413
    assert door.ask("ann", "GET", path).status_code in (404, 500)
    body = b'{"run_id": "' + b"x" * (4 * 1024 * 1024) + b'"}'
    assert door.ask("ann", "POST", f"{API}/runs/set-tag", content=body).status_code == 413


def test_a_client_that_leaves_in_the_middle_leaves_nothing(door: Door) -> None:
    path = f"/api/2.0/mlflow-artifacts/artifacts/0/{door.run('ann')}/artifacts/half.bin"
    left = http.client.HTTPConnection(door.uri.removeprefix("http://"))
    left.putrequest("PUT", path)
    left.putheader("Authorization", f"Bearer {door.tokens['ann']}")
    left.putheader("Content-Length", str(8 * 1024 * 1024))
    left.endheaders()
    left.send(b"x" * 1024 * 1024)
    time.sleep(0.3)
    left.close()
    assert door.ask("ann", "GET", path).status_code in (404, 500)
    assert door.ask("ann", "PUT", path, content=b"whole").status_code == 200
    assert door.ask("ann", "GET", path).content == b"whole"


def test_headers_of_the_client_stop_at_the_door(door: Door) -> None:
    odd = {"origin": "http://evil.example", "x-mlflow-workspace": "other", "host": "evil.example", "cookie": "a=b"}
    answer = door.ask("ann", "POST", f"{API}/experiments/search", json={"max_results": 1}, headers=odd)
    assert answer.status_code == 200 and "set-cookie" not in answer.headers
    assert answer.headers["content-type"] == "application/json"


def test_eight_log_at_once(door: Door) -> None:
    said = door.python(
        "bob",
        "-c",
        """
import threading, mlflow
from mlflow.entities import Metric
client = mlflow.MlflowClient()
experiment = client.create_experiment("crowd")
runs, wrong = {}, []
def work(number):
    try:
        runs[number] = client.create_run(experiment).info.run_id
        for step in range(20):
            client.log_batch(runs[number], [Metric("m", float(step), step, step)])
    except Exception as error:
        wrong.append(error)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(wrong, [len(client.get_metric_history(run, "m")) for run in runs.values()])
""",
    )
    assert said.splitlines()[-1] == f"[] {[20] * 8}"


def test_the_platforms_own_record_goes_the_same_way(door: Door) -> None:
    tracking = Tracking(door.uri, lambda: door.tokens["inner"], owner="ann")
    record = RunRecord(tracking, experiment="training", name="t", params={"a": 1}, tables={"training": "a.b.c@3"})
    record.log(1, {"loss": 0.5})
    record.finish("FINISHED")
    assert record.run_id is not None
    run = door.ask("bob", "GET", f"{API}/runs/get", params={"run_id": record.run_id}).json()["run"]
    assert run["info"]["status"] == "FINISHED" and run["data"]["metrics"][0]["value"] == 0.5
    assert door.tags(record.run_id)["mosaic.principal"] == "ann"
    again = RunRecord(tracking, experiment="training", name="t", params={}, tables={})
    assert door.ask("ann", "POST", f"{API}/runs/delete", json={"run_id": again.run_id}).status_code == 200


def test_a_server_that_was_killed_is_a_503_until_it_is_back(door: Door) -> None:
    run_id = door.run("ann")
    first = door.server.process_id
    assert first is not None
    os.killpg(first, signal.SIGKILL)
    time.sleep(0.1)
    answer = door.ask("ann", "POST", f"{API}/runs/set-tag", json={"run_id": run_id, "key": "a", "value": "1"})
    assert (answer.status_code, answer.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE"), answer.text
    assert "the MLflow server does not answer" in answer.json()["message"]
    deadline = time.monotonic() + 60
    while door.ask("ann", "POST", f"{API}/runs/set-tag", json={"run_id": run_id, "key": "a", "value": "1"}).is_error:
        assert time.monotonic() < deadline, "the server did not come back"
        time.sleep(0.2)
    assert door.tags(run_id)["a"] == "1" and door.server.process_id != first and door.server.is_healthy()
