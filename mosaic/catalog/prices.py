"""What models cost: a table of versions that are never changed, of which each is valid from a time on.

A price is for a model by its name (`main.ml.bot`, `smollm2-135m-instruct`; of one that a provider answers with
`openai/gpt-5-mini`) or for all whose names fit a pattern (`openai/gpt-5*`). The name itself goes before patterns, and
a longer pattern before a shorter one.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa

from mosaic.catalog import values
from mosaic.catalog.audit import change
from mosaic.catalog.money import MOST_NANO_DOLLARS, check_nano_dollars
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.schema import price
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest, not_found
from mosaic.protocol import Wire

_MODEL = re.compile(r"[!-~]{1,400}")
_MILLION = 10**6


class Price(Wire):
    """One version of what a model costs."""

    version: int
    """Over all models; rows of the inference table name it as `price_version`."""
    model: str
    """A name, or a pattern with `*` for any text."""
    input_nano_dollars_per_million: int
    """A million tokens that are read."""
    cached_input_nano_dollars_per_million: int
    """A million tokens of these that were read from a prefix cache."""
    output_nano_dollars_per_million: int
    """A million tokens that are written."""
    gpu_second_nano_dollars: int
    """A second for which a request has one GPU of ours, with others beside it or alone."""
    valid_from: datetime
    created_at: datetime
    created_by: str

    def cost(
        self, *, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0, gpu_milliseconds: int = 0
    ) -> int:
        """Nano-dollars, summed exactly and rounded once, half up; what a provider counts beyond belief is cut off."""
        cached = min(cached_input_tokens, input_tokens)
        millionths = (
            (input_tokens - cached) * self.input_nano_dollars_per_million
            + cached * self.cached_input_nano_dollars_per_million
            + output_tokens * self.output_nano_dollars_per_million
            + gpu_milliseconds * self.gpu_second_nano_dollars * 1000
        )
        return min((millionths + _MILLION // 2) // _MILLION, MOST_NANO_DOLLARS)

    def fits(self, model: str) -> bool:
        if "*" not in self.model:
            return self.model == model
        return re.fullmatch(".*".join(map(re.escape, self.model.split("*"))), model) is not None

    @property
    def rank(self) -> tuple[bool, int, datetime, int]:
        """The greatest of those that fit counts: a name, the longest pattern, the latest, the newest version."""
        return "*" not in self.model, len(self.model), self.valid_from, self.version


class Prices:
    """`catalog.prices`. Changing nothing that is there, it may be read by everybody who keeps a copy."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def set(
        self,
        model: str,
        *,
        input_nano_dollars_per_million: int = 0,
        output_nano_dollars_per_million: int = 0,
        cached_input_nano_dollars_per_million: int | None = None,
        gpu_second_nano_dollars: int = 0,
        valid_from: datetime | None = None,
        by: Caller = ADMIN,
    ) -> Price:
        """A new version for a model or pattern, valid from now or from a time to come. What is not said costs nothing,
        but a cached token as one that is read.

        Raises BadRequest for a time that has passed: rows of then have their cost already.
        """
        if not _MODEL.fullmatch(model):
            told = (
                "the model's name, provider/name or a pattern with *, of 1 to 400 printable characters without spaces"
            )
            raise BadRequest(f"model = {model[:80]!r} must be {told}", param="model")
        now, caller = self._now(), as_principal(by)
        starts = now if valid_from is None else values.aware(valid_from, "valid_from")
        if starts < now:
            told = f"{starts.isoformat()} has passed; a price is valid from now ({now.isoformat()}) or later"
            raise BadRequest(f"valid_from = {told}", param="valid_from")
        cached = cached_input_nano_dollars_per_million
        amounts = {
            "input_nano_dollars_per_million": input_nano_dollars_per_million,
            "cached_input_nano_dollars_per_million": input_nano_dollars_per_million if cached is None else cached,
            "output_nano_dollars_per_million": output_nano_dollars_per_million,
            "gpu_second_nano_dollars": gpu_second_nano_dollars,
        }
        for name, amount in amounts.items():
            check_nano_dollars(amount, param=name)
        with change(self._store, "setPrice", {"model": model}, by=caller, now=now) as going:
            # Writes happen one at a time, so that versions have no gaps and no two are the same.
            newest = going.connection.execute(sa.select(sa.func.max(price.c.version))).scalar() or 0
            row = {"version": newest + 1, "model": model, **amounts, "valid_from": starts}
            row |= {"created_at": now, "created_by": caller.name}
            going.connection.execute(price.insert().values(row))
            going.params["version"] = str(newest + 1)
            return Price(**row)

    def list(self, model: str | None = None) -> Sequence[Price]:
        """Every version, oldest first; of one model or pattern as it was written, if given."""
        query = sa.select(price).order_by(price.c.version)
        query = query if model is None else query.where(price.c.model == model)
        with self._store.read() as connection:
            return [Price(**row._mapping) for row in connection.execute(query)]

    def get(self, version: int) -> Price:
        """Raises NotFound."""
        there = {one.version: one for one in self.list()}
        if version not in there:
            raise not_found("price version", str(version), map(str, there), param="version")
        return there[version]

    def of(self, model: str) -> tuple[Price, ...]:
        """Every version that is, was or will be for a model; `price_at` says which one counts."""
        return tuple(one for one in self.list() if one.fits(model))


def price_at(prices: Sequence[Price], moment: datetime) -> Price | None:
    """Of those that fit a model, the one that counts at a moment; None if none is valid yet."""
    return max((one for one in prices if one.valid_from <= moment), key=lambda one: one.rank, default=None)
