"""The words of a statement, by the engine's own tokenizer: what kind it is, and spellings that the engine lacks."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import duckdb

from mosaic.errors import BadRequest

MAX_TOKENS = 50_000
"""They are read in Python, in the process that serves."""


class Token(NamedTuple):
    start: int
    """In bytes, as `end`."""
    text: str
    is_word: bool
    """Not quoted, and no constant."""

    @property
    def end(self) -> int:
        return self.start + len(self.text.encode())

    @property
    def word(self) -> str:
        """In upper case if it is a bare word, otherwise as it stands."""
        return self.text.upper() if self.is_word else self.text

    @property
    def is_name(self) -> bool:
        return self.is_word or self.text[:1] in ('"', "`")


def tokenize(text: str) -> list[Token]:
    """The engine's tokens, without comments; raises BadRequest for more than MAX_TOKENS."""
    raw = text.encode()
    found = duckdb.tokenize(text)
    if len(found) > MAX_TOKENS:
        raise BadRequest(
            f"the statement has {len(found):,} words and signs; there may be {MAX_TOKENS:,}", param="statement"
        )
    ends = [*(start for start, _ in found[1:]), len(raw)]
    tokens = []
    for (start, kind), end in zip(found, ends, strict=False):
        if kind != duckdb.token_type.comment:
            piece = raw[start:end].decode(errors="replace").rstrip()
            is_word = kind in (duckdb.token_type.keyword, duckdb.token_type.identifier) and piece[:1] not in ('"', "`")
            tokens.append(Token(start, piece, is_word))
    return tokens


def between(text: str, start: int, end: int | None = None) -> str:
    """A piece of a text by its bytes."""
    return text.encode()[start:end].decode()


def name_at(tokens: Sequence[Token], at: int) -> tuple[list[str], int]:
    """The parts of a name that stands at a token, and where it ends; raises BadRequest."""
    parts: list[str] = []
    while at < len(tokens) and tokens[at].is_name:
        parts.append(unquoted(tokens[at].text))
        at += 1
        if at >= len(tokens) or tokens[at].text != ".":
            return parts, at
        at += 1
    raise BadRequest(f"a name such as catalog.schema.table is missing at {shown(tokens, at)}", param="statement")


def expect(tokens: Sequence[Token], at: int, word: str, usage: str) -> None:
    """Raises BadRequest, with how the statement is written, unless that word stands there."""
    if at >= len(tokens) or tokens[at].word != word:
        raise BadRequest(f"{shown(tokens, at)} where {word} must stand: {usage}", param="statement")


def shown(tokens: Sequence[Token], at: int) -> str:
    return repr(tokens[at].text[:80]) if at < len(tokens) else "the end"


def unquoted(text: str) -> str:
    """An identifier without its quotes."""
    for quote in ('"', "`"):
        if len(text) >= 2 and text[0] == text[-1] == quote:
            return text[1:-1].replace(quote * 2, quote)
    return text


def rewritten(text: str, parameters: Collection[str]) -> str:
    """`t@3` and `t [FOR] VERSION AS OF 3` as a quoted name, `:name` as `$name`.

    None of them means anything to the engine where it stands, but for `:` in slices and structs, which are left alone.
    """
    raw, tokens = text.encode(), tokenize(text)
    changes: list[tuple[int, int, str]] = []
    nested = 0
    for at, token in enumerate(tokens):
        nested += (token.text in ("[", "{")) - (token.text in ("]", "}"))
        after = tokens[at + 1 : at + 6]
        number = _version_after(token, after)
        if number is not None:
            quoted = unquoted(token.text).replace('"', '""')
            version = number.text.lstrip("0")[:20] or "0"  # 20 digits are too many, whatever follows
            changes.append((token.start, number.end, f'"{quoted}@{version}"'))
        elif token.text == ":" and nested == 0 and after and after[0] == (token.end, after[0].text, True):
            changes += [(token.start, token.end, "$")] if after[0].text in parameters else []
    for start, end, new in reversed(changes):
        raw = raw[:start] + new.encode() + raw[end:]
    return raw.decode()


def _version_after(name: Token, after: Sequence[Token]) -> Token | None:
    """The number of `@3`, without spaces, or of `VERSION AS OF 3`, behind a name; `FOR` may stand between."""
    if not name.is_name or name.word == "FOR" or len(after) < 2:
        return None
    at, number = after[0], after[1]
    if at.text == "@" and at.start == name.end and number.start == at.end and _is_number(number):
        return number
    words = after[1:] if after[0].word == "FOR" else after
    if [token.word for token in words[:3]] == ["VERSION", "AS", "OF"] and len(words) > 3 and _is_number(words[3]):
        return words[3]
    return None


def _is_number(token: Token) -> bool:
    return token.text.isascii() and token.text.isdecimal()
