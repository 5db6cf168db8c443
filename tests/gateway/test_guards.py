"""What guards find, mask, refuse and say of it, in whole texts and messages; and which settings they take."""

import json
import pickle
import re
import subprocess
import sys
from typing import Any

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from mosaic.errors import BadRequest, ContentFiltered, Unavailable
from mosaic.gateway.guard_rules import Rule, RuleSet, failed
from mosaic.gateway.guards import Guard, guard_answer, guard_messages, refuses_logprobs
from mosaic.serving.ai_gateway import GuardrailRules, Guardrails, Pii
from mosaic.serving.prefixes import open_ends
from tests.gateway.guard_samples import NEAR_MISSES, SECRETS

MASK = Guard(GuardrailRules(pii=Pii(behavior="MASK")))


def rules(**values: Any) -> Guard:
    return Guard(GuardrailRules.parse(values))


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_each_secret_is_masked_alone_and_in_a_sentence(kind: str, secret: str) -> None:
    for text in (secret, f"It is {secret}, as I said.", f"({secret})", f"a\n{secret}\nb"):
        masked = MASK.check(text, MASK.findings())
        assert secret not in masked and f"<{kind}>" in masked, masked
        assert masked == text.replace(secret, f"<{kind}>")


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_near_misses_pass(text: str) -> None:
    findings = MASK.findings()
    assert MASK.check(f"It is {text}, as I said.", findings) == f"It is {text}, as I said."
    assert {one["outcome"] for one in findings.as_json().values()} == {"passed"}


def test_a_secret_is_found_whatever_numbers_stand_before_it() -> None:
    assert MASK.check("7 12 4111111111111111", MASK.findings()).endswith("<CREDIT_CARD>")


def test_what_overlaps_is_masked_together() -> None:
    guard = rules(pii={"behavior": "MASK"}, patterns=[{"name": "to", "regex": r"to \w+", "behavior": "MASK"}])
    findings = guard.findings()
    assert guard.check("mail to joe@corp.com now", findings) == "mail <to> now"
    assert findings.as_json()["EMAIL_ADDRESS"] == {"outcome": "masked", "times": 1}


def test_a_refusal_names_the_rule_and_not_the_text() -> None:
    guard = rules(pii={"behavior": "block"}, invalid_keywords=["Project X"])
    findings = guard.findings()
    with pytest.raises(ContentFiltered, match="EMAIL_ADDRESS, invalid_keywords") as caught:
        guard.check("joe@corp.com asks about project  x.", findings)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.status, error.code) == (400, "content_filter") and "joe" not in error.message
    told = findings.as_json()
    assert told["EMAIL_ADDRESS"] == told["invalid_keywords"] == {"outcome": "blocked", "times": 1}
    assert told["CREDIT_CARD"] == {"outcome": "skipped"}, "it has not seen the whole request"


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("Bomb", True),
        ("a BOMB!", True),
        ("bombastic", False),
        ("abomb", False),
        ("\u00e9bomb", False),
        ("bomb\u00e9", False),
        ("bomb_x", False),
        ("the c++ way", True),
        ("gr\u00dcn", True),
        ("make\n  money", True),
    ],
)
def test_keywords_are_whole_words_whatever_their_case(text: str, blocks: bool) -> None:
    guard = rules(invalid_keywords=["bomb", "c++", "gr\u00fcn", "make money"])
    if blocks:
        with pytest.raises(ContentFiltered, match="invalid_keywords"):
            guard.check(text, guard.findings())
    else:
        assert guard.check(text, guard.findings()) == text


def test_maximum_length_is_of_each_text() -> None:
    guard = rules(max_characters=5)
    findings = guard.findings()
    assert [guard.check(text, findings) for text in ("12345", "1")] == ["12345", "1"]
    assert findings.as_json() == {"max_characters": {"outcome": "passed"}}
    with pytest.raises(ContentFiltered, match="max_characters: a text has more than 5"):
        guard.check("123456", findings)


def test_what_has_not_run_has_not_passed() -> None:
    guard = rules(pii={"behavior": "NONE", "types": ["US_SSN"]}, invalid_keywords=["x"])
    findings = guard.findings()
    assert {one["outcome"] for one in findings.as_json().values()} == {"skipped"}
    guard.check("y", findings)
    assert findings.as_json() == {"US_SSN": {"outcome": "skipped"}, "invalid_keywords": {"outcome": "passed"}}
    guard.stream(findings).feed("y ")
    assert findings.as_json()["invalid_keywords"] == {"outcome": "skipped"}, "a stream that was cut off"


def broken(text: str, start: int, end: int) -> list[tuple[int, int]]:
    raise RuntimeError(f"cannot do {text[start:end]}")


def test_a_rule_that_fails_closed_ends_the_request() -> None:
    guard, findings = rules(), rules(invalid_keywords=["x"]).findings()
    guard._rules = RuleSet([Rule("invalid_keywords", "secret", blocks=True, decide=broken)])
    with pytest.raises(Unavailable, match="'invalid_keywords' could not run: RuntimeError") as caught:
        guard.check("a secret", findings)
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__
    assert findings.as_json() == {"invalid_keywords": {"outcome": "failed"}}


def test_a_rule_that_fails_open_lets_pass_and_has_not_passed() -> None:
    guard, findings = rules(), rules(invalid_keywords=["x"]).findings()
    guard._rules = RuleSet([Rule("invalid_keywords", "secret", blocks=True, fails_open=True, decide=broken)])
    assert guard.check("a secret", findings) == "a secret"
    assert findings.as_json() == {"invalid_keywords": {"outcome": "failed"}}


def test_messages_are_guarded_in_all_their_texts() -> None:
    mail, image = "joe@corp.com", {"type": "image_url", "image_url": {"url": "x"}}
    call = {"id": "1", "type": "function", "function": {"name": "send", "arguments": '{"to": "joe\\u0040corp.com"}'}}
    messages = [
        {"role": "system", "content": f"Ask {mail}"},
        {"role": "user", "content": [{"type": "text", "text": mail}, image]},
        {"role": "assistant", "content": None, "reasoning": mail, "reasoning_content": mail, "tool_calls": [call]},
    ]
    findings = MASK.findings()
    guarded = guard_messages(messages, MASK, findings)
    assert "corp.com" not in json.dumps(guarded) and json.dumps(guarded).count("<EMAIL_ADDRESS>") == 5
    assert guarded[1]["content"][1] == image
    assert json.loads(guarded[2]["tool_calls"][0]["function"]["arguments"]) == {"to": "<EMAIL_ADDRESS>"}
    assert findings.as_json()["EMAIL_ADDRESS"] == {"outcome": "masked", "times": 5}
    assert findings.as_json()["US_SSN"] == {"outcome": "passed"}
    assert "corp.com" in json.dumps(messages), "what was handed in is as it was"


def test_a_whole_answer_is_guarded_in_each_choice() -> None:
    message = {"role": "assistant", "content": "joe@corp.com", "tool_calls": []}
    answer = {"choices": [{"index": 0, "message": message}, {"index": 1, "text": "AKIAIOSFODNN7EXAMPLE"}], "usage": {}}
    assert guard_answer(answer, MASK, MASK.findings()) == {
        "choices": [
            {"index": 0, "message": {**message, "content": "<EMAIL_ADDRESS>"}},
            {"index": 1, "text": "<API_KEY>"},
        ],
        "usage": {},
    }


def test_what_no_rule_reads_does_not_leave() -> None:
    thought = [{"type": "reasoning.text", "text": "ask ann.example@posteo.de"}]
    message = {"role": "assistant", "content": "yes", "reasoning_details": thought}
    answer = {"choices": [{"index": 0, "message": message}]}
    assert guard_answer(answer, MASK, MASK.findings())["choices"][0]["message"] == {
        "role": "assistant",
        "content": "yes",
    }


def test_logprobs_are_refused_where_they_would_tell_what_is_masked() -> None:
    assert refuses_logprobs(MASK) and refuses_logprobs(rules(invalid_keywords=["x"]))
    assert not refuses_logprobs(None) and not refuses_logprobs(rules(max_characters=9))


PATTERN = {"name": "ticket", "regex": r"T-\d+", "behavior": "MASK"}


@pytest.mark.parametrize(
    ("values", "param", "says"),
    [
        ({"input": {"pii": {"behaviour": "MASK"}}}, "input.pii.behaviour", "unknown field"),
        ({"input": {"pii": {"behavior": "HIDE"}}}, "input.pii.behavior", "'BLOCK', 'MASK' or 'NONE'"),
        ({"output": {"pii": {"behavior": "MASK", "types": ["NAME"]}}}, "output.pii.types.0", "'CREDIT_CARD'"),
        ({"input": {"invalid_keywords": [" "]}}, "input.invalid_keywords.0", "pattern"),
        ({"input": {"invalid_keywords": ["x" * 200] * 51}}, "input.invalid_keywords", "at most 10000 together"),
        ({"input": {"max_characters": 0}}, "input.max_characters", "greater than or equal to 1"),
        ({"input": {"patterns": [{**PATTERN, "regex": r"(a)\1"}]}}, "input.patterns.0.regex", "invalid escape"),
        ({"input": {"patterns": [{**PATTERN, "regex": "(?=a)b"}]}}, "input.patterns.0.regex", "look-around"),
        ({"input": {"patterns": [{**PATTERN, "regex": "a("}]}}, "input.patterns.0.regex", "RE2 does not take it"),
        ({"input": {"patterns": [{**PATTERN, "regex": "a*"}]}}, "input.patterns.0.regex", "the empty text"),
        (
            {"input": {"patterns": [{**PATTERN, "regex": "a(?i)b"}]}},
            "input.patterns.0.regex",
            "flags stand at the start",
        ),
        (
            {"input": {"patterns": [{**PATTERN, "regex": "(((a{99}){99}){99})"}]}},
            "input.patterns.0.regex",
            "repetition",
        ),
        ({"input": {"patterns": [{**PATTERN, "name": "US_SSN"}]}}, "input", "'US_SSN' is taken"),
        ({"input": {"patterns": [PATTERN, PATTERN]}}, "input", "'ticket' is taken"),
        ({"input": {"patterns": [{**PATTERN, "behavior": "NONE"}]}}, "input.patterns.0.behavior", "'BLOCK' or 'MASK'"),
        (
            {"input": {"patterns": [{**PATTERN, "on_failure": "x"}]}},
            "input.patterns.0.on_failure",
            "'open' or 'closed'",
        ),
    ],
)
def test_bad_settings_are_refused_by_field(values: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Guardrails.parse(values)
    assert caught.value.param == param and says in caught.value.message, caught.value.message


def test_a_failure_is_noted_before_it_is_raised() -> None:
    findings = rules(invalid_keywords=["x"]).findings()
    with pytest.raises(Unavailable):
        failed(Rule("invalid_keywords", "x", blocks=True), "TimeoutError", findings)
    assert findings.outcome("invalid_keywords") == "failed"


EXPRESSIONS = [
    "abc",
    "a|bc|bd",
    "(ab)+c",
    "a{2,3}b?c",
    "(?:a|bb){2}c",
    r"\bab\b",
    "(?i)aB|c",
    "(?i:a)b|(?P<n>ca)",
    "[^a]a[]b]",
    "^ab$|c",
    r"a.\x62|\Qa+\Eb",
    "a*?b",
    r"\pL\d[[:alpha:]]{2}",
    "((a|b)*c){1}",
    "a{0,2}b{3,}c{0}",
]


@pytest.mark.parametrize("regex", EXPRESSIONS)
@given(text=st.text("abcAB+ 1\n", max_size=8))
def test_every_beginning_of_a_match_is_an_open_end(regex: str, text: str) -> None:
    match = re2.search(regex, text)
    if match is None:
        return
    ends = re2.compile(f"(?:{open_ends(regex)})\\z")
    for cut in range(match.start(), match.end()):
        assert ends.match(text[:cut], match.start()), (text, cut)


@pytest.mark.parametrize(
    ("regex", "text"), [("abc", "abc"), ("abc", "b"), ("ab?c", "ac"), ("ab{2}", "abb"), ("(a|b)c", "c")]
)
def test_what_cannot_go_on_is_no_open_end(regex: str, text: str) -> None:
    found = re2.search(f"(?:{open_ends(regex)})\\z", text)
    assert found.start() == len(text)


def test_many_guards_made_at_once_import_presidio_once() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from mosaic.gateway.guards import Guard\n"
        "from mosaic.serving.ai_gateway import GuardrailRules, Pii\n"
        "rules = GuardrailRules(pii=Pii(behavior='MASK'))\n"
        "with ThreadPoolExecutor(32) as threads:\n"
        "    print(len(list(threads.map(lambda _: Guard(rules), range(32)))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "32\n", ran.stderr


def test_presidio_is_imported_for_personal_data_only() -> None:
    code = (
        "import sys\n"
        "from mosaic.gateway.guards import Guard\n"
        "from mosaic.serving.ai_gateway import GuardrailRules, Pii\n"
        "Guard(GuardrailRules(invalid_keywords=('x',), pii=Pii(behavior='MASK', types=('API_KEY',))))\n"
        "print('presidio_analyzer' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"False\s*", ran.stdout)
