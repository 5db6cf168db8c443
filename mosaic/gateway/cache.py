"""Answers that are given again to who asks exactly the same, for endpoints whose `ai_gateway.cache` is on.

    may it be kept? -> its key -> kept: replayed as it came | not kept: ask -> the row says 200: keep it

What is kept is what the entity answered; guardrails read it again each time, so that none is older than its policy.
Only answers that reached their end with status 200 are kept, and only those of the entity whose turn it was: not of
one that took its place. Two that ask the same at once are both answered by the model.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import orjson

from mosaic.gateway.asking import Answers, Asking, draw
from mosaic.gateway.endpoints import Endpoint, LiveEntity
from mosaic.monitoring import Exchange
from mosaic.protocol import EngineRequest, Principal
from mosaic.serving.answer_cache import AnswerCache

_ENTRY_BYTES = 600
"""What an answer takes beside its bytes: its key, its place in the order, objects."""


class Kept(NamedTuple):
    """One answer: its items, as JSON's array."""

    data: bytes
    since: float


class Store:
    """The answers of one endpoint, by key; the one that was not asked for longest goes first."""

    def __init__(self, max_bytes: int, ttl_seconds: float) -> None:
        self.max_bytes, self.ttl_seconds = max_bytes, ttl_seconds
        self.size_bytes, self.used_at = 0, 0.0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, *, now: float, max_age_seconds: float) -> Kept | None:
        """None if there is none, or only an older one."""
        self.used_at = now
        kept = self._kept.get(key)
        if kept is None or now - kept.since >= min(self.ttl_seconds, max_age_seconds):
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: bytes, data: bytes, *, now: float) -> None:
        """One that is too large for all of the room is not kept."""
        self.used_at = now
        self._drop(key)
        if len(data) + _ENTRY_BYTES > self.max_bytes:
            return
        self._kept[key] = Kept(data, now)
        self.size_bytes += len(data) + _ENTRY_BYTES
        while self.size_bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        if (gone := self._kept.pop(key, None)) is not None:
            self.size_bytes -= len(gone.data) + _ENTRY_BYTES


class Cached:
    """`Asking`, of which answers are kept; one for each gateway."""

    def __init__(
        self,
        asking: Asking,
        groups_of: Callable[[Principal], Awaitable[Collection[str]]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`groups_of` awaits the names of the groups that somebody is in."""
        self._asking, self._groups_of, self._clock = asking, groups_of, clock
        self._stores: dict[str, tuple[int, Store]] = {}
        """By the endpoint's id, with the version of the configuration under which they were answered."""

    def answers(
        self, endpoint: Endpoint, exchange: Exchange, request: EngineRequest, user: str | None = None
    ) -> Answers:
        """As `Asking.answers`; an answer that was kept is in the row as `cached`, with no tokens."""
        settings = endpoint.cache
        if settings is None:
            return self._asking.answers(endpoint, exchange, request, user)
        return self._answers(endpoint, settings, exchange, request, user)

    async def _answers(
        self,
        endpoint: Endpoint,
        settings: AnswerCache,
        exchange: Exchange,
        request: EngineRequest,
        user: str | None,
    ) -> AsyncGenerator[dict[str, Any]]:
        wanted = Wanted.of(exchange.cache_control)
        store = self._store(endpoint, settings) if settings.sampled or is_repeatable(request.body) else None
        if store is None or not wanted.may_be_kept:
            exchange.tell({"cache-status": "mosaic; fwd=bypass"})  # RFC 9211
            async with aclosing(self._asking.answers(endpoint, exchange, request, user)) as answers:
                async for item in answers:
                    yield item
            return
        entity = draw(endpoint, exchange, user)
        key = key_of(await self._tenant(settings, exchange.principal), endpoint, entity, request)
        now = self._clock()
        if (kept := store.get(key, now=now, max_age_seconds=wanted.max_age_seconds)) is not None:
            age = now - kept.since
            exchange.tell({"cache-status": f"mosaic; hit; ttl={int(store.ttl_seconds - age)}", "age": str(int(age))})
            exchange.note(**entity.columns(), cached=True, input_tokens=0, output_tokens=0, cost_nano_dollars=0)
            for item in orjson.loads(kept.data):
                yield item
            return
        exchange.tell({"cache-status": f"mosaic; fwd={'miss' if wanted.max_age_seconds else 'request'}"})
        async for item in self._kept_on_success(store, key, endpoint, exchange, request, user):
            yield item

    async def _kept_on_success(
        self,
        store: Store,
        key: bytes,
        endpoint: Endpoint,
        exchange: Exchange,
        request: EngineRequest,
        user: str | None,
    ) -> AsyncGenerator[dict[str, Any]]:
        items: list[bytes] = []
        size_bytes = 0

        def keep() -> None:
            if size_bytes <= store.max_bytes and not exchange.get("attempts"):
                store.put(key, b"[" + b",".join(items) + b"]", now=self._clock())

        exchange.when_answered(keep)
        async with aclosing(self._asking.answers(endpoint, exchange, request, user)) as answers:
            async for item in answers:
                if size_bytes <= store.max_bytes:
                    items.append(orjson.dumps(item))  # as it came: who has it next writes into it
                    size_bytes += len(items[-1]) + 1
                yield item

    async def _tenant(self, settings: AnswerCache, principal: Principal) -> list[str]:
        if settings.group is not None and settings.group in await self._groups_of(principal):
            return ["group", settings.group]
        return ["principal", principal.name]

    def _store(self, endpoint: Endpoint, settings: AnswerCache) -> Store | None:
        """What is kept of this configuration of an endpoint; none of one that another has followed already."""
        version, store = self._stores.get(endpoint.id, (-1, None))
        if version > endpoint.config_version:
            return None
        if store is None or version < endpoint.config_version:
            now = self._clock()
            idle = [one for one, (_, there) in self._stores.items() if now - there.used_at > there.ttl_seconds]
            for one in idle:
                del self._stores[one]
            store = Store(settings.max_mebibytes * 2**20, settings.ttl_seconds)
            store.used_at = now
            self._stores[endpoint.id] = endpoint.config_version, store
        return store


class Wanted(NamedTuple):
    """What a request's `cache-control` says, of what RFC 9111 has."""

    may_be_kept: bool = True
    """Not with `no-store`, which neither looks nor keeps."""
    max_age_seconds: float = float("inf")
    """0 with `no-cache`: answered anew, and kept."""

    @classmethod
    def of(cls, header: str) -> "Wanted":
        """What it does not understand it leaves out, as caches have to."""
        told = dict(part.strip().lower().partition("=")[::2] for part in header.split(","))
        age = told.get("max-age", "").strip('"')
        max_age = int(age) if age.isdecimal() and age.isascii() else float("inf")
        return cls("no-store" not in told, 0 if "no-cache" in told else max_age)


def is_repeatable(body: Mapping[str, Any]) -> bool:
    """Whether who asks the same again wants the same: nothing is drawn, or what is drawn follows from a seed."""
    return body.get("temperature") == 0 or body.get("top_k") == 1 or body.get("seed") is not None


def key_of(tenant: list[str], endpoint: Endpoint, entity: LiveEntity, request: EngineRequest) -> bytes:
    """Everything that an answer depends on, in 32 bytes: who may have it, who answers under which configuration, and
    all that the engine is asked."""
    access = None if entity.access is None else entity.access.base_url
    who = {name: value for name, value in entity.__dict__.items() if name not in ("external", "access", "adapter")}
    who |= {"external": entity.external and entity.external.model_dump(mode="json"), "access": access}
    who |= {"adapter": entity.adapter and entity.adapter.name}
    told = [tenant, endpoint.id, endpoint.config_version, who, request.task, request.stream, request.body]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).digest()
