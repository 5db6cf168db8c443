"""What serving counts for Prometheus, and the same figures read back for `mosaic endpoint metrics`.

A gateway counts once per request, when its row is closed, from what the row says anyway; nothing is done per token.
Queues are counted by Ray Serve, the KV cache by vLLM; all of it shows on the metrics port of Ray's on each node.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.metrics import Counter, Histogram

from mosaic.protocol import Wire

PREFIX = "mosaic_serving_"
_SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.4, 0.65, 1, 1.6, 2.5, 4, 6.5, 10, 20, 40, 80, 160)
_TOKEN_SECONDS = (0.001, 0.002, 0.0035, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
_SAMPLE = re.compile(r"^([a-zA-Z_]\w*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Meter:
    """Counts the requests of one gateway replica."""

    def __init__(self) -> None:
        who = ("endpoint", "entity", "model")
        self._requests = Counter(f"{PREFIX}requests", "Requests that ended.", tag_keys=(*who, "status"))
        self._seconds = Histogram(f"{PREFIX}request_seconds", "Whole requests.", boundaries=_SECONDS, tag_keys=who)
        self._first = Histogram(
            f"{PREFIX}time_to_first_token_seconds", "Of streams.", boundaries=_SECONDS, tag_keys=who
        )
        self._each = Histogram(
            f"{PREFIX}time_per_output_token_seconds",
            "Of streams, after the first token.",
            boundaries=_TOKEN_SECONDS,
            tag_keys=who,
        )
        self._input = Counter(f"{PREFIX}input_tokens", "Tokens of prompts.", tag_keys=who)
        self._output = Counter(f"{PREFIX}output_tokens", "Tokens of answers.", tag_keys=who)

    def record(self, row: Mapping[str, Any]) -> None:
        """A row of the inference table as it is closed; those of no endpoint that there is have no part in this."""
        if row.get("endpoint_config_version") is None:
            return  # a label for whatever callers make up would be a series for each
        version = row.get("model_version")
        model = str(row.get("model") or "")
        tags = {
            "endpoint": str(row["endpoint"]),
            "entity": str(row.get("served_entity") or ""),
            "model": model if version is None else f"{model}/{version}",
        }
        self._requests.inc(1, {**tags, "status": str(row["status_code"])})
        seconds = row["duration_milliseconds"] / 1e3
        self._seconds.observe(seconds, tags)
        inputs, outputs, first = row.get("input_tokens"), row.get("output_tokens"), row.get("first_token_milliseconds")
        if inputs:
            self._input.inc(inputs, tags)
        if outputs:
            self._output.inc(outputs, tags)
        if row.get("streamed") and first is not None:
            self._first.observe(first / 1e3, tags)
            if outputs is not None and outputs > 1:
                self._each.observe((seconds - first / 1e3) / (outputs - 1), tags)


@dataclass(frozen=True)
class Sample:
    """One line of Prometheus' text format."""

    name: str
    labels: dict[str, str]
    value: float
    line: str


def parse(text: str) -> Iterator[Sample]:
    """The samples of Prometheus' text format (its documentation, "Exposition formats"); comments are passed over."""
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found is not None:
            labels = {
                name: value.replace(r"\"", '"').replace(r"\\", "\\") for name, value in _LABEL.findall(found[2] or "")
            }
            yield Sample(found[1], labels, float(found[3]), line)


@dataclass(frozen=True)
class EngineOf:
    """The engine of a served entity: its application, and the ids of its replicas."""

    app_name: str
    replica_ids: frozenset[str]


class EntityMetrics(Wire):
    """One served entity's figures, over all gateways that run, since they started."""

    entity: str
    """Empty for requests that were refused before it was known who would answer."""
    requests: int
    failed: int
    """Those that ended with a status of 400 or more."""
    first_token_p50_seconds: float | None
    """Of streams; None if there was none."""
    first_token_p95_seconds: float | None
    output_token_seconds: float | None
    """Between two tokens of a stream, at the median of streams."""
    input_tokens: int
    output_tokens: int
    ongoing: int
    """Requests that its engine's replicas answer, of all endpoints that share it."""
    waiting: int
    """Requests that wait for its engine: in gateways for a replica, in vLLM for their turn."""
    kv_cache_used: float | None
    """The fullest KV cache of its engine's replicas, from 0 to 1; None for what has none."""
    replicas: int


def of_endpoint(samples: Iterable[Sample], endpoint: str, engines: Mapping[str, EngineOf]) -> list[Sample]:
    """Those that are an endpoint's, or its engines'."""
    apps = {engine.app_name for engine in engines.values()}
    replicas = {one for engine in engines.values() for one in engine.replica_ids}
    return [one for one in samples if _is_of(one, endpoint, apps, replicas)]


def _is_of(sample: Sample, endpoint: str, apps: set[str], replicas: set[str]) -> bool:
    labels = sample.labels
    if PREFIX in sample.name:
        return labels.get("endpoint") == endpoint
    if "vllm_" in sample.name:
        return labels.get("ReplicaId") in replicas
    return labels.get("application") in apps


def entity_metrics(samples: Sequence[Sample], engines: Mapping[str, EngineOf]) -> list[EntityMetrics]:
    """By served entity, of the samples of one endpoint."""
    asked = {one.labels.get("entity", "") for one in samples if PREFIX in one.name}
    return [
        _entity([one for one in samples if one.labels.get("entity") == name], name, samples, engines.get(name))
        for name in [*engines, *sorted(asked - engines.keys())]
    ]


def _entity(own: Sequence[Sample], name: str, samples: Sequence[Sample], engine: EngineOf | None) -> EntityMetrics:
    def total(of: Iterable[Sample], what: str) -> int:
        return round(sum(one.value for one in of if _plain(one.name) == what))

    counted = [one for one in own if _plain(one.name) == f"{PREFIX}requests"]
    serve = [one for one in samples if engine is not None and one.labels.get("application") == engine.app_name]
    vllm = [one for one in samples if engine is not None and one.labels.get("ReplicaId") in engine.replica_ids]
    kv = [one.value for one in vllm if _plain(one.name) == "vllm_kv_cache_usage_perc"]
    first = f"{PREFIX}time_to_first_token_seconds"
    return EntityMetrics(
        entity=name,
        requests=round(sum(one.value for one in counted)),
        failed=round(sum(one.value for one in counted if int(one.labels["status"]) >= 400)),
        first_token_p50_seconds=quantile(own, first, 0.5),
        first_token_p95_seconds=quantile(own, first, 0.95),
        output_token_seconds=quantile(own, f"{PREFIX}time_per_output_token_seconds", 0.5),
        input_tokens=total(own, f"{PREFIX}input_tokens"),
        output_tokens=total(own, f"{PREFIX}output_tokens"),
        ongoing=total(serve, "serve_num_ongoing_requests_at_replicas"),
        waiting=total(serve, "serve_deployment_queued_queries") + total(vllm, "vllm_num_requests_waiting"),
        kv_cache_used=max(kv, default=None),
        replicas=0 if engine is None else len(engine.replica_ids),
    )


def _plain(name: str) -> str:
    """Without what Ray puts before it and Prometheus after it."""
    return name.removeprefix("ray_").removesuffix("_total")


def quantile(samples: Iterable[Sample], histogram: str, share: float) -> float | None:
    """A quantile of a histogram, straight between the bounds of its bucket as Prometheus' `histogram_quantile` has it;
    the last finite bound for what is beyond; None of nothing."""
    counts: dict[float, float] = {}
    for one in samples:
        if one.name.removeprefix("ray_") == f"{histogram}_bucket":
            bound = float(one.labels["le"].replace("+Inf", "inf"))
            counts[bound] = counts.get(bound, 0.0) + one.value
    bounds = sorted(counts)
    if not bounds or not counts[bounds[-1]]:
        return None
    rank, below, lower = share * counts[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (counts[bound] - below)
        below, lower = counts[bound], bound
    raise AssertionError("the last bucket holds all")
