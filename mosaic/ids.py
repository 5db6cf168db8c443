"""Sortable ids with a prefix that says what they are: `req_01k9...`, `run_01k9...`.

The body is a UUIDv7 (RFC 9562, section 5.7: 48 bits of milliseconds, then random) in Crockford's base 32, 26
characters: ids made later sort later, to the millisecond.
"""

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"[a-z]+_[0-9a-hjkmnp-tv-z]{26}")


def new_id(prefix: str, *, unix_milliseconds: int | None = None) -> str:
    """A fresh id such as `req_01k9ngs2vjf4q8...`; the time can be given for tests."""
    if not prefix.isalpha() or not prefix.islower():
        raise ValueError(f"an id's prefix is lower-case letters, not {prefix!r}")
    milliseconds = time.time_ns() // 1_000_000 if unix_milliseconds is None else unix_milliseconds
    random_bits = secrets.randbits(74)
    number = (milliseconds & (1 << 48) - 1) << 80
    number |= 0x7 << 76 | (random_bits >> 62) << 64 | 0b10 << 62 | random_bits & (1 << 62) - 1
    return f"{prefix}_{_base32(number)}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` is an id of that kind."""
    return bool(_PATTERN.fullmatch(text)) and text.startswith(f"{prefix}_")


def _base32(number: int) -> str:
    digits = []
    for _ in range(26):
        digits.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(digits))
