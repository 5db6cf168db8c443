"""An A/B test from end to end: requests at the gateway, their rows in the lakehouse, what may be said of them."""

import asyncio
from pathlib import Path

import pytest

from mosaic.data import Tables
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA, to_arrow
from mosaic.monitoring.compare import Comparison, compare
from mosaic.serving.doubles import EchoEngine
from mosaic.storage import Storage
from tests.gateway.inside import door

ARMS = [{"name": "slow", "model": "echo"}, {"name": "quick", "model": "echo"}]
ENGINES = {"slow": EchoEngine(delay_seconds=0.03), "quick": EchoEngine()}


@pytest.mark.parametrize("sticky", ["random", "user"])
def test_the_faster_of_two_arms_at_90_10_is_found(tmp_path: Path, sticky: str) -> None:
    arms = [{**arm, "traffic_percentage": share} for arm, share in zip(ARMS, (90, 10), strict=True)]

    async def run() -> Comparison:
        async with door(tmp_path, lambda entity: ENGINES[entity.name]) as gateway:
            gateway.put("split", *arms, sticky=sticky)
            await gateway.ask("split", "one")  # what is kept for some time is known then
            gateway.rows.clear()
            for lot in range(20):
                users = [f"user-{(lot * 20 + number) % 200}" for number in range(20)]
                asked = [gateway.ask("split", "one two three four", user=user, stream=True) for user in users]
                assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
            tables = Tables(Storage(str(tmp_path)), gateway.catalog)
            gateway.catalog.ensure_schema("system.serving", owner="system")
            tables.create(INFERENCE_TABLE, SCHEMA, primary_key="request_id", owner="system")
            tables.append(INFERENCE_TABLE, to_arrow([dict(row) for row in gateway.rows]))
            return compare(tables, gateway.catalog, "split")

    found = asyncio.run(run())
    slow, quick = found.arms
    assert (slow.name, quick.name, found.unit) == ("slow", "quick", "request" if sticky == "random" else "user")
    assert slow.requests + quick.requests == 400 and 324 <= slow.requests <= 392
    if sticky == "user":
        assert slow.units + quick.units == 200 and slow.requests == 2 * slow.units
    told = {one.metric: one for one in found.verdicts}
    faster = told["latency_p50_milliseconds"]
    assert faster.is_shown and faster.high is not None and faster.high < 0, faster.text
    assert faster.text.startswith("quick is faster by ")
    assert not told["error_rate"].is_shown and not told["output_tokens"].is_shown
