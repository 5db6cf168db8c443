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
from mosaic.platform.mlflow_proxy import MlflowProxy, mlflow_door
from mosaic.platform.mlflow_rules import REFUSED, find_rule
from mosaic.platform.parts import build_parts
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.training import MlflowServer, Tracking
from mosaic.training.tracking import RunRecord
from tests.local import free_ports, served

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


def trace_info(trace_id: str, **more: Any) -> dict[str, Any]:
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    info = {"trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK", **more}
    return {"trace": {"trace_info": {**info, "trace_id": trace_id}}}


def feedback(trace_id: str, value: float, **more: Any) -> dict[str, Any]:
    source = {"source_type": "HUMAN", "source_id": "whoever"}
    return {"assessment_name": "q", "trace_id": trace_id, "source": source, "feedback": {"value": value}, **more}


def strict(**body: Any) -> bytes:
    """JSON as Python writes it, with what JSON has not: Infinity, halves of surrogates."""
    return json.dumps(body).encode()


def test_an_assessment_is_neither_taken_nor_overridden_by_making_another(door: Door) -> None:
    traces, (hers, his) = "/api/3.0/mlflow/traces", ("tr-hers", "tr-his")
    assert door.ask("ann", "POST", traces, json=trace_info(hers)).status_code == 200
    made = door.ask("ann", "POST", f"{traces}/{hers}/assessments", json={"assessment": feedback(hers, 5)})
    one = made.json()["assessment"]["assessment_id"]
    times = {"create_time": "2026-01-01T00:00:00Z", "last_update_time": "2026-01-01T00:00:00Z"}
    for spelling in ("assessment_id", "assessmentId"):
        taking = feedback(his, 666, **times, **{spelling: one})
        for _ in range(2):  # MLflow merges the second time
            done = door.ask("bob", "POST", traces, json=trace_info(his, assessments=[taking]))
            assert done.status_code == 200, done.text
        named = {"assessment": feedback(hers, 1, **{spelling: one})}
        again = door.ask("bob", "POST", f"{traces}/{hers}/assessments", json=named)
        assert again.status_code == 200 and again.json()["assessment"]["assessment_id"] != one
    assert door.ask("bob", "GET", f"{traces}/{his}/assessments/{one}").status_code == 404
    overriding = {"assessment": feedback(hers, 1, overrides=one)}
    before = door.catalog.audit.newest(1)[-1].sequence
    no = door.ask("bob", "POST", f"{traces}/{hers}/assessments", json=overriding)
    assert no.status_code == 403 and "belongs to 'ann'" in no.json()["message"]
    assert [row.response.status_code for row in door.catalog.audit.list(after=before)] == [403]
    kept = door.ask("bob", "GET", f"{traces}/{hers}/assessments/{one}").json()["assessment"]
    assert (kept["valid"], kept["feedback"]["value"]) == (True, 5) and kept["metadata"] == {"mosaic.principal": "ann"}
    assert door.ask("ann", "POST", f"{traces}/{hers}/assessments", json=overriding).status_code == 200
    assert not door.ask("bob", "GET", f"{traces}/{hers}/assessments/{one}").json()["assessment"]["valid"]


def test_a_trace_is_the_callers_in_both_versions_of_the_call(door: Door) -> None:
    nobody = trace_info("x")
    del nobody["trace"]["trace_info"]["trace_id"]
    no = door.ask("bob", "POST", "/api/3.0/mlflow/traces", json=nobody)
    assert no.status_code == 400 and "trace_info.trace_id" in no.json()["message"]
    forged = {"experiment_id": "0", "timestamp_ms": 1, "tags": [{"key": "mosaic.principal", "value": "ann"}]}
    old = door.ask("bob", "POST", f"{API}/traces", json={**forged, "trace": {"trace_info": {"trace_id": "tr-new"}}})
    assert old.status_code == 200, old.text
    tags = {tag["key"]: tag["value"] for tag in old.json()["trace_info"]["tags"]}
    assert tags["mosaic.principal"] == "bob"
    assert door.ask("ann", "POST", "/api/3.0/mlflow/traces", json=trace_info("tr-kept")).status_code == 200
    assert door.ask("root", "POST", "/api/3.0/mlflow/traces", json=trace_info("tr-kept")).status_code == 200
    kept = door.ask("bob", "GET", "/api/3.0/mlflow/traces/tr-kept").json()["trace"]["trace_info"]
    assert kept["tags"]["mosaic.principal"] == "ann"  # an administrator changes it, and it stays hers


def test_anothers_logged_model_and_run_are_not_written_to_from_ones_own(door: Door) -> None:
    anns, bobs = (
        door.made(who, "/logged-models", experiment_id="0", name="m")["model"]["info"]["model_id"]
        for who in ("ann", "bob")
    )
    run_of_ann, run_of_bob = door.run("ann"), door.run("bob")
    metric = {"key": "m", "value": 1.0, "timestamp": 1, "step": 0}
    posts: list[tuple[str, dict[str, Any]]] = [
        ("/runs/log-metric", {"run_id": run_of_bob, **metric, "model_id": anns}),
        ("/runs/log-batch", {"run_id": run_of_bob, "metrics": [metric, {**metric, "modelId": anns}]}),
        ("/runs/outputs", {"run_id": run_of_bob, "models": [{"model_id": anns, "step": 0}]}),
        ("/logged-models", {"experiment_id": "0", "name": "model", "source_run_id": run_of_ann}),
        ("/logged-models", {"experiment_id": "0", "name": "model", "sourceRunId": run_of_ann}),
    ]
    for path, body in posts:
        no = door.ask("bob", "POST", API + path, json=body)
        assert no.status_code == 403 and "belongs to 'ann'" in no.json()["message"], (path, no.text)
    # MLflow reads the id of this one from the body, not from the path.
    ready = {"model_id": anns, "status": 2}
    assert door.ask("bob", "PATCH", f"{API}/logged-models/{bobs}", json=ready).status_code == 403
    shown = door.ask("bob", "GET", f"{API}/logged-models/{anns}").json()["model"]
    assert shown["info"]["status"] == "LOGGED_MODEL_PENDING" and not shown.get("data", {}).get("metrics")
    assert door.ask("bob", "PATCH", f"{API}/logged-models/{bobs}", json={**ready, "model_id": bobs}).status_code == 200
    assert door.ask("bob", "POST", f"{API}/runs/log-metric", json={**posts[0][1], "model_id": bobs}).status_code == 200
    used = {"run_id": run_of_bob, "models": [{"model_id": anns}]}
    assert door.ask("bob", "POST", f"{API}/runs/log-inputs", json=used).status_code == 200  # reading is everybody's


def test_whose_it_is_stands_though_mlflow_cannot_read_the_body_to_its_end(door: Door) -> None:
    for more in ({"start_time": 10**23}, {"runName": 5}, {"tags": [{"key": "a", "value": "b"}], "start_time": 1e308}):
        run_id = door.run("bob", **more)
        assert door.tags(run_id) | {"mosaic.principal": "bob", "mlflow.user": "bob"} == door.tags(run_id), more
        info = door.ask("bob", "GET", f"{API}/runs/get", params={"run_id": run_id}).json()["run"]["info"]
        assert info["user_id"] == "bob"
    body = {"experiment_id": "0", "name": "m", "params": [{"key": "a", "value": 5}], "tags": [{"key": "a", "value": 5}]}
    for fields in (("experiment_id", "name", "params"), ("experiment_id", "name", "tags")):
        made = door.ask("bob", "POST", f"{API}/logged-models", json={name: body[name] for name in fields})
        if made.status_code == 200:
            assert '"bob"' in json.dumps(made.json()["model"]["info"]["tags"])
    odd = {"execution_duration": "garbage"}
    assert door.ask("bob", "POST", "/api/3.0/mlflow/traces", json=trace_info("tr-odd", **odd)).status_code == 200
    trace = door.ask("bob", "GET", "/api/3.0/mlflow/traces/tr-odd").json()["trace"]["trace_info"]
    assert trace["tags"]["mosaic.principal"] == "bob" and trace["trace_metadata"]["mlflow.user"] == "bob"
    half = feedback("tr-odd", 1)
    made = door.ask(
        "bob",
        "POST",
        "/api/3.0/mlflow/traces/tr-odd/assessments",
        json={"assessment": {**half, "create_time": "garbage"}},
    )
    assert made.status_code == 200, made.text
    assert made.json()["assessment"]["metadata"]["mosaic.principal"] == "bob"
    made = door.ask(
        "bob", "POST", f"{API}/experiments/create", json={"name": "odd", "tags": [{"key": "a", "value": 5}]}
    )
    if made.status_code == 200:
        shown = door.ask("bob", "GET", f"{API}/experiments/get", params=made.json()).json()["experiment"]
        assert {"key": "mosaic.principal", "value": "bob"} in shown["tags"]


def test_what_is_not_json_is_refused_at_the_door(door: Door) -> None:
    for path, body in [
        ("/runs/create", strict(experiment_id="0", start_time=float("inf"))),
        ("/runs/create", b'{"experiment_id": "0", "start_time": 1e400}'),
        ("/runs/create", strict(experiment_id="0", tags=[{"key": "\ud800", "value": "x"}])),
        ("/runs/search", b'{"experiment_ids": ["0"], "max_results": 1e400}'),
        ("/runs/search", b"[" * 100_000),
        ("/runs/log-metric", strict(run_id=door.run("ann"), key="a", value=float("nan"), timestamp=1)),
    ]:
        headers = {"content-type": "application/json"}
        no = door.ask("ann", "POST", API + path, content=body, headers=headers)
        assert (no.status_code, no.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), (path, no.text)
    run_id = door.run("ann")
    for value in ("NaN", "Infinity"):  # as MLflow's client says it
        said = {"run_id": run_id, "key": value, "value": value, "timestamp": 1}
        assert door.ask("ann", "POST", f"{API}/runs/log-metric", json=said).status_code == 200


def as_written(uri: str, token: str, method: str, path: str) -> tuple[int, bytes]:
    """A call whose path no client tidies up."""
    connection = http.client.HTTPConnection(uri.removeprefix("http://"))
    connection.putrequest(method, path)
    connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


AWAY = ["..", "%2e%2e", ".%2E", "%252e%252e", "..%5c", "%5C..", "..;a=b", "..%3Ba", "a%00", "%250a", ".", ""]


def test_no_path_leaves_the_table_of_calls(door: Door) -> None:
    token, files = door.tokens["bob"], "/api/2.0/mlflow-artifacts/artifacts"
    for dots in AWAY:
        for target in ("version", "api/2.0/mlflow/registered-models/search", "ajax-api/2.0/mlflow/experiments/search"):
            status, said = as_written(door.uri, token, "GET", f"{files}/{dots}/{dots}/{dots}/{dots}/{target}")
            assert (status, json.loads(said)["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), (dots, target)
        for path in (f"{API}/logged-models/{dots}", f"{API}/logged-models/{dots}/artifacts/directories"):
            assert as_written(door.uri, token, "GET", path)[0] == 404, path
        assert as_written(door.uri, token, "GET", f"/api/3.0/mlflow/traces/a/assessments/{dots}")[0] == 404
    for odd in ("file:///etc/passwd", "file:0/x", "0/a%23b", "%2Fetc/passwd", "%25" + "25" * 5000 + "2e"):
        assert as_written(door.uri, token, "GET", f"{files}/{odd}")[0] == 400, odd
    assert as_written(door.uri, token, "DELETE", f"{API}/logged-models/m-1/tags/mosaic%252Eprincipal")[0] in (400, 404)
    name = f"{files}/0/{door.run('bob')}/artifacts/a%3Bb%20%2B..c.txt"
    assert door.ask("bob", "PUT", name, content=b"odd name").status_code == 200
    assert door.ask("ann", "GET", name).content == b"odd name"


def test_a_server_elsewhere_sends_nobody_on_and_is_asked_under_its_own_path(door: Door) -> None:
    seen = []

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["method"], scope["raw_path"].decode(), scope["query_string"].decode()))
        headers = [(b"location", b"http://foreign.example/"), (b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body", "body": b"<a href=http://foreign.example/>"})

    with served(elsewhere) as address:
        proxy = MlflowProxy(
            f"{address}/mlflow/",
            lambda *_: None,
            trusted=frozenset(),
            max_body_bytes=1_000_000,
            max_artifact_bytes=1_000_000,
        )
        app = ShapeErrors(Authenticate(proxy, door.catalog.check_token))
        with served(under_api(app)) as uri:
            files, token = "/api/2.0/mlflow-artifacts/artifacts", door.tokens["bob"]
            for dots in AWAY:
                path = f"{files}/{dots}/../../../../admin/secrets?x=1"
                assert as_written(uri, token, "GET", path)[0] == 400
            assert not seen
            for method, path in [
                ("GET", f"{API}/runs/get?run_id=a%26b&x=%ff"),
                ("GET", f"{files}/0/a/artifacts/x.txt"),
                ("DELETE", f"{API}/logged-models/m-1"),
            ]:
                status, said = as_written(uri, token, method, path)
                assert status == 503 and b"redirects" in said and b"foreign" not in said, said
    assert seen == [
        ("GET", f"/mlflow{API}/runs/get", "run_id=a%26b&x=%ff"),
        ("GET", f"/mlflow{files}/0/a/artifacts/x.txt", ""),
        ("GET", f"/mlflow{API}/logged-models/m-1", ""),
    ]


def test_a_call_that_is_not_offered_is_written_down(door: Door) -> None:
    before = door.catalog.audit.newest(1)[-1].sequence
    assert door.ask("bob", "GET", f"{API}/webhooks").status_code == 403
    (row,) = door.catalog.audit.list(after=before)
    assert (row.response.status_code, row.user_identity.email, row.action_name) == (403, "bob", "mlflowCall")
    assert row.request_params == {"method": "GET", "path": f"{API}/webhooks"}


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
