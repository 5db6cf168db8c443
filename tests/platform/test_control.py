"""Control through the front door: the catalog in Unity Catalog's protocol, beside what the platform itself writes."""

import httpx
import pytest

from mosaic.platform import Platform

UNITY = "/api/2.1/unity-catalog"


@pytest.fixture(scope="module")
def admin(platform: Platform) -> httpx.Client:
    """An administrator's HTTP client."""
    _, token = platform.catalog.create_token("root", kind="user", is_admin=True)
    return httpx.Client(base_url=platform.base_url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def test_what_the_platform_writes_is_in_the_protocol(platform: Platform, admin: httpx.Client) -> None:
    found = admin.get(f"{UNITY}/tables/system.serving.inference").json()
    assert found["full_name"] == "system.serving.inference" and found["table_type"] == "MANAGED"
    written_to = platform.tables.delta("system.serving.inference").table_uri
    assert found["storage_location"].rstrip("/") == written_to.rstrip("/")
    assert {"request_id", "status_code", "served_entity"} <= {column["name"] for column in found["columns"]}


def test_what_the_protocol_makes_is_the_platforms(platform: Platform, admin: httpx.Client) -> None:
    made = admin.post(f"{UNITY}/catalogs", json={"name": "shop", "comment": "ours"})
    assert made.status_code == 200 and made.json()["owner"] == "root"
    schema = admin.post(f"{UNITY}/schemas", json={"name": "sales", "catalog_name": "shop"})
    assert schema.json()["full_name"] == "shop.sales"
    assert "shop.sales" in [one.name for one in platform.catalog.list_schemas()]


def test_who_may_not_is_told_in_the_protocols_shape(platform: Platform, token: str) -> None:
    def create(**headers: str) -> httpx.Response:
        return httpx.post(f"{platform.base_url}{UNITY}/catalogs", json={"name": "mine"}, headers=headers, timeout=30)

    stranger, user = create(), create(Authorization=f"Bearer {token}")
    assert (stranger.status_code, stranger.json()["error_code"]) == (401, "UNAUTHENTICATED")
    assert (user.status_code, user.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert "'alice' may not CREATE CATALOG" in user.json()["message"]


def test_where_a_request_came_from_is_not_the_clients_to_say(platform: Platform, token: str) -> None:
    """HAProxy says who connected, and its replicas believe HAProxy."""
    for said in ({"X-Forwarded-For": "6.6.6.6"}, {"X-Forwarded-For": "6.6.6.6, 127.0.0.1"}, {}):
        headers = {"Authorization": f"Bearer {token}", "User-Agent": f"asking {said}", **said}
        refused = httpx.post(f"{platform.base_url}{UNITY}/catalogs", json={"name": "mine"}, headers=headers, timeout=30)
        assert refused.status_code == 403
        noted = [one for one in platform.catalog.audit.newest(20) if one.user_agent == f"asking {said}"]
        assert [one.source_ip_address for one in noted] == ["127.0.0.1"]
