"""The regular expression of all that may yet become a match of another: `ab+c` gives one for "", "a", "ab", "abb".

A guarded stream asks it, anchored at the end of what has come so far, where a match may have begun that is not whole.
Made from the expression's text, in RE2's syntax, so that RE2 answers in linear time as well:

    open(c)    = nothing                       a single sign, or an assertion such as \\b that waits for the next sign
    open(rs)   = open(r) | r open(s)
    open(r|s)  = open(r) | open(s)
    open(r*)   = r* open(r)                    and alike for + ? {n,m}, with one repetition less

It may name too much, never too little: a lazy quantifier waits as long as a greedy one.
"""

import re

_ATOM = re.compile(
    r"""\\Q(?P<literal>.*?)(?:\\E|\Z)                       # a quotation, taken apart sign by sign
      | \\(?:p\{[^}]*\}|P\{[^}]*\}|x\{[^}]*\}|x[0-9A-Fa-f]{2}|[pP].|[0-7]{1,3}|.)
      | \[\^?\]?(?:\[:\^?\w+:\]|\\p\{[^}]*\}|\\P\{[^}]*\}|\\.|[^\]\\])*\]
      | [^()|*+?\\\[]""",
    re.VERBOSE | re.DOTALL,
)
_GROUP = re.compile(r"\((?:\?P?<\w+>|\?(?P<flags>[imsU]*(?:-[imsU]+)?):|(?!\?))")
_FLAGS = re.compile(r"\(\?[imsU]*(?:-[imsU]+)?\)")
_REPEAT = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<least>\d+)(?P<comma>,(?P<most>\d*))?\})\??")

Parsed = tuple[str, str]
"""An expression, and that of its open ends."""


def open_ends(regex: str) -> str:
    """The expression of everything that more text could make a match of `regex`, whole matches that cannot grow left
    out. `regex` must be one that RE2 takes; raises ValueError for the little of its syntax that is not understood."""
    parsed, end = _alternatives(regex, 0)
    if end != len(regex):
        raise ValueError(f"unexpected {regex[end]!r} at position {end}")
    return parsed[1]


def _alternatives(regex: str, at: int) -> tuple[Parsed, int]:
    flags = ""
    if found := _FLAGS.match(regex, at):
        flags, at = found.group(), found.end()
    parsed = []
    while True:
        one, at = _sequence(regex, at)
        parsed.append(one)
        if at == len(regex) or regex[at] != "|":
            break
        at += 1
    whole, ends = ("|".join(texts) for texts in zip(*parsed, strict=True))
    return (f"(?:{flags}{whole})", f"(?:{flags}{ends})"), at


def _sequence(regex: str, at: int) -> tuple[Parsed, int]:
    items: list[Parsed] = []
    while at < len(regex) and regex[at] not in "|)":
        if _FLAGS.match(regex, at):
            raise ValueError(f"flags stand at the start of a group, as in (?i:...), not at position {at}")
        if found := _GROUP.match(regex, at):
            (whole, ends), at = _alternatives(regex, found.end())
            if at == len(regex):
                raise ValueError("a group is not closed")
            flags, at = found["flags"] or "", at + 1
            item = (f"(?{flags}:{whole})", f"(?{flags}:{ends})")
        elif found := _ATOM.match(regex, at):
            at = found.end()
            quoted = found["literal"]
            if quoted:
                items += [(re.escape(sign), "") for sign in quoted[:-1]]
            item = (re.escape(quoted[-1:]) if quoted is not None else found.group(), "")
        else:
            raise ValueError(f"unexpected {regex[at]!r} at position {at}")
        while found := _REPEAT.match(regex, at):
            item, at = _repeated(item, found), found.end()
        items.append(item)
    whole, ends = items.pop() if items else ("", "")
    for text, open_text in reversed(items):
        whole = text + whole
        ends = f"(?:{open_text}|{text}{ends})"
    return (whole, ends), at


def _repeated(item: Parsed, found: re.Match[str]) -> Parsed:
    text, open_text = item
    whole = f"(?:{text}){found.group()}"
    if found["sign"] == "?" or found.group("most") == "1" or (found["least"] == "1" and not found["comma"]):
        return whole, open_text
    if found["sign"] or (found["comma"] and not found["most"]):
        return whole, f"(?:{text})*{open_text}"
    most = int(found["most"] or found["least"])
    return whole, f"(?:{text}){{0,{most - 1}}}{open_text}" if most else ""
