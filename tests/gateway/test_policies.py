"""Policies on endpoints as callers meet them: all hold, the strictest of them, in the version that the row says."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mosaic.serving.doubles import EchoEngine
from tests.gateway.in_process import FRESH_SECONDS, InProcess

CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    made = InProcess(tmp_path_factory.mktemp("gateway"), {"echo": EchoEngine(), "slow": EchoEngine(30)})
    made.catalog.ensure_schema("main.default")
    made.put("judge")
    made.put("slow-judge", "slow")
    yield made
    made.close()


@pytest.fixture
def gateway(started: InProcess) -> Iterator[InProcess]:
    """Without policies."""
    yield started
    started.guard("bot")
    for one in started.catalog.policies.list():
        started.catalog.policies.delete(one.name)


def words(*keywords: str) -> dict[str, Any]:
    return {"input": {"invalid_keywords": list(keywords)}}


def ask(gateway: InProcess, text: str, **more: Any) -> Any:
    return gateway.run(gateway.ask("bot", text, **more))


def test_the_endpoints_own_rules_and_those_of_its_policies_all_hold(gateway: InProcess) -> None:
    policies = gateway.catalog.policies
    policies.register("main.default.a", words("moonshine"))
    policies.register("main.default.b", {"output": {"max_characters": 30}})
    gateway.guard("bot", policies=["main.default.a", "main.default.b"], **words("nightjar"))
    for text, status in (("moonshine", 400), ("nightjar", 400), ("x" * 40, 400), ("hello", 200)):
        assert ask(gateway, text, stream=True).status == status, text
    told = gateway.row("bot")["guardrails"]
    assert told["policies"] == ["main.default.a/1", "main.default.b/1"]
    assert told["input"] == {"invalid_keywords": {"outcome": "passed"}}
    assert told["output"] == {"max_characters": {"outcome": "passed"}}


def test_a_policy_without_rules_is_told_too(gateway: InProcess) -> None:
    gateway.catalog.policies.register("main.default.empty", {})
    gateway.guard("bot", policies=["main.default.empty"])
    assert ask(gateway, "hello").status == 200
    row = gateway.row("bot")
    assert row["guardrails"] == {"policies": ["main.default.empty/1"]} and "hello" in row["request"]


def test_the_strictest_holds(gateway: InProcess) -> None:
    masks = {"input": {"pii": {"behavior": "MASK", "types": ["CREDIT_CARD", "US_SSN"]}}}
    gateway.catalog.policies.register("main.default.masks", masks)
    gateway.guard("bot", policies=["main.default.masks"])
    assert ask(gateway, CARD).said == "<CREDIT_CARD>"
    blocks = {"input": {"pii": {"behavior": "BLOCK", "types": ["CREDIT_CARD"]}}}
    gateway.guard("bot", policies=["main.default.masks"], **blocks)
    refused = ask(gateway, CARD)
    assert refused.status == 400 and "CREDIT_CARD" in refused.error["message"]
    assert ask(gateway, "536-90-4399").said == "<US_SSN>"


def test_an_alias_that_moves_is_live_without_another_configuration(gateway: InProcess) -> None:
    policies = gateway.catalog.policies
    policies.register("main.default.words", words("moonshine"))
    policies.set_alias("main.default.words", "prod", 1)
    gateway.guard("bot", policies=["main.default.words@prod"])
    assert ask(gateway, "nightjar").status == 200
    before = gateway.row("bot")
    policies.register("main.default.words", words("nightjar"))
    time.sleep(FRESH_SECONDS)
    assert ask(gateway, "nightjar").status == 200  # the newest is not what the alias means
    policies.set_alias("main.default.words", "prod", 2)
    time.sleep(FRESH_SECONDS)
    assert ask(gateway, "nightjar").status == 400 and ask(gateway, "moonshine").status == 200
    after = gateway.row("bot")
    assert before["guardrails"]["policies"] == ["main.default.words/1"]
    assert after["guardrails"]["policies"] == ["main.default.words/2"]
    assert before["endpoint_config_version"] == after["endpoint_config_version"]


def test_a_number_stays_and_a_name_alone_follows_the_newest(gateway: InProcess) -> None:
    policies = gateway.catalog.policies
    policies.register("main.default.words", words("moonshine"))
    for reference, status in (("main.default.words/1", 200), ("main.default.words", 400)):
        gateway.guard("bot", policies=[reference])
        assert ask(gateway, "moonshine").status == 400
        policies.register("main.default.words", words("moonshine", "nightjar"))
        time.sleep(FRESH_SECONDS)
        assert ask(gateway, "nightjar").status == status


def test_a_change_meets_requests_on_their_way_as_one_or_the_other(gateway: InProcess) -> None:
    policies = gateway.catalog.policies
    policies.register("main.default.words", words("odd"))
    policies.register("main.default.words", words("even"))
    policies.set_alias("main.default.words", "prod", 1)
    gateway.guard("bot", policies=["main.default.words@prod"])

    async def run() -> None:
        async def turn() -> None:
            for n in range(12):
                await asyncio.to_thread(policies.set_alias, "main.default.words", "prod", n % 2 + 1)
                await asyncio.sleep(FRESH_SECONDS)

        turning = asyncio.create_task(turn())
        while not turning.done():
            await asyncio.gather(*(gateway.ask("bot", word, stream=True) for word in ("odd", "even") * 4))
        await turning

    gateway.rows.clear()
    gateway.run(run())
    passed = [row for row in gateway.rows if row["status_code"] == 200]
    refused = [row for row in gateway.rows if row["status_code"] == 400]
    assert len(passed) + len(refused) == len(gateway.rows)
    for version, lets_pass in (("1", "even"), ("2", "odd")):
        under = f'"main.default.words/{version}"'
        said = {json.loads(row["request"])["messages"][0]["content"] for row in passed if under in row["guardrails"]}
        assert said == {lets_pass} and any(under in row["guardrails"] for row in refused)


def test_without_a_policy_that_it_is_held_to_an_endpoint_answers_nobody(gateway: InProcess) -> None:
    gateway.guard("bot", policies=["main.default.gone/3"])
    refused = ask(gateway, "hello", stream=True)
    assert (refused.status, refused.error["code"]) == (503, "policy_gone") and "main.default" not in refused.body
    assert gateway.row("bot").get("request") is None
    gateway.catalog.policies.register(
        "main.default.judged", {"input": {"judge": {"endpoint": "judge", "safety": True}}}
    )
    gateway.put("bot", task="embed", ai_gateway={"guardrails": {"policies": ["main.default.judged"]}})
    time.sleep(FRESH_SECONDS)
    embedded = gateway.run(gateway.ask("bot", "hello", path="/v1/completions"))
    assert (embedded.status, embedded.error["code"]) == (503, "policy_gone")


def test_a_policy_that_goes_with_its_schema_closes_the_endpoint_until_it_is_back(gateway: InProcess) -> None:
    gateway.catalog.ensure_schema("main.leaving")
    gateway.catalog.policies.register("main.leaving.words", words("moonshine"))
    gateway.guard("bot", policies=["main.leaving.words"])
    assert ask(gateway, "hello").status == 200
    gateway.catalog.schemas.delete("main.leaving", force=True)
    time.sleep(FRESH_SECONDS)
    assert ask(gateway, "hello").error["code"] == "policy_gone"
    gateway.catalog.undrop("schema", "main.leaving")
    time.sleep(FRESH_SECONDS)
    assert ask(gateway, "hello").status == 200 and ask(gateway, "moonshine").status == 400


def test_a_policys_judge_judges_and_one_that_came_to_have_a_judge_itself_does_not(gateway: InProcess) -> None:
    judged = {"input": {"judge": {"endpoint": "judge", "safety": True}}}
    gateway.catalog.policies.register("main.default.judged", judged)
    gateway.guard("bot", policies=["main.default.judged"])
    assert ask(gateway, "about weapons").status == 400 and ask(gateway, "about love").status == 200
    slow = {"judge": {"endpoint": "slow-judge", "topics": {"deny": ["love"]}}}
    gateway.guard("bot", policies=["main.default.judged"], input=slow)
    refused = ask(gateway, "about weapons")
    assert refused.status == 400 and refused.seconds < 5  # of thirty
    told = gateway.row("bot")["guardrails"]["input"]
    assert (told["safety"]["outcome"], told["topics"]["outcome"]) == ("blocked", "skipped")
    gateway.guard("bot", policies=["main.default.judged"])
    gateway.guard("judge", policies=["main.default.judged"])
    assert ask(gateway, "about love").error["code"] == "guardrail_failed"
    assert "has a judge itself" in gateway.row("bot")["guardrails"]["input"]["safety"]["why"]
    gateway.guard("judge")
