"""Guardrails on what is asked and on what is answered. Start reading here.

    GuardrailRules -> Guard: its rules (guard_rules.py, guard_pii.py)
        -> guard_messages, before the engine is asked
        -> guard_answer, or guarded for a stream: a held-back text per choice and field (guard_stream.py)
        -> Findings, which the request's row keeps
    and beside them what judges and schemas say of it all (guard_whole.py)

Each text stands by itself: what is spread over two messages, two parts of one or two arguments is not found. Neither is
what a person would read as the same and no rule names: words, other alphabets, base64.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from mosaic.gateway.guard_pii import pii_rules, recognizers
from mosaic.gateway.guard_rules import Findings, Rule, RuleSet, keyword_rule, pattern_rule
from mosaic.gateway.guard_stream import GuardedJson, GuardedStream
from mosaic.gateway.guard_together import Together
from mosaic.gateway.guard_whole import WholeRules
from mosaic.serving.ai_gateway import GuardrailRules

_TEXTS = ("content", "refusal", "reasoning", "reasoning_content")
"""The fields of a message, or of a piece of one, that are text."""
_TOLD = {"role", "name", "tool_calls", "tool_call_id", "text", *_TEXTS}
"""All that leaves of a message or a piece of one: what else a provider puts there nobody has looked at."""
_HEAD = {"id", "object", "created", "model", "system_fingerprint", "service_tier", "choices"}
"""The fields of a chunk that tell nothing without choices."""


def prepare() -> None:
    """Imports what rules about personal data need, which takes seconds: for a thread, before the first such Guard."""
    recognizers()


class Guard:
    """The rules of one side of an endpoint, ready to look."""

    def __init__(self, *rules: GuardrailRules) -> None:
        """Several hold together, the strictest of them."""
        held = Together.of(rules)
        self._max_characters = held.max_characters
        looking: list[Rule] = []
        self._names: list[str] = []
        for pii in held.pii:
            self._names += pii.types
            looking += pii_rules(pii) if pii.behavior != "NONE" else []
        if held.invalid_keywords:
            looking.append(keyword_rule(held.invalid_keywords))
        looking += map(pattern_rule, held.patterns)
        self._rules = RuleSet(looking)
        self._names += [name for name in self._rules.names if name not in self._names]
        self._names += ["max_characters"] if held.max_characters is not None else []
        self.whole = WholeRules(held.judges, held.json_schemas) if held.judges or held.json_schemas else None
        """What looks at all of it at once, if anything does."""

    @property
    def reads(self) -> bool:
        """Whether any rule looks at what a text says, not only at its length."""
        return bool(self._rules.rules)

    def findings(self) -> Findings:
        """For one request: no rule has run yet."""
        return Findings(self._names)

    def check(self, text: str, findings: Findings) -> str:
        """The text with what is to be masked masked: `<EMAIL_ADDRESS>`.

        Raises ContentFiltered for what blocks, and Unavailable when a rule fails that is to fail closed.
        """
        return self.stream(findings).whole(text)

    def stream(self, findings: Findings) -> GuardedStream:
        """For one text that comes in pieces."""
        return GuardedStream(self._rules, findings, self._max_characters)

    def json_stream(self, findings: Findings) -> GuardedJson:
        """For the text of JSON that comes in pieces, such as a tool call's arguments."""
        return GuardedJson(self._rules, findings, self._max_characters)


def refuses_logprobs(guard: Guard | None) -> bool:
    """Whether an answer under this output guard may not carry logprobs: they name the tokens that it would mask."""
    return guard is not None and guard.reads


def guard_messages(messages: Sequence[Mapping[str, Any]], guard: Guard, findings: Findings) -> list[dict[str, Any]]:
    """The messages of a chat, guarded: text and text parts, reasoning, arguments of tool calls."""
    return [_guarded_message(message, guard, findings) for message in messages]


def guard_answer(answer: Mapping[str, Any], guard: Guard, findings: Findings) -> dict[str, Any]:
    """A whole `chat.completion` or `text_completion`, guarded."""
    choices = []
    for choice in answer["choices"]:
        choice = dict(choice)
        if "message" in choice:
            choice["message"] = _guarded_message(choice["message"], guard, findings)
        if choice.get("text"):
            choice["text"] = guard.check(choice["text"], findings)
        choices.append(choice)
    return {**answer, "choices": choices}


async def guarded(
    answers: AsyncIterator[dict[str, Any]], guard: Guard, findings: Findings
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream, guarded: a chunk whose text is held back, and that tells nothing else, is not sent.

    What is held leaves with the choice's finish reason, or at the stream's end; after an error it never does.
    """
    choices: dict[int, _GuardedChoice] = {}
    head: dict[str, Any] = {}
    async for chunk in answers:
        head = {key: value for key, value in chunk.items() if key in _HEAD}
        sent = []
        for choice in chunk["choices"]:
            index = choice.get("index", 0)
            out = choices.setdefault(index, _GuardedChoice(guard, findings)).feed(choice)
            sent += [out] if out is not None else []
        tells_more = any(value is not None for key, value in chunk.items() if key not in _HEAD)
        if sent or tells_more or not chunk["choices"]:
            yield {**chunk, "choices": sent}
    rest = [{"index": index, **rest} for index, choice in choices.items() if (rest := choice.end())]
    if rest:
        yield {**head, "choices": rest}


class _GuardedChoice:
    """One choice of a stream: a held-back text for each field and each tool call."""

    def __init__(self, guard: Guard, findings: Findings) -> None:
        self._guard, self._findings = guard, findings
        self._texts: dict[str, GuardedStream] = {}
        self._calls: dict[int, GuardedJson] = {}
        self._is_chat = True

    def feed(self, choice: Mapping[str, Any]) -> dict[str, Any] | None:
        """What may leave of it now; None if nothing is left that tells anything."""
        self._is_chat = "delta" in choice
        told = choice["delta"] if self._is_chat else {"text": choice.get("text")}
        out = self._feed_told(told)
        finishes = choice.get("finish_reason") is not None
        if finishes:
            _append(out, self._rest())
        if not (out or finishes or choice.get("logprobs")):
            return None
        return {**choice, **({"delta": out} if self._is_chat else {"text": out.get("text", "")})}

    def end(self) -> dict[str, Any] | None:
        """What is left when the stream ends, as a choice; None if nothing is."""
        rest = self._rest()
        if not rest:
            return None
        return {**({"delta": rest} if self._is_chat else rest), "finish_reason": None}

    def _feed_told(self, told: Mapping[str, Any]) -> dict[str, Any]:
        out = {field: value for field, value in told.items() if field in _TOLD}
        for field in (*_TEXTS, "text"):
            if text := told.get(field):
                if field not in self._texts:
                    self._texts[field] = self._guard.stream(self._findings)
                _put(out, field, self._texts[field].feed(text))
        if told.get("tool_calls"):
            calls = [self._feed_call(call) for call in told["tool_calls"]]
            _put(out, "tool_calls", [call for call in calls if call.keys() - {"index", "type"}])
        return out

    def _feed_call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(call)
        function = call.get("function") or {}
        if arguments := function.get("arguments"):
            index = call.get("index", 0)
            if index not in self._calls:
                self._calls[index] = self._guard.json_stream(self._findings)
            function = dict(function)
            _put(function, "arguments", self._calls[index].feed(arguments))
            _put(out, "function", function)
        return out

    def _rest(self) -> dict[str, Any]:
        """The ends of all its texts, as a piece of a message; each is a new text if the engine goes on all the same."""
        rest: dict[str, Any] = {field: text for field, stream in self._texts.items() if (text := stream.end())}
        calls = [
            {"index": index, "function": {"arguments": text}}
            for index, stream in self._calls.items()
            if (text := stream.end())
        ]
        self._texts, self._calls = {}, {}
        return {**rest, **({"tool_calls": calls} if calls else {})}


def _guarded_message(message: Mapping[str, Any], guard: Guard, findings: Findings) -> dict[str, Any]:
    out = {field: value for field, value in message.items() if field in _TOLD}
    for field in _TEXTS:
        if isinstance(text := message.get(field), str):
            out[field] = guard.check(text, findings)
    if isinstance(parts := message.get("content"), list):
        out["content"] = [
            {**part, "text": guard.check(part["text"], findings)} if isinstance(part.get("text"), str) else part
            for part in parts
        ]
    if calls := message.get("tool_calls"):
        out["tool_calls"] = [_guarded_call(call, guard, findings) for call in calls]
    return out


def _guarded_call(call: Mapping[str, Any], guard: Guard, findings: Findings) -> dict[str, Any]:
    function = call.get("function")
    if not function or not function.get("arguments"):
        return dict(call)
    arguments = guard.json_stream(findings)
    return {**call, "function": {**function, "arguments": arguments.feed(function["arguments"]) + arguments.end()}}


def _append(out: dict[str, Any], rest: Mapping[str, Any]) -> None:
    """Puts the ends of texts behind what leaves of them now."""
    calls = {call["index"]: call for call in out.get("tool_calls") or ()}
    for field, text in rest.items():
        if field != "tool_calls":
            out[field] = (out.get(field) or "") + text
            continue
        for call in text:
            if call["index"] not in calls:
                out.setdefault("tool_calls", []).append(call)
                continue
            function = calls[call["index"]].setdefault("function", {})
            function["arguments"] = (function.get("arguments") or "") + call["function"]["arguments"]


def _put(out: dict[str, Any], field: str, value: Any) -> None:
    """A field that has become empty is left out."""
    if value:
        out[field] = value
    else:
        del out[field]
