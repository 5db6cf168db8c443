"""Several sets of rules as one: what any of them refuses is refused, and what any finds is not left standing."""

import re
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import ContentFiltered
from mosaic.gateway.guard_together import Together
from mosaic.gateway.guards import Guard
from mosaic.serving.ai_gateway import GuardrailRules

LETTERS = "abcd"
BEHAVIORS = st.sampled_from(["BLOCK", "MASK"])
PATTERNS = st.builds(
    lambda letter, behavior: {"name": f"p{letter}", "regex": letter, "behavior": behavior},
    st.sampled_from(LETTERS),
    BEHAVIORS,
)
RULES = st.builds(
    lambda patterns, keywords, most: GuardrailRules.parse(
        {
            "patterns": list({one["name"]: one for one in patterns}.values()),
            "invalid_keywords": keywords,
            "max_characters": most,
        }
    ),
    st.lists(PATTERNS, max_size=3),
    st.lists(st.sampled_from(["cat", "dog"]), max_size=2),
    st.none() | st.integers(3, 12),
)


def blocks(text: str, *rules: GuardrailRules) -> bool:
    guard = Guard(*rules)
    try:
        guard.check(text, guard.findings())
    except ContentFiltered:
        return True
    return False


@given(st.lists(RULES, min_size=1, max_size=4), st.text(f"{LETTERS}x ", max_size=12) | st.sampled_from(["cat", "dog"]))
@settings(max_examples=150, deadline=None)
def test_together_they_refuse_what_any_refuses_and_mask_what_any_masks(sets: list[GuardrailRules], text: str) -> None:
    refused = any(blocks(text, one) for one in sets)
    assert blocks(text, *sets) == refused
    if refused:
        return
    guard = Guard(*sets)
    findings = guard.findings()
    said = re.sub(r"<p[a-d]>", "", guard.check(text, findings))
    found = {pattern.regex for one in sets for pattern in one.patterns}
    assert not found & set(said)
    for name, told in findings.as_json().items():
        assert told["outcome"] == ("masked" if name[0] == "p" and name[1] in text else "passed")


def pii(behavior: str, on_failure: str = "closed", *types: str) -> GuardrailRules:
    kinds = {"types": types} if types else {}
    return GuardrailRules.parse({"pii": {"behavior": behavior, "on_failure": on_failure, **kinds}})


@pytest.mark.parametrize(
    ("sets", "behavior", "on_failure"),
    [
        ([pii("NONE")], "NONE", "closed"),
        ([pii("MASK", "open"), pii("NONE", "closed")], "MASK", "open"),
        ([pii("MASK", "open"), pii("BLOCK", "open")], "BLOCK", "open"),
        ([pii("MASK", "closed"), pii("BLOCK", "open")], "BLOCK", "closed"),
        ([pii("NONE"), pii("MASK", "open"), pii("MASK", "closed")], "MASK", "closed"),
    ],
)
def test_personal_data_as_the_strictest_says_in_any_order(
    sets: list[GuardrailRules], behavior: str, on_failure: str
) -> None:
    for ordered in permutations(sets):
        (held,) = Together.of(ordered).pii
        assert (held.behavior, held.on_failure) == (behavior, on_failure)


def test_each_type_by_itself() -> None:
    held = Together.of([pii("MASK"), pii("BLOCK", "closed", "CREDIT_CARD")]).pii
    of = {kind: one.behavior for one in held for kind in one.types}
    assert of.pop("CREDIT_CARD") == "BLOCK" and set(of.values()) == {"MASK"} and len(of) == 6


def test_patterns_of_one_name_that_are_not_the_same_both_hold() -> None:
    def pattern(regex: str, behavior: str, on_failure: str = "closed") -> GuardrailRules:
        one = {"name": "ticket", "regex": regex, "behavior": behavior, "on_failure": on_failure}
        return GuardrailRules.parse({"patterns": [one]})

    guard = Guard(pattern("T-1", "MASK"), pattern("T-2", "MASK"), pattern("T-1", "MASK", "open"))
    findings = guard.findings()
    assert guard.check("T-1 T-2 T-3", findings) == "<ticket> <ticket-2> T-3"
    assert findings.as_json()["ticket-2"] == {"outcome": "masked", "times": 1}
    assert blocks("T-1", pattern("T-1", "MASK"), pattern("T-1", "BLOCK"))


def test_judges_and_schemas_that_are_the_same_are_asked_once() -> None:
    def whole(schema: str, topic: str) -> GuardrailRules:
        judge = {"endpoint": "j", "topics": {"deny": [topic]}, "safety": True}
        return GuardrailRules.parse({"judge": judge, "json_schema": {"schema": {"type": schema}}})

    held = Together.of([whole("object", "a"), whole("object", "a"), whole("object", "b")])
    assert len(held.judges) == 2 and len(held.json_schemas) == 1
    rules = Guard(whole("object", "a"), whole("object", "b")).whole
    assert rules is not None and set(rules.outcomes()) == {"safety", "safety-2", "topics", "topics-2", "json_schema"}
