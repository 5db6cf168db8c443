"""Several sets of rules for one side, an endpoint's own and its policies', as one: all hold, the strictest of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from mosaic.serving.ai_gateway import GuardrailRules, Pattern, Pii, PiiType
from mosaic.serving.guard_settings import JsonSchema, Judge

Rule = TypeVar("Rule")
_STRICTER = {"NONE": 0, "MASK": 1, "BLOCK": 2}


@dataclass(frozen=True)
class Together:
    """What holds."""

    pii: tuple[Pii, ...]
    """No type stands in two of them."""
    invalid_keywords: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    """Each has a name of its own."""
    max_characters: int | None
    judges: tuple[Judge, ...]
    json_schemas: tuple[JsonSchema, ...]

    @classmethod
    def of(cls, sets: Sequence[GuardrailRules]) -> "Together":
        """For each type of personal data, and for a pattern that two sets have, blocking goes before masking, and
        failing closed before failing open; a text may be as long as the lowest limit says."""
        keywords = [keyword for rules in sets for keyword in rules.invalid_keywords]
        limits = [rules.max_characters for rules in sets if rules.max_characters is not None]
        return cls(
            pii=_pii([rules.pii for rules in sets if rules.pii is not None]),
            invalid_keywords=tuple(dict.fromkeys(keywords)),
            patterns=_patterns([pattern for rules in sets for pattern in rules.patterns]),
            max_characters=min(limits, default=None),
            judges=_each_once([rules.judge for rules in sets if rules.judge is not None]),
            json_schemas=_each_once([rules.json_schema for rules in sets if rules.json_schema is not None]),
        )


def _pii(given: Sequence[Pii]) -> tuple[Pii, ...]:
    held: dict[PiiType, tuple[int, bool]] = {}
    for pii in given:
        how = (_STRICTER[pii.behavior], pii.on_failure == "closed")
        for kind in pii.types:
            strictest, closed = held.get(kind, how)
            # A rule that does not look says nothing about how it fails.
            closed = how[1] if not strictest else closed or (how[1] and bool(how[0]))
            held[kind] = max(strictest, how[0]), closed
    behaviors = {level: behavior for behavior, level in _STRICTER.items()}
    together: dict[tuple[int, bool], list[PiiType]] = {}
    for kind, how in held.items():
        together.setdefault(how, []).append(kind)
    return tuple(
        Pii.model_validate({"behavior": behaviors[level], "types": kinds, "on_failure": "closed" if closed else "open"})
        for (level, closed), kinds in together.items()
    )


def _patterns(given: Sequence[Pattern]) -> tuple[Pattern, ...]:
    held: dict[tuple[str, str], Pattern] = {}
    for pattern in given:
        before = held.setdefault((pattern.name, pattern.regex), pattern)
        blocks = "BLOCK" in (before.behavior, pattern.behavior)
        closed = "closed" in (before.on_failure, pattern.on_failure)
        stricter = {"behavior": "BLOCK" if blocks else "MASK", "on_failure": "closed" if closed else "open"}
        held[pattern.name, pattern.regex] = before.model_copy(update=stricter)
    taken: set[str] = set()
    named = []
    for pattern in held.values():
        name = free_name(pattern.name, taken)
        taken.add(name)
        named.append(pattern.model_copy(update={"name": name}))
    return tuple(named)


def free_name(name: str, taken: set[str]) -> str:
    """The name, or `name-2` and so on where another rule has it."""
    if name not in taken:
        return name
    return next(one for number in count(2) if (one := f"{name}-{number}") not in taken)


def _each_once(given: Sequence[Rule]) -> tuple[Rule, ...]:
    """Compared, not hashed: a schema is a dictionary."""
    once: list[Rule] = []
    for one in given:
        once += [one] if one not in once else []
    return tuple(once)
