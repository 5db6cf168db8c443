"""A guarded text that comes in pieces: lets go of what can no longer become part of a match, and of no more.

The cut is where the first match may have begun that more text could make whole (`RuleSet.open_from`), moved before
whatever was found, or passed over, across it. All before the cut is decided: more text cannot change it.
"""

import re
from collections.abc import Iterator, Sequence

from mosaic.errors import ContentFiltered, Unavailable
from mosaic.gateway.guard_rules import Findings, Found, RuleSet, failed

MOST_HELD = 8192
"""Characters after which a match that is still open counts as a failure of its rule: a private key has some 3,300."""

Settled = Iterator[tuple[str, str | None]]
"""Text that may leave, and the label that takes its place if it was found."""


class GuardedStream:
    """One text: what `feed` and `end` return is together what the whole text would have become."""

    def __init__(self, rules: RuleSet, findings: Findings, max_characters: int | None = None) -> None:
        self._rules, self._findings, self._max_characters = rules, findings, max_characters
        self._text, self._start = "", 0
        """What is held, from `start` on; before it the last sign that was let go of."""
        self._characters = 0
        findings.begin_text()

    def feed(self, piece: str) -> str:
        """What may leave now. Raises ContentFiltered before any of what it blocks has left."""
        return _labelled(self.settle(piece))

    def end(self) -> str:
        """The rest."""
        return _labelled(self.settle_rest())

    def whole(self, text: str) -> str:
        """What becomes of a text that is all there."""
        self._take(text)
        return self.end()

    def settle(self, piece: str) -> Settled:
        """As `feed`, with the text that labels stand for."""
        self._take(piece)
        cut = self._rules.open_from(self._text, self._start)
        while len(self._text) - cut > MOST_HELD:
            rule = self._rules.open_rule(self._text, cut)
            failed(rule, f"a match is still open after {MOST_HELD} characters", self._findings)
            self._rules = self._rules.without(rule)
            cut = self._rules.open_from(self._text, self._start)
        return self._let_go(cut) if cut > self._start else iter(())

    def settle_rest(self) -> Settled:
        """As `end`, with the text that labels stand for."""
        settled = self._let_go(len(self._text))
        names = ["max_characters"] if self._max_characters is not None else []
        self._findings.end_text([*self._rules.names, *names])
        return settled

    def _take(self, piece: str) -> None:
        self._characters += len(piece)
        if self._max_characters is not None and self._characters > self._max_characters:
            self._findings.blocked("max_characters")
            told = f"max_characters: a text has more than {self._max_characters} characters"
            raise ContentFiltered(f"refused by the guardrail {told}")
        self._text += piece

    def _let_go(self, cut: int) -> Settled:
        """Decides what is before the cut, after moving it before what lies across it."""
        found, self._rules = self._rules.find(self._text, self._start, self._findings)
        for one in sorted(found, key=lambda one: -one.start):
            if one.start < cut < one.end:
                cut = one.start
        decided = [one for one in found if one.is_match and one.start < cut]
        refuse(decided, self._findings)
        settled = replaced(self._text, self._start, cut, decided, self._findings)
        self._text, self._start = self._text[max(0, cut - 1) :], min(1, cut)
        return iter(settled)


def refuse(found: list[Found], findings: Findings) -> None:
    """Raises ContentFiltered for what blocks; it names the rules, not the text."""
    names = []
    for one in found:
        if one.rule.blocks:
            findings.blocked(one.rule.name)
            names.append(one.rule.name)
    if names:
        raise ContentFiltered(f"refused by the guardrail {', '.join(dict.fromkeys(names))}")


def replaced(text: str, start: int, end: int, found: list[Found], findings: Findings) -> list[tuple[str, str | None]]:
    """The text in parts, each with the label that takes its place; what overlaps has the label of what begins first."""
    parts: list[tuple[str, str | None]] = []
    at = start
    for one in found:
        findings.masked(one.rule.name)
        if one.start >= at:
            parts += [(text[at : one.start], None), (text[one.start : one.end], one.rule.name)]
        elif one.end > at:
            before, label = parts.pop()
            parts.append((before + text[at : one.end], label))
        at = max(at, one.end)
    parts.append((text[at:end], None))
    return [part for part in parts if part[0]]


def _labelled(settled: Settled) -> str:
    return "".join(text if label is None else f"<{label}>" for text, label in settled)


_IN_STRING = re.compile(r'[^"\\]+|"|\\(?:u[0-9a-fA-F]{4}|u(?=[0-9a-fA-F]{0,3}[^0-9a-fA-F])|[^u])', re.DOTALL)
_STRUCTURE = re.compile(r"[\s:,\[\]{}]+")
_TOKEN = re.compile(r'[^"\[\]{},]+')
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class GuardedJson:
    """The text of JSON that comes in pieces, a tool call's arguments: each string is looked at as a text of its own,
    with its escapes read, and each number; what comes out is JSON if what went in was.

    What stands outside of strings, and what models write that is no JSON, is looked at from one bracket, comma or quote
    to the next, and replaced as a whole. An escaped pair of surrogates is looked at as two unknown signs.
    """

    def __init__(self, rules: RuleSet, findings: Findings, max_characters: int | None = None) -> None:
        self._rules, self._findings = rules, findings
        self._whole = GuardedStream(RuleSet([]), findings, max_characters)
        """Counts characters, and is not at its end before the arguments are."""
        self._pending = ""
        self._string: _JsonString | None = None

    def feed(self, piece: str) -> str:
        """What may leave now. Raises ContentFiltered before any of what it blocks has left."""
        self._pending += self._whole.feed(piece)
        return "".join(self._parts(is_end=False))

    def end(self) -> str:
        """The rest."""
        rest = "".join(self._parts(is_end=True))
        if self._string:
            rest += self._string.feed(self._pending, self._pending) + self._string.end()
        self._whole.end()
        self._findings.end_text(self._rules.names)
        return rest

    def _parts(self, *, is_end: bool) -> Iterator[str]:
        at = 0
        while at < len(self._pending):
            part = self._string_part(at) if self._string else self._outside_part(at, is_end=is_end)
            if part is None:
                break
            taken, out = part
            at += taken
            yield out
        self._pending = self._pending[at:]

    def _string_part(self, at: int) -> tuple[int, str] | None:
        """(how much is taken, what leaves); None while an escape is not whole."""
        assert self._string is not None
        found = _IN_STRING.match(self._pending, at)
        if found is None:
            return None
        raw = found.group()
        if raw == '"':
            out, self._string = self._string.end() + raw, None
        elif raw.startswith("\\"):
            out = self._string.feed(_unescaped(raw), [raw])
        else:
            out = self._string.feed(raw, raw)
        return len(raw), out

    def _outside_part(self, at: int, *, is_end: bool) -> tuple[int, str] | None:
        """(how much is taken, what leaves); None while a number, or what else it is, may go on."""
        if self._pending[at] == '"':
            self._string = _JsonString(self._rules, self._findings)
            return 1, '"'
        if found := _STRUCTURE.match(self._pending, at):
            return len(found.group()), found.group()
        found = _TOKEN.match(self._pending, at)
        assert found is not None
        token = found.group()
        if found.end() == len(self._pending) and not is_end:
            if len(token) > MOST_HELD:
                raise Unavailable("arguments that are no JSON are too long to be guarded", code="guardrail_failed")
            return None
        stream = GuardedStream(self._rules, self._findings)
        labels = [label for _, label in [*stream.settle(token), *stream.settle_rest()] if label]
        return len(token), f'"<{labels[0]}>"' if labels else token


class _JsonString:
    """A string, looked at as what it says and let go of as it was written."""

    def __init__(self, rules: RuleSet, findings: Findings) -> None:
        self._stream = GuardedStream(rules, findings)
        self._written: list[str] = []
        """How each sign that is held was written."""

    def feed(self, said: str, written: Sequence[str]) -> str:
        self._written += written
        return self._as_written(self._stream.settle(said))

    def end(self) -> str:
        return self._as_written(self._stream.settle_rest())

    def _as_written(self, settled: Settled) -> str:
        out = []
        for text, label in settled:
            written, self._written = self._written[: len(text)], self._written[len(text) :]
            out.append("".join(written) if label is None else f"<{label}>")
        return "".join(out)


def _unescaped(escape: str) -> str:
    """The one sign that an escape stands for."""
    if escape[1] != "u":
        return _ESCAPES.get(escape[1], escape[1])
    code = int(escape[2:] or "fffd", 16)
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)
