"""Rules that look at a whole text at once: a judge model says what it is about, a JSON schema what it must look like.

Nothing of the text has left until they have said so: what is asked is judged while the model answers already
(`guard_gate.py` holds its answer back), and an answer is held back until its end.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mosaic.errors import ContentFiltered, MosaicError, Unavailable
from mosaic.gateway.guard_judge import judging, read_verdict
from mosaic.gateway.guard_together import free_name
from mosaic.monitoring.record import compact_json
from mosaic.serving.guard_settings import JsonSchema, Judge
from mosaic.serving.json_schemas import AnswerSchema, NotJson

AskJudge = Callable[[str, dict[str, Any], str], Awaitable[dict[str, Any]]]
"""(endpoint, the body of a chat, the request on whose behalf) -> the `chat.completion`; raises what it was answered."""
Outcomes = dict[str, dict[str, Any]]
"""Rule -> what came of it, as the row keeps it."""
_LONG = 2_000
"""Characters of an answer that are compared with a schema beside the loop that streams."""


@dataclass(frozen=True)
class Judges:
    """The way to the judges of one endpoint."""

    ask: AskJudge | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Endpoint -> why it cannot judge, where the catalog says so already."""
    run_here: frozenset[str] = frozenset()
    """Endpoints none of whose models a provider has."""

    async def verdict(self, judge: Judge, told: str, request_id: str) -> dict[str, str]:
        """Raises Unavailable with the reason why there is none; it quotes neither the text nor the judge."""
        if self.ask is None or judge.endpoint in self.unusable:
            raise Unavailable(self.unusable.get(judge.endpoint, "this gateway knows no way to judges"))
        try:
            async with asyncio.timeout(judge.timeout_seconds):
                answer = await self.ask(
                    judge.endpoint, judging(judge, told, runs_here=judge.endpoint in self.run_here), request_id
                )
        except TimeoutError:
            raise Unavailable(f"no verdict within {judge.timeout_seconds:g} s") from None
        except MosaicError as error:
            raise Unavailable(f"the judge answered {error.status} {error.code}") from None
        except Exception as error:  # a boundary: whatever it is, there is no verdict
            raise Unavailable(f"the judge could not be asked: {type(error).__name__}") from None
        return read_verdict(judge, answer)


class WholeRules:
    """Of one side of an endpoint."""

    def __init__(self, judges: Sequence[Judge], json_schemas: Sequence[JsonSchema]) -> None:
        self._names: set[str] = set()
        self._judges = [(judge, self._named(judge)) for judge in judges]
        self._schemas = [(self._name("json_schema"), one, AnswerSchema(one.schema_)) for one in json_schemas]

    def outcomes(self) -> Outcomes:
        """For one request: no rule has run yet."""
        return {name: {"outcome": "skipped"} for name in sorted(self._names)}

    async def judge(self, told: Any, outcomes: Outcomes, judges: Judges, request_id: str) -> None:
        """All judges at once, of a text's parts as JSON; the first that does not let it pass ends it.

        Raises ContentFiltered for what one refuses, and Unavailable where one that is to fail closed gave no verdict.
        """
        text = compact_json(told)
        asked = [
            asyncio.ensure_future(self._ask(judge, names, text, outcomes, judges, request_id))
            for judge, names in self._judges
        ]
        try:
            await asyncio.gather(*asked)
        finally:
            for one in asked:  # whom nobody waits for any more, once another has refused
                one.cancel()

    async def check_answers(self, texts: Sequence[str], outcomes: Outcomes) -> None:
        """Each text against each schema. Raises as `judge`."""
        for name, rule, schema in self._schemas:
            for text in texts:
                look = _looking(name, rule, schema, text, outcomes)
                passed = look() if len(text) < _LONG else await asyncio.to_thread(look)
                if outcomes[name]["outcome"] != "failed":
                    outcomes[name] = {"outcome": "passed" if passed else "failed"}

    async def _ask(
        self,
        judge: Judge,
        names: Mapping[str, str],
        text: str,
        outcomes: Outcomes,
        judges: Judges,
        request_id: str,
    ) -> None:
        try:
            said = await judges.verdict(judge, text, request_id)
        except Unavailable as error:
            for name in names.values():
                outcomes[name] = {"outcome": "failed", "why": error.message}
            if judge.on_failure == "closed":
                raise could_not_run(" and ".join(sorted(names.values())), error.message) from None
            return
        refused = []
        for what, name in names.items():
            refuses = said[what] in judge.categories if what == "safety" else _refuses(judge, said[what])
            outcomes[name] = {"outcome": "blocked" if refuses else "passed", "verdict": said[what]}
            refused += [name] if refuses else []
        if refused:
            raise ContentFiltered(f"refused by the guardrail {', '.join(refused)}")

    def _named(self, judge: Judge) -> dict[str, str]:
        """What is asked of a judge -> the rule's name."""
        asked = {"safety": bool(judge.categories), "topics": judge.topics is not None}
        return {what: self._name(what) for what, is_asked in asked.items() if is_asked}

    def _name(self, name: str) -> str:
        free = free_name(name, self._names)
        self._names.add(free)
        return free


def could_not_run(name: str, why: str) -> Unavailable:
    return Unavailable(f"guardrail {name} could not run: {why}", code="guardrail_failed")


def _refuses(judge: Judge, said: str) -> bool:
    assert judge.topics is not None, "topics are not asked for"
    return judge.topics.refuses(said)


def _looking(name: str, rule: JsonSchema, schema: AnswerSchema, text: str, outcomes: Outcomes) -> Callable[[], bool]:
    """Whether the text passed; False where the rule could not look and is to fail open."""

    def look() -> bool:
        try:
            broken = schema.broken(text)
        except NotJson:
            outcomes[name] = {"outcome": "blocked"}
            raise ContentFiltered(f"refused by the guardrail {name}: the answer is no JSON") from None
        except Exception as error:  # a boundary: whatever it is, the rule has not run
            outcomes[name] = {"outcome": "failed", "why": type(error).__name__}
            if rule.on_failure == "closed":
                raise could_not_run(name, type(error).__name__) from None
            return False
        if broken is not None:
            outcomes[name] = {"outcome": "blocked"}
            raise ContentFiltered(f"refused by the guardrail {name}: the answer breaks {broken}")
        return True

    return look


def texts_of(answer: Mapping[str, Any]) -> list[str]:
    """What an answer says in words, of each choice; one that only calls tools says nothing."""
    told = [choice.get("message") or choice for choice in answer["choices"]]
    texts = [(one.get("content", one.get("text")), bool(one.get("tool_calls"))) for one in told]
    return [text or "" for text, calls in texts if text or not calls]


def told_by(answer: Mapping[str, Any]) -> list[Any]:
    """All that an answer tells, for a judge."""
    return [choice["message"] if "message" in choice else choice.get("text") for choice in answer["choices"]]


def whole_of(chunks: Sequence[Mapping[str, Any]], folded: Any) -> dict[str, Any]:
    """The one answer that chunks of a stream make."""
    for chunk in chunks:
        folded.add(chunk)
    whole: dict[str, Any] = json.loads(folded.as_json())
    return whole
