"""The ledger's tables with a real platform around them: by its HTTP, its shipper, and its SQL."""

import time

import httpx
from openai import OpenAI

from mosaic.monitoring.feedback import FEEDBACK_TABLE
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings

ENDPOINT, TABLE = "kept", "main.default.kept_payload"
OWN = {"enabled": True, "catalog_name": "main", "schema_name": "default"}
USED = """SELECT usage_context['project'] AS project, output_token_count FROM system.serving.endpoint_usage
          WHERE databricks_request_id = :id"""


def test_a_request_is_in_every_table_that_it_should_be_in(platform: Platform, client: OpenAI, token: str) -> None:
    echo = [{"name": "echo", "model": "echo"}]
    told = {"name": ENDPOINT, "served_entities": echo, "ai_gateway": {"inference_table_config": OWN}}
    platform.serving.put(EndpointSettings.parse(told))
    try:
        platform.serving.wait(ENDPOINT)
        time.sleep(0.4)  # every gateway looks four times a second
        answer = client.chat.completions.create(
            model=ENDPOINT,
            messages=[{"role": "user", "content": "hello there"}],
            extra_body={"usage_context": {"project": "apollo"}},
        )
        asking = httpx.Client(base_url=platform.base_url, headers={"authorization": f"Bearer {token}"}, timeout=60)
        said = asking.post("/v1/feedback", json={"request_id": answer.id, "rating": 0.5, "comment": "fair"})
        assert said.status_code == 200, said.text

        deadline = time.monotonic() + 30
        while not (rows := platform.tables.to_arrow(TABLE).to_pylist()):
            assert time.monotonic() < deadline, "the shipper brings it by itself"
            time.sleep(0.2)
        assert [(row["databricks_request_id"], row["requester"]) for row in rows] == [(answer.id, "alice")]
        platform.flush_ledger()
        opinions = platform.tables.to_arrow(FEEDBACK_TABLE).to_pylist()
        assert [one["rating"] for one in opinions if one["request_id"] == answer.id] == [0.5]

        parameters = [{"name": "id", "value": answer.id, "type": "STRING"}]
        asked = {"statement": USED, "parameters": parameters, "warehouse_id": "any", "wait_timeout": "30s"}
        used = asking.post("/api/2.0/sql/statements", json=asked).json()
        assert used["status"]["state"] == "SUCCEEDED", used
        assert used["result"]["data_array"] == [["apollo", "2"]]
    finally:
        platform.serving.delete(ENDPOINT)
