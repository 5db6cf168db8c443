"""What a guard looks for: rules, how several look at one text, and what came of each."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import re2

from mosaic.errors import Unavailable
from mosaic.serving.ai_gateway import Pattern
from mosaic.serving.prefixes import open_ends

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_MEMORY_BYTES = 256 << 20
"""What RE2 may take for all rules of a guard as one expression; it takes what they need, some hundred KB."""

Spans = Sequence[tuple[int, int]]
Decide = Callable[[str, int, int], Spans]
"""(text, start, end of a candidate) -> what of it is found. May look at one sign before the candidate, and at nothing
after it, so that a stream decides as the whole text does."""


def whole_candidate(text: str, start: int, end: int) -> Spans:
    """For rules whose shape says all; nothing is found in an empty candidate."""
    return [(start, end)] if start < end else []


Resume = Callable[[str, int, int], int]
"""(text, start, end of a candidate) -> where to look for the next, unless what was found ends later."""


def next_sign(text: str, start: int, end: int) -> int:
    """A candidate hides nothing: the next may begin inside it."""
    return start + 1


@dataclass(frozen=True)
class Rule:
    """Looks for candidates of a shape and decides on each."""

    name: str
    shape: str
    """In RE2's syntax; what has this shape is a candidate."""
    blocks: bool
    fails_open: bool = False
    decide: Decide = whole_candidate
    resume: Resume = next_sign
    longest: bool = True
    """Whether the longest candidate counts, or the one that Perl would find."""

    @cached_property
    def _compiled(self) -> Any:
        return compiled(self.shape, longest=self.longest)

    def find(self, text: str, start: int) -> Iterator["Found"]:
        """All from `start` on, with what is passed over on the way."""
        while candidate := self._compiled.search(text, start):
            end = candidate.end()
            found = self.decide(text, candidate.start(), end)
            start = max([self.resume(text, candidate.start(), end), *(end for _, end in found)])
            yield Found(candidate.start(), start, self, is_match=False)
            yield from (Found(*one, self) for one in found)


class Found(NamedTuple):
    """What a rule found, by its place in the text; or what it passed over, where it looks for nothing more."""

    start: int
    end: int
    rule: Rule
    is_match: bool = True


class Findings:
    """What came of each rule in one request: never "passed" for one that did not see all of every text."""

    def __init__(self, names: Sequence[str]) -> None:
        self._texts = 0
        self._seen = dict.fromkeys(names, 0)
        self._masked = dict.fromkeys(names, 0)
        self._blocked = dict.fromkeys(names, 0)
        self._failed: set[str] = set()

    def begin_text(self) -> None:
        """Another text is looked at."""
        self._texts += 1

    def end_text(self, names: Sequence[str]) -> None:
        """These rules have seen one whole text."""
        for name in names:
            self._seen[name] += 1

    def masked(self, name: str) -> None:
        self._masked[name] += 1

    def blocked(self, name: str) -> None:
        self._blocked[name] += 1

    def failed(self, name: str) -> None:
        self._failed.add(name)

    def outcome(self, name: str) -> str:
        """The first that holds of "blocked", "failed", "masked", "passed", "skipped"."""
        if self._blocked[name]:
            return "blocked"
        if name in self._failed:
            return "failed"
        if self._masked[name]:
            return "masked"
        return "passed" if 0 < self._texts == self._seen[name] else "skipped"

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Rule -> outcome, and how often it masked or blocked: what the request's row keeps."""
        counts = {name: self._masked[name] + self._blocked[name] for name in self._seen}
        return {
            name: {"outcome": self.outcome(name), **({"times": times} if times else {})}
            for name, times in counts.items()
        }


class RuleSet:
    """Rules that look at one text together: two searches tell that there is nothing, which is the usual case."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        shapes = [rule.shape for rule in rules]
        self._any = compiled("|".join(f"(?:{shape})" for shape in shapes)) if rules else None
        self._open = compiled(f"(?:{'|'.join(map(open_ends, shapes))})\\z") if rules else None

    @property
    def names(self) -> list[str]:
        return [rule.name for rule in self.rules]

    def without(self, rule: Rule) -> "RuleSet":
        return RuleSet([one for one in self.rules if one is not rule])

    def open_from(self, text: str, start: int) -> int:
        """Where the first match may have begun that more text could make whole or longer; the text's end if none."""
        found = self._open.search(readable(text), start) if self._open else None
        return found.start() if found else len(text)

    def open_rule(self, text: str, start: int) -> Rule:
        """The rule for which a match may have begun at `start`."""
        ends = ((rule, compiled(f"(?:{open_ends(rule.shape)})\\z")) for rule in self.rules)
        return next(rule for rule, end in ends if end.match(readable(text), start))

    def find(self, text: str, start: int, findings: Findings) -> tuple[list[Found], "RuleSet"]:
        """What they find from `start` on, in order, and those of them that did not fail.

        Raises Unavailable when one fails that is to fail closed.
        """
        text, found, running = readable(text), [], self
        if self._any and self._any.search(text, start):
            for rule in self.rules:
                try:
                    found += list(rule.find(text, start))
                except Exception as error:  # a boundary: whatever it is, the rule has not run
                    failed(rule, type(error).__name__, findings)
                    running = running.without(rule)
        return sorted(found, key=lambda one: (one.start, -one.end)), running


def failed(rule: Rule, why: str, findings: Findings) -> None:
    """Notes it; raises Unavailable unless the rule is to fail open. The cause is cut off: it may quote the text."""
    findings.failed(rule.name)
    if not rule.fails_open:
        raise Unavailable(f"guardrail {rule.name!r} could not run: {why}", code="guardrail_failed") from None


def keyword_rule(keywords: Sequence[str]) -> Rule:
    """Whole words, blocked."""
    words = "|".join(r"\s{1,8}".join(map(re2.escape, keyword.split())) for keyword in keywords)
    return Rule("invalid_keywords", rf"(?i:{words})(?:[^\pL\pN_]|\z)", blocks=True, decide=_whole_word)


def pattern_rule(pattern: Pattern) -> Rule:
    return Rule(
        pattern.name,
        pattern.regex,
        blocks=pattern.behavior == "BLOCK",
        fails_open=pattern.on_failure == "open",
        longest=False,
    )


def readable(text: str) -> str:
    """As many signs, without the lone surrogates that RE2 has no bytes for."""
    return text if text.isascii() else _LONE_SURROGATES.sub("\ufffd", text)


def compiled(regex: str, *, longest: bool = False) -> Any:
    """RE2's machine for it."""
    options = re2.Options()
    options.log_errors, options.max_mem, options.longest_match = False, _MEMORY_BYTES, longest
    return re2.compile(regex, options)


def within_word(text: str, start: int) -> bool:
    """Whether a word goes on here. RE2's \\b knows only ASCII's words."""
    before = text[start - 1 : start]
    return before.isalnum() or before == "_"


def _whole_word(text: str, start: int, end: int) -> Spans:
    """Not inside a longer word; the shape has looked at the sign after it."""
    return [] if within_word(text, start) else [(start, end)]
