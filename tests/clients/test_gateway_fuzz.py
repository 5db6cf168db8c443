"""schemathesis on the gateway's OpenAPI document, against the whole application over HTTP, before an echo.

Nothing is a 5xx; every answer has a status, type and shape that the document names; what the document forbids is
refused; no path answers without a token. `model` is one of the endpoints that there are. For longer, from another seed:

    FUZZ_EXAMPLES=200 FUZZ_SEED=7 FUZZ_PATHS=. .venv/bin/python -m pytest tests/clients/test_gateway_fuzz.py
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mosaic.gateway.openapi import ASKED, document
from tests.clients.report import PYTHON
from tests.gateway.door import GUARDED, Door, door

EXAMPLES, SEED = os.environ.get("FUZZ_EXAMPLES", "2"), os.environ.get("FUZZ_SEED", "1")
PATHS = os.environ.get("FUZZ_PATHS", "^/v1/(messages|responses)$")
"""Those whose every field is gone through; examples are drawn for all."""
CONFIGURATION = Path(__file__).with_name("schemathesis_gateway.toml")
ENDPOINTS = ["echo", GUARDED]


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Door]:
    with door(tmp_path / "door") as made:
        yield made


def test_the_document_is_served_and_has_every_path(at: Door) -> None:
    told = httpx.get(
        f"{at.address}/v1/openapi.json", headers={"authorization": f"Bearer {at.token}"}, timeout=60
    ).json()
    assert told == json.loads(json.dumps(document())) and ASKED.keys() <= told["paths"].keys()
    assert told["components"]["schemas"]["MessagesRequest"]["additionalProperties"] is False
    assert httpx.get(f"{at.address}/v1/openapi.json").status_code == 401


def test_whatever_is_drawn_is_answered_or_refused(at: Door, tmp_path: Path) -> None:
    fuzz(at, tmp_path, "--phases", "fuzzing")


def test_every_field_is_honoured_or_refused(at: Door, tmp_path: Path) -> None:
    fuzz(at, tmp_path, "--phases", "coverage", "--include-path-regex", PATHS)


def fuzz(at: Door, tmp_path: Path, *options: str) -> None:
    assert PYTHON.exists(), "`make clients` makes the environment that schemathesis is in"
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(of_endpoints(document())))
    command = [str(PYTHON.with_name("st")), "--config-file", str(CONFIGURATION), "run", str(file)]
    command += ["--url", at.address, "--header", f"Authorization: Bearer {at.token}", *options]
    command += ["--max-examples", EXAMPLES, "--seed", SEED, "--no-shrink", "--generation-deterministic"]
    command += ["--continue-on-failure", "--request-timeout", "30", "--suppress-health-check", "all"]
    command += ["--warnings", "off", "--no-color"]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "COLUMNS": "160"}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    told = "\n".join(line[:300] for line in ran.stdout.splitlines())
    assert ran.returncode == 0, told[-20_000:] + ran.stderr[-2_000:]
    statuses = [row["status_code"] for row in at.rows]
    assert 200 in statuses and 400 in statuses and max(statuses) < 500


def of_endpoints(told: dict[str, Any]) -> dict[str, Any]:
    """The document with the names of endpoints where any text may stand: else nearly all is a 404."""
    told = json.loads(json.dumps(told))
    for schema in told["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": ENDPOINTS}
    return told
