"""A judge and a policy on a running platform: asked through the internal gateway, attached by the command."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from mosaic.platform import Platform
from mosaic.serving.ai_gateway import Guardrails
from mosaic.serving.endpoint import EndpointSettings
from tests.local import mosaic

NAME, JUDGE, POLICY = "policed", "policed-judge", "main.policed.safe"


@pytest.fixture
def policed(platform: Platform) -> Iterator[str]:
    """An endpoint without rules, with another that can be its judge."""
    for name in (JUDGE, NAME):
        served = [{"name": "echo", "model": "echo"}]
        platform.serving.put(EndpointSettings.parse({"name": name, "served_entities": served}))
        platform.serving.wait(name)
    platform.catalog.ensure_schema("main.policed")
    yield NAME
    for name in (NAME, JUDGE):
        platform.serving.delete(name)
    platform.policies.delete(POLICY)


def rows(platform: Platform, *request_ids: str) -> list[dict[str, Any]]:
    platform.flush_ledger()
    found = {row["request_id"]: row for row in platform.tables.to_arrow("system.serving.inference").to_pylist()}
    return [found[request_id] for request_id in request_ids]


def test_a_policy_with_a_judge_from_its_making_to_a_refusal(
    platform: Platform, client: OpenAI, settings_file: Path, policed: str
) -> None:
    rules = Guardrails.parse({"input": {"judge": {"endpoint": JUDGE, "safety": True}}})
    platform.policies.create(POLICY, Guardrails())
    platform.policies.create(POLICY, rules)
    platform.policies.set_alias(POLICY, "prod", 1)
    attached = mosaic("policy", "attach", f"{POLICY}@prod", policed, "--settings", str(settings_file))
    assert attached.returncode == 0, attached.stderr
    time.sleep(0.4)  # every gateway looks four times a second

    def ask(text: str) -> Any:
        return client.chat.completions.create(model=policed, messages=[{"role": "user", "content": text}])

    assert ask("about weapons").choices[0].message.content == "about weapons"
    platform.policies.set_alias(POLICY, "prod", 2)
    assert platform.serving.describe(policed).policies == [f"{POLICY}@prod ({POLICY}/2)"]
    time.sleep(1)
    passed = ask("about love")
    with pytest.raises(openai.BadRequestError, match="guardrail safety") as refused:
        ask("about weapons")
    request_id = refused.value.response.headers["x-request-id"]
    good, bad = rows(platform, passed.id, request_id)
    assert json.loads(good["guardrails"])["policies"] == [f"{POLICY}/2"]
    assert json.loads(good["guardrails"])["input"] == {"safety": {"outcome": "passed", "verdict": "safe"}}
    assert bad["request"] is None and json.loads(bad["guardrails"])["input"]["safety"]["verdict"] == "weapons"
    table = platform.tables.to_arrow("system.serving.inference").to_pylist()
    (judged,) = [row for row in table if row["parent_request_id"] == request_id]
    assert (judged["endpoint"], judged["principal"]) == (f"main.serving.{JUDGE}", "mosaic-internal")


def test_a_tiny_model_gives_a_verdict_in_form(platform: Platform, client: OpenAI, policed: str, tiny_base: str) -> None:
    """Its weights are random, and so is what it says; that it is one of the words is the form's doing."""
    judge = {"endpoint": tiny_base, "safety": True, "topics": {"deny": ["politics", "sports"]}, "timeout_seconds": 60}
    platform.policies.create(POLICY, Guardrails.parse({"input": {"judge": judge}}))
    platform.serving.attach_policy(policed, POLICY)
    platform.serving.wait(policed)
    time.sleep(0.4)
    asked = []
    for text in ("hello", "who won the election?", "a" * 60):
        try:
            answer = client.chat.completions.create(model=policed, messages=[{"role": "user", "content": text}])
            asked.append(answer.id)
        except openai.BadRequestError as refused:
            asked.append(refused.response.headers["x-request-id"])
    for row in rows(platform, *asked):
        told = json.loads(row["guardrails"])["input"]
        assert {told["safety"]["outcome"], told["topics"]["outcome"]} <= {"passed", "blocked"}, told
        assert told["topics"]["verdict"] in ("politics", "sports", "other")
