"""Money is whole nano-dollars everywhere; people write and read dollars, as decimal text and never as a float."""

import re

from mosaic.errors import BadRequest

NANO = 10**9
"""Nano-dollars of a dollar."""
MOST_NANO_DOLLARS = 10**18
"""A thousand million dollars; sums of as many fit 64 bits."""
_DOLLARS = re.compile(r"\$?([0-9]{1,10})(?:\.([0-9]{1,9}))?")


def parse_dollars(text: str, *, param: str) -> int:
    """`0.15` -> 150000000 nano-dollars; raises BadRequest naming the parameter and the text."""
    found = _DOLLARS.fullmatch(text.strip())
    if found is None:
        told = "dollars, such as 25 or 0.15, with at most 9 digits after the point"
        raise BadRequest(f"{param} = {text[:80]!r} must be {told}", param=param)
    return check_nano_dollars(int(found[1]) * NANO + int((found[2] or "").ljust(9, "0")), param=param)


def check_nano_dollars(amount: int, *, param: str) -> int:
    """The amount itself; raises BadRequest for one that is negative, or beyond what sums are kept of."""
    if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount <= MOST_NANO_DOLLARS:
        told = f"whole nano-dollars from 0 to {MOST_NANO_DOLLARS} (1 dollar is {NANO})"
        raise BadRequest(f"{param} = {amount!r} must be {told}", param=param)
    return amount


def dollars(nano_dollars: int) -> str:
    """`$0.15`: cents always, what is finer as far as it goes."""
    whole, rest = divmod(abs(nano_dollars), NANO)
    digits = f"{rest:09}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano_dollars < 0 else ''}${whole}.{digits}"
