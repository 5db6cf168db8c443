"""Makes docs/clients.md of what the clients did: `.venv/bin/python -m tests.clients.report > docs/clients.md`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tests.clients.offered import Offered, offered

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-clients/bin/python"
PAGE = ROOT / "docs/clients.md"

CLIENTS: Mapping[str, str] = {
    "openai": """\
    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=token)

`model` is an endpoint's name. Its waits are obeyed by the client itself (`max_retries`).
""",
    "anthropic": """\
    client = anthropic.Anthropic(base_url="http://127.0.0.1:8000", api_key=token)

or `auth_token=token`, or the variables `ANTHROPIC_BASE_URL` and `ANTHROPIC_API_KEY`. `model` is an endpoint's name,
whatever model is behind it. [gateway.md](gateway.md) says what of the protocol is not spoken.
""",
    "unitycatalog": """\
    import unitycatalog.client as uc
    configuration = uc.Configuration(host="http://127.0.0.1:8000/api/2.1/unity-catalog")
    header = {"header_name": "Authorization", "header_value": f"Bearer {token}"}
    async with uc.ApiClient(configuration, **header) as client:
        await uc.CatalogsApi(client).list_catalogs()

It sends no token that it is given as `Configuration(access_token=...)`. It reads only the privileges of its own list,
which lacks `BROWSE`, `MANAGE` and `ALL PRIVILEGES`: permissions that have one of them are an error of the client.
""",
    "mlflow": """\
    os.environ["MLFLOW_UC_OSS_TOKEN"] = token
    mlflow.set_registry_uri("uc:http://127.0.0.1:8000")

MLflow deletes the folder that it has uploaded when the model was logged to local disk; register from a plain path
(`mlflow.register_model("/models/bot", ...)`) where the folder has to stay. It offers no aliases, tags and stages with
`uc:`; aliases are set through databricks-sdk or in Python.
""",
    "duckdb": """\
    from importlib.util import find_spec
    from pathlib import Path
    import duckdb

    database = duckdb.connect()
    for name in ("httpfs", "delta", "unity_catalog"):
        wheel = Path(find_spec(f"duckdb_extension_{name}").submodule_search_locations[0])
        database.execute(f"INSTALL '{next(wheel.glob('extensions/*/*.duckdb_extension'))}'; LOAD {name}")

That is Python, for the wheels above, and fetches nothing; where DuckDB may fetch its extensions from the internet,
`INSTALL httpfs; INSTALL delta; INSTALL unity_catalog;` and a `LOAD` for each do the same. Then, in SQL:

    CREATE SECRET (TYPE unity_catalog, TOKEN 'mosaic_...', ENDPOINT 'http://127.0.0.1:8000', AWS_REGION 'us-east-1');
    ATTACH 'main' AS lake (TYPE unity_catalog, DEFAULT_SCHEMA 'docs');
    SELECT * FROM lake.docs.people;

The release of DuckDB has to be the one that the extensions were built for. It asks for no second page of a list, so a
list without `max_results` is whole. For tables in an object store it asks for credentials to write even to SELECT, and
those need MODIFY.
""",
    "polars": """\
    catalog = pl.Catalog("http://127.0.0.1:8000", bearer_token=token, require_https=False)
    catalog.scan_table("main", "docs", "people").collect()
""",
    "databricks": """\
    workspace = WorkspaceClient(host="http://127.0.0.1:8000", token=token, auth_type="pat")
    list(workspace.tables.list("main", "docs"))

It reads privileges with underscores (`USE_CATALOG`), and is answered so; others are answered with spaces. Both are
understood.
""",
}
"""A client's script (`with_<name>.py`), and how it is pointed at the platform."""

HEAD = """\
<!-- Made by `.venv/bin/python -m tests.clients.report > docs/clients.md`, and compared with what the tests find. -->
# Clients that work

`tests/clients` runs these clients, in an environment of their own (`make clients`), against the gateway and the
catalog's protocol over HTTP: with the token of a user who owns what it makes and may read the catalog `main`, and of
one who may not; before the gateway's endpoints stands an echo. A call *works* if it returned what it should, is
*refused* if the server says no with this message, and is *not offered* if the client cannot make it or has no use for
the answer.

On local disk the catalog says where a table is to whoever may know of it (BROWSE or more), and the disk's own
permissions say who reads the files. In an object store, credentials need SELECT.

Not among them: the `uc://` addresses of deltalake 1.6.6. It needs credentials of an object store, and for a table on
local disk, which has none, it ends with an error or hangs. Open the table's `storage_location` instead, as polars does.
"""


@dataclass(frozen=True)
class Called:
    """One call, as the script kept it."""

    call: str
    outcome: str
    note: str


@dataclass(frozen=True)
class Found:
    """What one client's script said."""

    client: str
    """Packages with versions."""
    calls: Sequence[Called]

    @property
    def failed(self) -> list[str]:
        return [f"{one.call}: {one.note}" for one in self.calls if one.outcome == "failed"]


def ask_all(folder: Path) -> dict[str, Found]:
    """Every client's script, two at a time."""
    if not PYTHON.exists():
        raise FileNotFoundError(f"{PYTHON} is not there; `make clients` makes it")
    with offered(folder) as told, ThreadPoolExecutor(2) as pool:
        return dict(zip(CLIENTS, pool.map(lambda name: ask(name, told), CLIENTS), strict=True))


def ask(name: str, told: Offered) -> Found:
    """Runs a script in the clients' environment, with nothing of ours but its own files."""
    ran = subprocess.run(
        [str(PYTHON), "-m", f"tests.clients.with_{name}"],
        cwd=ROOT,
        env={"HOME": told.folder, "PATH": "/usr/bin:/bin"},
        input=json.dumps(told.told()),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"with_{name}.py ended with {ran.returncode}:\n{ran.stderr}")
    said = json.loads(ran.stdout.splitlines()[-1])
    return Found(said["client"], [Called(**one) for one in said["calls"]])


def page(found: Mapping[str, Found]) -> str:
    return "\n".join([HEAD, *(section(one, CLIENTS[name]) for name, one in found.items())])


def section(found: Found, pointed: str) -> str:
    rows = [f"| {cell(one.call)} | {cell(shown(one))} |" for one in found.calls]
    return "\n".join([f"## {found.client}\n", pointed, "| call | outcome |", "| --- | --- |", *rows, ""])


def shown(one: Called) -> str:
    return one.outcome if not one.note else f"{one.outcome}: `{one.note}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        with redirect_stdout(sys.stderr):  # what is said on the way is not the page's
            found = ask_all(Path(temporary))
        print(page(found), end="")
