"""schemathesis, which nobody here wrote, on the protocol's OpenAPI document, against the application over HTTP.

Nothing is a 5xx; every answer has a status, type, shape and headers that the document names; what the document forbids
is refused; no path answers without a token. For longer, from another seed:

    FUZZ_EXAMPLES=200 FUZZ_SEED=7 .venv/bin/python -m pytest tests/clients/test_openapi_fuzz.py
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mosaic.catalog import Catalog
from mosaic.storage import Storage
from tests.catalog.conftest import Unity
from tests.clients.report import PYTHON
from tests.local import served

EXAMPLES, SEED = os.environ.get("FUZZ_EXAMPLES", "4"), os.environ.get("FUZZ_SEED", "1")
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """With everything that the document's examples name, so that more than refusals is seen."""
    made = Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    made.ensure_schema("main.docs")
    columns = [{"name": "n", "type": "int64", "nullable": True}]
    made.create_table("main.docs.entries", "/nowhere", columns=columns, primary_key=None, owner="admin")
    made.create_model("main.docs.entries", owner="admin")
    made.create_model_version("main.docs.entries", source="/m", kind="full")
    made.set_alias("main.docs.entries", "champion", 1)
    yield made
    made.close()


@pytest.fixture
def unity(catalog: Catalog, tmp_path: Path) -> Unity:
    made = Unity(catalog, Storage(str(tmp_path / "root")))
    admin = catalog.check_token(made.admin)
    catalog.grants.grant("catalog", "main", "bob", ["ALL PRIVILEGES"], by=admin)
    catalog.grants.grant("metastore", "metastore", "bob", ["CREATE CATALOG"], by=admin)
    return made


def test_an_administrator_who_deletes_nothing(unity: Unity, tmp_path: Path) -> None:
    fuzz(unity, unity.admin, tmp_path, "--phases", "examples,coverage", "--exclude-method", "DELETE")


def test_a_user_who_may_make_everything(unity: Unity, tmp_path: Path) -> None:
    fuzz(unity, unity.reader, tmp_path, "--phases", "examples,fuzzing,stateful")


def fuzz(unity: Unity, token: str, folder: Path, *options: str) -> None:
    assert PYTHON.exists(), "`make clients` makes the environment that schemathesis is in"
    before = counted(unity.catalog)
    with served(unity.app) as address:
        # It is made when it is first asked for, and schemathesis waits 10 s at most.
        url, headers = f"{address}/api/2.1/unity-catalog/openapi.json", {"authorization": f"Bearer {token}"}
        httpx.get(url, headers=headers, timeout=300).raise_for_status()
        command = [str(PYTHON.with_name("st")), "--config-file", str(CONFIGURATION), "run"]
        command += [url]
        command += ["--url", f"{address}/api", "--header", f"Authorization: {headers['authorization']}"]
        command += ["--max-examples", EXAMPLES, "--seed", SEED, "--no-shrink"]
        command += ["--generation-deterministic", "--continue-on-failure"]
        command += ["--request-timeout", "30", "--suppress-health-check", "all", "--warnings", "off", "--no-color"]
        environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "COLUMNS": "160"}
        ran = subprocess.run(
            [*command, *options],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    told = "\n".join(line[:300] for line in ran.stdout.splitlines())  # a failing request may be megabytes
    assert ran.returncode == 0, told[-20_000:] + ran.stderr[-2_000:]
    assert "Tested: " in ran.stdout and counted(unity.catalog) >= before


def counted(catalog: Catalog) -> int:
    return len(catalog.catalogs.list()) + len(catalog.list_tables()) + len(catalog.list_models())
