"""What is taken back through one replica stops on all of them within a second, while clients keep asking."""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from mosaic.catalog import Catalog
from tests.catalog.replicas import BASE, Replica, replicas

WITHIN_SECONDS = 1.0
REPLICAS, ROUNDS = 2, 2


class Asking(threading.Thread):
    """Asks one replica for a table again and again; keeps when each request began and how it was answered."""

    def __init__(self, replica: Replica, token: str) -> None:
        super().__init__()
        headers = {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=f"{replica.address}{BASE}", headers=headers, timeout=30)
        self._enough = threading.Event()
        self.answers: list[tuple[float, int]] = []

    def run(self) -> None:
        while not self._enough.is_set():
            began = time.monotonic()
            self.answers.append((began, self._http.get("/tables/main.docs.rows").status_code))

    def end(self) -> None:
        self._enough.set()
        self.join()
        self._http.close()


@pytest.mark.timeout(120)
def test_a_token_or_grant_taken_back_stops_everywhere_within_a_second(catalog_url: str, tmp_path: Path) -> None:
    catalog = Catalog.open(catalog_url)
    admin = catalog.create_token("ann", is_admin=True)[1]
    catalog.ensure_schema("main.docs")
    catalog.create_table("main.docs.rows", "s3://b/rows", columns=[], primary_key=None, owner="ann")
    for kind, name, privilege in (("catalog", "main", "USE CATALOG"), ("schema", "main.docs", "USE SCHEMA")):
        catalog.grants.grant(kind, name, "users", [privilege], by="admin")
    grant, take = ({"changes": [{"principal": "bob", what: ["SELECT"]}]} for what in ("add", "remove"))
    measured: dict[str, float] = {}
    with replicas(catalog_url, tmp_path / "root", REPLICAS) as there:
        through = httpx.Client(base_url=f"{there[0].address}{BASE}", headers={"authorization": f"Bearer {admin}"})

        def change(body: object) -> None:
            assert through.patch("/permissions/table/main.docs.rows", json=body).status_code == 200

        for _ in range(ROUNDS):
            token, secret = catalog.create_token("bob")
            parent, given = catalog.create_token("bob")
            child = catalog.create_token("bob", by=catalog.check_token(given))[1]
            change(grant)
            for what, held, taking, refused in (
                ("grant", secret, partial(change, take), 403),
                ("token", secret, partial(catalog.revoke_token, token.id), 401),
                ("token that it was made with", child, partial(catalog.revoke_token, parent.id), 401),
            ):
                measured[what] = max(measured.get(what, 0), taken_back(there, held, taking, refused=refused))
                change(grant)
        through.close()
    catalog.close()
    print({what: f"{seconds * 1000:.0f} ms" for what, seconds in measured.items()}, catalog_url.partition(":")[0])
    assert max(measured.values()) < WITHIN_SECONDS


def taken_back(there: list[Replica], secret: str, take: Callable[[], None], *, refused: int) -> float:
    """Seconds from the end of `take` until the start of the last request that any replica still answered."""
    clients = [Asking(replica, secret) for replica in there for _ in range(2)]
    for client in clients:
        client.start()
    try:
        while not all(client.answers and client.answers[-1][1] == 200 for client in clients):
            time.sleep(0.01)
        take()
        taken = time.monotonic()
        time.sleep(WITHIN_SECONDS + 0.2)
    finally:
        for client in clients:
            client.end()
    for client in clients:
        assert client.answers[-1][1] == refused, client.answers[-1]
        assert {status for _, status in client.answers} <= {200, refused}
    return max(began - taken for client in clients for began, status in client.answers if status == 200)
