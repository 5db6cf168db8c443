"""A judge model beside the answer: nothing leaves before its verdict, a refusal stops the engine, and what has no
verdict is told as such."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mosaic.errors import BadRequest, Unavailable
from mosaic.gateway.guard_judge import judging, read_verdict
from mosaic.serving.ai_gateway import Guardrails
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.guard_settings import Judge
from tests.gateway.in_process import Formless, InProcess, Watched

JUDGE_SECONDS = 0.5
SAFETY = {"endpoint": "judge", "safety": True}
QUICK = {"endpoint": "quick", "safety": True}
SLOW_SIX = "slow: one two three four five"  # 0.1 s a word


class Gateway(InProcess):
    def __init__(self, folder: Path) -> None:
        self.engine, self.judge = Watched(EchoEngine()), Watched(EchoEngine(JUDGE_SECONDS))
        judges = {"judge": self.judge, "slow-judge": EchoEngine(30), "formless": Formless(), "quick": EchoEngine()}
        super().__init__(folder, {"echo": self.engine, **judges})
        self.put("judge", "judge")
        self.put("slow-judge", "slow-judge")
        self.put("formless", "formless")
        self.put("quick", "quick")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("gateway"))
    yield made
    made.close()


@pytest.fixture
def gateway(started: Gateway) -> Gateway:
    """With nothing asked yet."""
    started.engine.forget()
    started.judge.forget()
    return started


@pytest.mark.parametrize("stream", [True, False])
def test_the_model_answers_while_it_is_judged_and_nothing_leaves_before(gateway: Gateway, stream: bool) -> None:
    gateway.guard("bot", input={"judge": SAFETY})

    async def run() -> Any:
        await gateway.ask("bot", "warm")
        return await gateway.ask("bot", SLOW_SIX, stream=stream)

    answer = gateway.run(run())
    assert answer.status == 200 and answer.said == SLOW_SIX
    assert answer.first_byte_seconds >= JUDGE_SECONDS
    # 0.6 s of the model and 0.5 of the judge, whose row is written too; one after the other would be 1.1.
    assert answer.seconds < 0.95
    assert gateway.row("bot")["guardrails"]["input"] == {"safety": {"outcome": "passed", "verdict": "safe"}}


def test_an_engine_that_has_answered_long_ago_waits_for_the_verdict(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": SAFETY})
    answer = gateway.run(gateway.ask("bot", "at once", stream=True))
    assert answer.said == "at once" and answer.first_byte_seconds >= JUDGE_SECONDS


def test_what_is_refused_stops_the_engine_and_is_kept_nowhere(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": SAFETY})
    for stream in (True, False):
        asked = "slow: weapons " + "word " * 100
        answer = gateway.run(gateway.ask("bot", asked, stream=stream))
        assert answer.status == 400 and answer.error["code"] == "content_filter"
        assert "guardrail safety" in answer.error["message"] and "weapons" not in answer.error["message"]
        assert answer.seconds < 5  # of ten
        row = gateway.row("bot")
        assert (row["request"], row.get("response"), row["status_code"]) == (None, None, 400)
        assert row["guardrails"]["input"] == {"safety": {"outcome": "blocked", "verdict": "weapons"}}
    assert gateway.engine.asked == 2 and gateway.engine.said < 50
    assert gateway.engine.stopped == 1  # what is not streamed is one item, which was there before the verdict


def test_what_the_engine_made_for_nothing_is_billed(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": SAFETY})
    gateway.run(gateway.ask("bot", "slow: hate " + "word " * 100, stream=True))
    row = gateway.row("bot")
    assert row["input_tokens"] == 102 and 1 <= row["output_tokens"] < 50


def test_the_judges_row_names_the_request_that_it_is_for_and_reads_what_is_masked(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": QUICK, "pii": {"behavior": "MASK", "types": ["EMAIL_ADDRESS"]}})
    answer = gateway.run(gateway.ask("bot", "write to ann.example@posteo.de", stream=True))
    row, judged = gateway.row("bot"), gateway.row("quick")
    assert answer.said == "write to <EMAIL_ADDRESS>"
    assert judged["parent_request_id"] == row["request_id"] and judged["principal"] == "mosaic-internal"
    assert "<EMAIL_ADDRESS>" in judged["request"] and "posteo" not in judged["request"]


@pytest.mark.parametrize("judge", ["slow-judge", "formless", "gone", "bot"])
def test_without_a_verdict_it_fails_closed_or_open_and_never_passes(gateway: Gateway, judge: str) -> None:
    rule = {"endpoint": judge, "safety": True, "timeout_seconds": 0.2}
    whys = {
        "slow-judge": "no verdict within 0.2 s",
        "formless": "the judge's answer is no verdict",
        "gone": "no endpoint 'gone'",
        "bot": "has a judge itself",
    }
    gateway.guard("bot", input={"judge": rule})
    closed = gateway.run(gateway.ask("bot", "hello", stream=True))
    assert (closed.status, closed.error["code"]) == (503, "guardrail_failed")
    row = gateway.row("bot")
    assert row["request"] is None and row["guardrails"]["input"]["safety"]["outcome"] == "failed"
    gateway.guard("bot", input={"judge": {**rule, "on_failure": "open"}})
    opened = gateway.run(gateway.ask("bot", "hello", stream=True))
    assert opened.said == "hello" and opened.seconds < 3
    told = gateway.row("bot")["guardrails"]["input"]["safety"]
    assert told["outcome"] == "failed" and whys[judge] in told["why"]


def test_a_rule_that_never_ran_is_skipped(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": SAFETY, "invalid_keywords": ["moonshine"]})
    refused = gateway.run(gateway.ask("bot", "moonshine please"))
    assert refused.status == 400 and gateway.judge.asked == gateway.engine.asked == 0
    assert gateway.row("bot")["guardrails"]["input"]["safety"] == {"outcome": "skipped"}


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_judged_as_a_whole_before_a_byte_of_it(gateway: Gateway, stream: bool) -> None:
    gateway.guard("bot", output={"judge": {**QUICK, "safety": ["hate"]}})
    refused = gateway.run(gateway.ask("bot", "well then hate", stream=stream))
    assert (refused.status, refused.error["code"]) == (400, "content_filter")
    row = gateway.row("bot")
    assert row["guardrails"]["output"] == {"safety": {"outcome": "blocked", "verdict": "hate"}}
    assert row.get("response") is None and row["output_tokens"] == 3
    passed = gateway.run(gateway.ask("bot", "well then weapons", stream=stream))
    assert passed.said == "well then weapons"


def test_topics_that_may_and_may_not_be(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": {"endpoint": "quick", "topics": {"allow": ["cooking", "gardening"]}}})
    asked = {"cooking": 200, "politics": 400}
    for text, status in asked.items():
        assert gateway.run(gateway.ask("bot", f"about {text}")).status == status
    assert gateway.row("bot")["guardrails"]["input"]["topics"] == {"outcome": "blocked", "verdict": "other"}
    gateway.guard("bot", input={"judge": {"endpoint": "quick", "topics": {"deny": ["politics"]}, "safety": True}})
    for text, status in asked.items():
        assert gateway.run(gateway.ask("bot", f"about {text}")).status == status
    told = gateway.row("bot")["guardrails"]["input"]
    assert (told["topics"]["outcome"], told["safety"]["outcome"]) == ("blocked", "passed")


def test_completions_are_judged_too(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": QUICK}, output={"judge": QUICK})
    for prompt, status in (("violence", 400), ("hello", 200)):
        assert gateway.run(gateway.ask("bot", prompt, path="/v1/completions", stream=True)).status == status


def test_a_client_that_leaves_stops_judge_and_engine(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": SAFETY})

    async def leave() -> None:
        await gateway.ask("bot", "warm")
        asking = asyncio.create_task(gateway.ask("bot", "slow: one two three four five six", stream=True))
        await asyncio.sleep(JUDGE_SECONDS / 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    gateway.run(leave())
    row = gateway.row("bot")
    assert (row["status_code"], row["request"]) == (499, None) and row["guardrails"]["input"]["safety"] == {
        "outcome": "skipped"
    }
    assert gateway.engine.stopped == 1
    assert (gateway.judge.asked, gateway.judge.said) == (2, 1)  # the first was to warm up


def test_many_at_once_each_have_their_own_verdict(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": QUICK})
    texts = [f"number {n} {'hate' if n % 3 == 0 else 'love'}" for n in range(60)]

    async def run() -> Any:
        return await asyncio.gather(*(gateway.ask("bot", text, stream=n % 2 == 0) for n, text in enumerate(texts)))

    started = time.perf_counter()
    for text, answer in zip(texts, gateway.run(run()), strict=True):
        assert answer.status == (400 if "hate" in text else 200), text
        assert answer.status == 400 or answer.said == text
    assert time.perf_counter() - started < 5


def test_a_chatty_engine_is_held_at_the_gate_and_loses_nothing(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": QUICK})
    words = " ".join(f"w{n}" for n in range(1_500))
    assert gateway.run(gateway.ask("bot", words, stream=True)).said == words


def test_an_engine_that_fails_is_told_after_the_verdict(gateway: Gateway) -> None:
    gateway.guard("bot", input={"judge": SAFETY})
    failed = gateway.run(gateway.ask("bot", "fail: it does", stream=True))
    assert '"code":"engine_failed"' in failed.body.replace(" ", "") and failed.first_byte_seconds >= JUDGE_SECONDS
    assert gateway.row("bot")["guardrails"]["input"]["safety"]["outcome"] == "passed"
    refused = gateway.run(gateway.ask("bot", "fail: with hate", stream=True))
    assert (refused.status, refused.error["code"]) == (400, "content_filter")


VERDICTS = [
    "",
    "safe",
    "[]",
    "{}",
    '{"safety": "fine"}',
    '{"safety": null}',
    '{"safety": ["safe"]}',
    '{"safety": "safe", "topics": "cooking"}',
    "[" * 100_000,
    None,
    7,
]


@pytest.mark.parametrize("said", VERDICTS)
def test_what_is_no_verdict(said: Any) -> None:
    judge = Judge.parse({"endpoint": "j", "safety": True, "topics": {"deny": ["a topic"]}})
    for answer in ({"choices": [{"message": {"content": said}}]}, {"choices": []}, {}):
        with pytest.raises(Unavailable, match="no verdict"):
            read_verdict(judge, answer)


def test_what_a_judge_is_asked() -> None:
    judge = Judge.parse({"endpoint": "j", "safety": ["hate"], "topics": {"allow": ["näh"]}})
    body = judging(judge, '"text"')
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    assert [one["enum"] for one in properties.values()] == [["hate", "safe"], ["näh", "other"]]
    assert "näh" in body["messages"][0]["content"] and body["messages"][1] == {"role": "user", "content": '"text"'}
    assert len('{"safety": "hate", "topics": "other"}') < body["max_tokens"] < 200
    here = judging(judge, "x", runs_here=True)
    assert (
        "response_format" not in here
        and '{"safety": "safe", "topics": "other"}' in here["structured_outputs"]["choice"]
    )
    assert len(here["structured_outputs"]["choice"]) == 4
    own = judging(judge.model_copy(update={"prompt": "Be strict.", "max_tokens": 5_000}), "x")
    assert own["max_tokens"] == 5_000
    assert own["messages"][0]["content"] == "Be strict." and own["response_format"] == body["response_format"]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"judge": {"endpoint": "j"}}, "topics or safety"),
        ({"judge": {"safety": True}}, "endpoint"),
        ({"judge": {"endpoint": "j", "topics": {}}}, "either allow or deny"),
        ({"judge": {"endpoint": "j", "topics": {"allow": ["a"], "deny": ["b"]}}}, "either allow or deny"),
        ({"judge": {"endpoint": "j", "topics": {"deny": ["Other"]}}}, "none is called 'other'"),
        ({"judge": {"endpoint": "j", "topics": {"deny": ["a", "A"]}}}, "each topic stands once"),
        ({"judge": {"endpoint": "j", "safety": ["rudeness"]}}, "safety"),
        ({"judge": {"endpoint": "j", "safety": True, "timeout_seconds": 0}}, "timeout_seconds"),
        ({"judge": {"endpoint": "j", "safety": True, "behaviour": "BLOCK"}}, "behaviour"),
        ({"patterns": [{"name": "topics", "regex": "x", "behavior": "MASK"}]}, "is taken"),
    ],
)
def test_judges_that_cannot_be(rules: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        Guardrails.parse({"input": rules})
