"""What serving counts: read back from Prometheus' format, and on the platform by every way to ask for it."""

import time

import httpx
import pytest
from openai import OpenAI

from mosaic.errors import NotFound
from mosaic.platform import Platform
from mosaic.serving.metrics import EngineOf, EntityMetrics, entity_metrics, of_endpoint, parse, quantile
from tests.local import mosaic

TEXT = r"""# HELP ray_mosaic_serving_requests_total Requests that ended.
ray_mosaic_serving_requests_total{endpoint="main.serving.a",entity="e",model="m",status="200"} 6.0
ray_mosaic_serving_requests_total{endpoint="main.serving.a",entity="e",model="m",status="500"} 2.0
ray_mosaic_serving_requests_total{endpoint="main.serving.a",entity="e",model="m",status="200",WorkerId="2"} 1.0
ray_mosaic_serving_requests_total{endpoint="main.serving.b",entity="e",model="m",status="200"} 40.0
ray_mosaic_serving_time_to_first_token_seconds_bucket{endpoint="main.serving.a",entity="e",le="0.1"} 5.0
ray_mosaic_serving_time_to_first_token_seconds_bucket{endpoint="main.serving.a",entity="e",le="0.2"} 10.0
ray_mosaic_serving_time_to_first_token_seconds_bucket{endpoint="main.serving.a",entity="e",le="+Inf"} 10.0
ray_serve_deployment_queued_queries{application="engine-a",deployment="D \"q\", \\n"} 3.0
ray_serve_deployment_queued_queries{application="engine-b",deployment="D"} 7.0
ray_vllm_kv_cache_usage_perc{ReplicaId="r1",model_name="m"} 0.25
ray_vllm_kv_cache_usage_perc{ReplicaId="r2",model_name="m"} 0.5
ray_vllm_num_requests_waiting{ReplicaId="r1",model_name="m"} 2.0
"""
ENGINES = {"e": EngineOf("engine-a", frozenset({"r1"}))}


def test_an_endpoint_sees_its_own_and_its_engines() -> None:
    samples = of_endpoint(parse(TEXT), "main.serving.a", ENGINES)
    assert len(samples) == 9 and not any("main.serving.b" in one.line or "r2" in one.line for one in samples)
    assert next(one for one in samples if "queued" in one.name).labels["deployment"] == 'D "q", \\n'
    (found,) = entity_metrics(samples, ENGINES)
    assert (found.entity, found.requests, found.failed, found.waiting, found.ongoing) == ("e", 9, 2, 5, 0)
    assert (found.kv_cache_used, found.replicas, found.output_token_seconds) == (0.25, 1, None)
    assert found.first_token_p50_seconds == pytest.approx(0.1)
    assert found.first_token_p95_seconds == pytest.approx(0.19)


def test_quantiles_of_what_is_beyond_the_last_bound_are_that_bound() -> None:
    text = 'x_bucket{le="1"} 1\nx_bucket{le="+Inf"} 4\n'
    assert quantile(parse(text), "x", 0.25) == 1 and quantile(parse(text), "x", 0.9) == 1
    assert quantile(parse(""), "x", 0.5) is None
    assert quantile(parse('x_bucket{le="1"} 0\nx_bucket{le="+Inf"} 0\n'), "x", 0.5) is None


def counted(platform: Platform, at_least: int) -> EntityMetrics:
    """Once Ray shows it, which it does every 10 seconds."""
    deadline = time.monotonic() + 60
    while True:
        (found,) = [one for one in platform.serving.metrics("echo") if one.entity == "echo"]
        if found.requests >= at_least:
            return found
        assert time.monotonic() < deadline, f"{found.requests} requests are counted, not {at_least}"
        time.sleep(0.5)


def test_what_is_asked_is_counted_and_shown_by_every_way(platform: Platform, client: OpenAI, token: str) -> None:
    (before,) = [one for one in platform.serving.metrics("echo") if one.entity == "echo"]
    for _ in range(5):
        list(
            client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "slow: three words"}], stream=True
            )
        )
    found = counted(platform, before.requests + 5)
    assert found.output_tokens >= before.output_tokens + 15 and found.input_tokens >= before.input_tokens + 15
    assert found.first_token_p95_seconds is not None and found.output_token_seconds is not None and found.replicas == 1

    home = ("--home", str(platform.settings.home_folder), "--storage", platform.settings.storage)
    table = mosaic("endpoint", "metrics", "echo", *home)
    assert table.returncode == 0 and "first token p50" in table.stdout and "\necho " in table.stdout, table.stderr
    described = mosaic("endpoint", "describe", "echo", *home)
    assert "engine-echo" in described.stdout and "RUNNING" in described.stdout, described.stderr

    with pytest.raises(NotFound, match=r"served entity 'none'; there (is|are) \['echo'\]"):
        platform.serving.logs("echo", "none")
    (log,) = platform.serving.logs("echo", lines=10_000)
    assert log.entity == "echo" and any("the echo is ready" in line for line in log.lines)

    base, admin = f"{platform.base_url}/api/2.0/serving-endpoints/echo", platform.catalog.create_token("admin")[1]

    def get(path: str, token: str) -> httpx.Response:
        return httpx.get(f"{base}/{path}", headers={"authorization": f"Bearer {token}"}, timeout=60)

    exported = get("metrics", admin)
    assert exported.headers["content-type"].startswith("text/plain")
    lines = [line for line in exported.text.splitlines() if "mosaic_" in line]
    assert lines and all('endpoint="main.serving.echo"' in line for line in lines)
    assert "engine-echo" in get("served-models/echo/logs", admin).json()["logs"]
    assert get("served-models/echo/logs", token).status_code == 403  # alice may ask it, not manage it
