"""Streams under a guard give what the whole text would give, however cut, and hold back no more than they must."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.errors import ContentFiltered, EngineDied, Unavailable
from mosaic.gateway.answers import FoldedChat, FoldedText
from mosaic.gateway.guard_rules import Findings
from mosaic.gateway.guard_stream import MOST_HELD
from mosaic.gateway.guards import Guard, guard_answer, guarded
from mosaic.serving.ai_gateway import GuardrailRules
from tests.gateway.guard_samples import NEAR_MISSES, PEM, SECRETS
from tests.gateway.test_guards import EXPRESSIONS, rules

Chunk = dict[str, Any]

PATTERNS = [
    {"name": "ticket", "regex": r"\bT-\d+\b", "behavior": "MASK"},
    {"name": "lazy", "regex": "(?i)begin.*?end", "behavior": "MASK"},
    {"name": "line", "regex": "(?m)^note: .{1,20}$", "behavior": "MASK"},
    {"name": "choice", "regex": "zz|zzyx|q+z", "behavior": "MASK"},
]
MASK = Guard(GuardrailRules.parse({"pii": {"behavior": "MASK"}, "patterns": PATTERNS}))
BLOCK = Guard(GuardrailRules.parse({"pii": {"behavior": "BLOCK"}, "invalid_keywords": ["bomb", "make money"]}))

WORDS = [
    "the",
    "a",
    " ",
    "  ",
    "\n",
    ", ",
    ".",
    "-",
    "(",
    "4111",
    "12 ",
    "0",
    "+1 ",
    "@",
    "sk-",
    "DE89",
    ":",
    "::",
    "\u00e9",
    "\U0001f600",
]
OWN = ["T-12", "T-", "begin", "End", "note: ", "zz", "zzyx", "qq", "z", "\\", '"', "bomb", "make"]
TEXTS = st.lists(st.sampled_from([*WORDS, *OWN, *NEAR_MISSES, *(secret for _, secret in SECRETS)]), max_size=12).map(
    "".join
)


def chunks_of(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=20)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def streamed(guard: Guard, pieces: Iterable[str], findings: Findings | None = None) -> list[str]:
    stream = guard.stream(findings or guard.findings())
    return [*(stream.feed(piece) for piece in pieces), stream.end()]


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_no_byte_of_a_secret_leaves_however_it_is_cut(kind: str, secret: str) -> None:
    text = f"It is {secret}, as I said."
    expected = text.replace(secret, f"<{kind}>")
    for size in range(1, len(text) + 1) if len(text) < 100 else (1, 2, 3, 7, 50, len(text)):
        assert "".join(streamed(MASK, chunks_of(text, size))) == expected
    for cut in range(len(text)):
        first, *rest = streamed(MASK, [text[:cut], text[cut:]])
        assert expected.startswith(first) and first + "".join(rest) == expected


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_what_blocks_raises_before_any_of_it_has_left(kind: str, secret: str) -> None:
    for cut in range(len(secret) + 7):
        stream, left = BLOCK.stream(BLOCK.findings()), ""
        text = f"It is {secret}, as I said."
        with pytest.raises(ContentFiltered, match=kind):
            for piece in (text[:cut], *text[cut:]):
                left += stream.feed(piece)
        assert "It is ".startswith(left)


@given(pieces=cut_texts())
def test_a_stream_gives_what_the_whole_text_gives(pieces: list[str]) -> None:
    findings, expected = MASK.findings(), MASK.findings()
    assert "".join(streamed(MASK, pieces, findings)) == MASK.check("".join(pieces), expected)
    assert findings.as_json() == expected.as_json()


@given(pieces=cut_texts())
def test_a_stream_is_blocked_where_the_whole_text_is(pieces: list[str]) -> None:
    try:
        whole = BLOCK.check("".join(pieces), BLOCK.findings())
    except ContentFiltered:
        with pytest.raises(ContentFiltered):
            streamed(BLOCK, pieces)
    else:
        assert "".join(streamed(BLOCK, pieces)) == whole


@pytest.mark.parametrize("count", range(0, 48, 3))
def test_numbers_in_a_long_row_are_found_in_streams_as_in_whole_texts(count: int) -> None:
    for text in ("7 " * count + "212-555-0123, ", "1234 " * count + "4111 1111 1111 1111 +49 30 901820 17 18"):
        assert "".join(streamed(MASK, text)) == MASK.check(text, MASK.findings())


OWN_RULES = [
    rules(
        patterns=[{"name": "own", "regex": regex, "behavior": "MASK"}], pii={"behavior": "MASK", "types": ["API_KEY"]}
    )
    for regex in EXPRESSIONS
]


@pytest.mark.parametrize("guard", OWN_RULES, ids=EXPRESSIONS)
@given(text=st.text("abcAB+ 1\n", max_size=12))
def test_patterns_of_ones_own_are_found_in_streams_as_in_whole_texts(guard: Guard, text: str) -> None:
    assert "".join(streamed(guard, text)) == guard.check(text, guard.findings())


def as_json_text(value: str, ascii_only: bool, slashes: bool) -> str:
    text = json.dumps(value, ensure_ascii=ascii_only)
    return text.replace("@", "\\u0040").replace("/", "\\/") if slashes else text


@given(strings=st.lists(TEXTS, max_size=3), ascii_only=st.booleans(), slashes=st.booleans(), data=st.data())
def test_json_stays_json_and_each_string_is_as_by_itself(
    strings: list[str], ascii_only: bool, slashes: bool, data: st.DataObject
) -> None:
    written = [as_json_text(one, ascii_only, slashes) for one in strings]
    text = '{"n": 4111111111111111, "m": [-1.5e3, true, null], "s": [' + ", ".join(written) + "]}"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=20)))
    stream = MASK.json_stream(MASK.findings())
    out = "".join(stream.feed(text[start:end]) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
    said = json.loads(out + stream.end())
    assert (said["n"], said["m"]) == ("<CREDIT_CARD>", [-1500.0, True, None])
    if not ascii_only or all(ord(sign) < 0x10000 for sign in "".join(strings)):
        assert said["s"] == [MASK.check(one, MASK.findings()) for one in strings]


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_arguments_hide_secrets_however_they_are_written_and_cut(kind: str, secret: str) -> None:
    escaped = "".join(f"\\u{ord(sign):04x}" for sign in secret)
    for written in (json.dumps(secret), f'"{escaped}"'):
        text = f'{{"to": {written}, "n": 1}}'
        for size in (1, 2, 3, 5, 11, len(text)):
            stream = MASK.json_stream(MASK.findings())
            out = "".join(map(stream.feed, chunks_of(text, size))) + stream.end()
            assert json.loads(out) == {"to": f"<{kind}>", "n": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n": -4111111111111111.5}', '{"n": "<CREDIT_CARD>"}'),
        ('{"to": joe@corp.com}', '{"to": "<EMAIL_ADDRESS>"}'),
        ("mail joe@corp.com now", '"<EMAIL_ADDRESS>"'),
        ('{"cut off": "joe@corp.com', '{"cut off": "<EMAIL_ADDRESS>'),
        ('{"cut off": "x\\u00', '{"cut off": "x\\u00'),
        ('"\\uZZ \\ud83d\\ude00 \\ud800"', '"\\uZZ \\ud83d\\ude00 \\ud800"'),
        ('{"joe@corp.com": 1}', '{"<EMAIL_ADDRESS>": 1}'),
        ('"a\\njoe@corp.com\\n\\"b"', '"a\\n<EMAIL_ADDRESS>\\n\\"b"'),
        ("", ""),
    ],
)
def test_arguments_as_models_write_them(text: str, expected: str) -> None:
    for size in range(1, len(text) + 2):
        stream = MASK.json_stream(MASK.findings())
        assert "".join(map(stream.feed, chunks_of(text, size))) + stream.end() == expected


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Hello, world", "Hello, "),
        ("Hello, world.\n", "Hello, world.\n"),
        ("It is 12", "It is "),
        ("It is 12 of 30 and", "It is 12 of 30 "),
        ("4111 1111 1111 1112 ", ""),
        ("4111 1111 1111 1112, ", "4111 1111 1111 1112, "),
        ("call +1 (212) 555", "call "),
    ],
)
def test_only_what_could_become_a_match_is_held(text: str, left: str) -> None:
    guard = Guard(
        GuardrailRules.parse({"pii": {"behavior": "MASK", "types": ["CREDIT_CARD", "EMAIL_ADDRESS", "PHONE_NUMBER"]}})
    )
    assert "".join(streamed(guard, text)[:-1]) == left


def test_without_rules_nothing_is_held() -> None:
    guard = Guard(GuardrailRules(max_characters=12))
    assert streamed(guard, ["Hello, ", "wor"]) == ["Hello, ", "wor", ""]
    with pytest.raises(ContentFiltered, match="max_characters"):
        streamed(guard, ["Hello, ", "world."])


@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_a_match_that_does_not_end_is_a_failure_of_its_rule(on_failure: str) -> None:
    endless = {"name": "endless", "regex": "x(?s:.)*y", "behavior": "MASK", "on_failure": on_failure}
    guard = Guard(GuardrailRules.parse({"pii": {"behavior": "MASK", "types": ["US_SSN"]}, "patterns": [endless]}))
    findings, text = guard.findings(), "x" + "." * (MOST_HELD + 10) + " 536-90-4399 y"
    if on_failure == "closed":
        with pytest.raises(Unavailable, match="'endless' could not run: a match is still open"):
            streamed(guard, text, findings)
    else:
        assert "".join(streamed(guard, text, findings)) == text.replace("536-90-4399", "<US_SSN>")
        assert findings.outcome("US_SSN") == "masked"
    assert findings.outcome("endless") == "failed"


def test_a_private_key_is_hidden_whole_and_what_follows_is_not() -> None:
    text = f"key:\n{PEM}\nIt is the one that you asked for."
    assert "".join(streamed(MASK, text)) == "key:\n<API_KEY>\nIt is the one that you asked for."


def delta(index: int = 0, finish_reason: str | None = None, **told: Any) -> Chunk:
    choice = {"index": index, "delta": told, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def piece_of_call(arguments: str, **head: Any) -> Chunk:
    return delta(tool_calls=[{"index": 0, **head, "function": {"arguments": arguments}}])


async def sent(chunks: Iterable[Chunk], ends: Exception | None = None) -> AsyncIterator[Chunk]:
    for chunk in chunks:
        yield chunk
    if ends:
        raise ends


def through(guard: Guard, chunks: Iterable[Chunk], findings: Findings | None = None) -> list[Chunk]:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in guarded(sent(chunks), guard, findings or guard.findings())]

    return asyncio.run(collect())


def folded(chunks: Iterable[Chunk]) -> Chunk:
    answer = FoldedChat("m", "x")
    for chunk in chunks:
        answer.add(chunk)
    whole: Chunk = json.loads(answer.as_json())
    return whole


def answer_in_pieces(secret: str, size: int) -> Iterator[Chunk]:
    yield delta(role="assistant", content="")
    for field in ("reasoning", "reasoning_content", "content"):
        for piece in chunks_of(f"It is {secret}, as I said to {secret}", size):
            yield delta(**{field: piece})
            yield delta(1, **{field: piece[::-1]})
    yield delta(tool_calls=[{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}])
    for piece in chunks_of(json.dumps({"to": secret, "cc": f"x {secret}"}), size):
        yield piece_of_call(piece)
    yield delta(finish_reason="tool_calls")
    yield delta(1, finish_reason="stop")
    yield {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 1}}


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_a_streamed_answer_is_the_guarded_whole_answer(kind: str, secret: str) -> None:
    for size in (1, 2, 3, 5, 8, 13, 1000):
        chunks = list(answer_in_pieces(secret, size))
        out = through(MASK, chunks)
        assert folded(out) == guard_answer(folded(chunks), MASK, MASK.findings())
        assert out[-1] == chunks[-1]
        shown = json.dumps(folded(out)["choices"][0], ensure_ascii=False)
        assert json.dumps(secret)[1:-1] not in shown and shown.count(f"<{kind}>") == 8


def test_chunks_that_tell_nothing_more_are_not_sent() -> None:
    chunks = [delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo w"), delta(content="orld")]
    chunks += [delta(content="!", finish_reason="stop")]
    assert [chunk["choices"][0] for chunk in through(MASK, chunks)] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None},
        {"index": 0, "delta": {"content": "Hello "}, "finish_reason": None},
        {"index": 0, "delta": {"content": "world!"}, "finish_reason": "stop"},
    ]


def test_usage_passes_while_text_is_held() -> None:
    chunks = [{**delta(content="joe@"), "usage": {"completion_tokens": 1}}, delta(content="corp.com")]
    out = through(MASK, chunks)
    assert out[0]["choices"] == [] and out[0]["usage"] == {"completion_tokens": 1}
    assert out[1]["choices"] == [{"index": 0, "delta": {"content": "<EMAIL_ADDRESS>"}, "finish_reason": None}]


def test_a_call_that_ends_while_held_is_flushed_into_its_own_index() -> None:
    chunks = [piece_of_call('{"n": 41111', id="1", type="function"), piece_of_call("11111111111")]
    out = through(MASK, [*chunks, delta(finish_reason="tool_calls")])
    assert folded(out)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"n": "<CREDIT_CARD>"'


def test_completions_of_plain_text() -> None:
    text = "It is joe@corp.com, 4111 1111 1111 1111"
    head = {"id": "x", "object": "text_completion"}
    chunks = [{**head, "choices": [{"index": 0, "text": piece, "finish_reason": None}]} for piece in chunks_of(text, 3)]
    answer = FoldedText("m", "x")
    for chunk in through(MASK, [*chunks, {**head, "choices": [{"index": 0, "text": "", "finish_reason": "length"}]}]):
        answer.add(chunk)
    choice = json.loads(answer.as_json())["choices"][0]
    assert choice == {"index": 0, "text": "It is <EMAIL_ADDRESS>, <CREDIT_CARD>", "finish_reason": "length"}
    out = through(MASK, chunks)
    assert out[-1]["choices"] == [{"index": 0, "text": "<CREDIT_CARD>", "finish_reason": None}]


def test_after_an_error_nothing_that_was_held_leaves() -> None:
    findings, out = MASK.findings(), []

    async def collect() -> None:
        async for chunk in guarded(sent([delta(content="It is joe@corp.c")], EngineDied("gone")), MASK, findings):
            out.append(chunk["choices"][0]["delta"]["content"])

    with pytest.raises(EngineDied):
        asyncio.run(collect())
    assert out == ["It is "] and findings.outcome("EMAIL_ADDRESS") == "skipped"


def test_a_blocked_stream_raises_and_says_what_it_kept_back() -> None:
    findings = BLOCK.findings()
    with pytest.raises(ContentFiltered, match="invalid_keywords"):
        through(BLOCK, [delta(content="You could make"), delta(content=" mon"), delta(content="ey.")], findings)
    assert findings.as_json()["invalid_keywords"] == {"outcome": "blocked", "times": 1}
