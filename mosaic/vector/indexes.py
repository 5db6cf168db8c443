"""Indexes by name: made once, followed by an actor each, asked by text or vector. Start reading here."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy.typing as npt
import ray
import ray.exceptions

from mosaic.catalog import Catalog, Index
from mosaic.catalog.names import parse_object
from mosaic.catalog.principals import Caller
from mosaic.data import Tables
from mosaic.data.delta import arrow_schema, check_columns
from mosaic.errors import BadRequest, Conflict, MosaicError, NotFound, Unavailable, not_found
from mosaic.protocol import Principal
from mosaic.storage import Storage
from mosaic.vector.settings import IndexSettings
from mosaic.vector.shard import (
    NAMESPACE,
    NOT_READY,
    IndexStatus,
    QueryResult,
    actor_name,
    snapshots_address,
    start_shard,
)
from mosaic.vector.sync import Embedder, SyncResult

_PAUSE_SECONDS = 0.1


class Lineage:
    """Writes down, for every sync, which version of the table an index's version was made from."""

    def __init__(self, catalog: Catalog, settings: IndexSettings, principal: str) -> None:
        self._catalog, self._settings, self._principal = catalog, settings, principal

    def __call__(self, result: SyncResult) -> None:
        settings = self._settings
        params = {"embedding_endpoint": settings.embedding_endpoint}
        run_id = self._catalog.start_run("index", settings.name, principal=self._principal, params=params)
        self._catalog.add_input(run_id, "table", settings.table, result.version)
        counts = {"upserted": result.upserted, "deleted": result.deleted, "embedded": result.embedded}
        self._catalog.add_output(run_id, "index", settings.name, result.version, detail=counts)
        metrics = {**{name: float(count) for name, count in counts.items()}, "seconds": result.seconds}
        self._catalog.finish_run(run_id, "finished", metrics=metrics)


class _Opened(NamedTuple):
    """What a query needs of an index, looked up once."""

    settings: IndexSettings
    handle: Any
    embed: Embedder


class Indexes:
    """All vector indexes of a platform; needs a running Ray. Safe for threads."""

    def __init__(
        self,
        storage: Storage,
        tables: Tables,
        catalog: Catalog,
        embed_factory: Callable[[str], Embedder],
        *,
        principal: str = "system",
    ) -> None:
        """`embed_factory` makes, from an endpoint's name, the embedder that travels to the actor (it must pickle)."""
        self._storage, self._tables, self._catalog = storage, tables, catalog
        self._embed_factory, self._principal = embed_factory, principal
        self._opened: dict[str, _Opened] = {}
        self._acting: Principal | None = None

    def acting(self, principal: Principal) -> "Indexes":
        """The same indexes for a principal, within its grants; as built, they act for the platform, unchecked."""
        made = Indexes(self._storage, self._tables, self._catalog, self._embed_factory, principal=principal.name)
        made._acting, made._opened = principal, self._opened
        return made

    def create(self, settings: IndexSettings, *, owner: str) -> IndexStatus:
        """Make an index and begin to fill it; the same settings again return the index that is there.

        Raises NotFound for the table, BadRequest for a column that it lacks, Conflict for a name with other settings.
        """
        name, table = parse_object(settings.name, "index"), parse_object(settings.table, "table")
        settings = settings.model_copy(update={"name": name, "table": table})
        self._check("SELECT", "table", table, "createVectorIndex")
        existing = self._find(name)
        by = None
        if existing is None:
            by = self._check("CREATE TABLE", "schema", name.rpartition(".")[0], "createVectorIndex")
        check_columns(arrow_schema(self._tables.delta(table)), settings.columns, table)
        spec = settings.model_dump(mode="json")
        if existing is None:
            existing = self._make(name, table, spec, owner=owner, by=by or owner)
        if existing.spec != spec:
            changed = sorted(field for field in spec if existing.spec.get(field) != spec[field])
            raise Conflict(
                f"index {name!r} exists with another {', '.join(changed)}; delete it first, or use another name"
            )
        return self.start(name)

    def _make(self, name: str, table: str, spec: dict[str, Any], *, owner: str, by: Caller) -> Index:
        """Of two that make it at once, the second gets the first's."""
        try:
            return self._catalog.put_index(name, table=table, spec=spec, owner=owner, expected_config_version=0, by=by)
        except Conflict:
            there = self._find(name)
            if there is None:
                raise
            return there

    def start(self, name: str) -> IndexStatus:
        """Bring the actor of an index up, if it is not (after a restart of the platform); raises NotFound."""
        self._check("BROWSE", "index", name, "getVectorIndex")
        settings = self._settings(name)
        location = self._catalog.get_table(settings.table).location
        embed = self._embed_factory(settings.embedding_endpoint)
        record = Lineage(self._catalog, settings, self._principal)
        handle = start_shard(settings, self._storage, location, embed, record)
        self._opened[settings.name] = _Opened(settings, handle, embed)
        return self.status(settings.name)

    def query(
        self,
        name: str,
        text_or_vector: "str | npt.ArrayLike",
        k: int = 5,
        *,
        exact: bool = False,
        timeout_seconds: float = 30.0,
    ) -> QueryResult:
        """The nearest rows, and the table's version at which that is exact; a text is embedded by the index's endpoint.

        While the actor restarts, or fills an index for the first time, it is asked again, up to the time limit; then
        Unavailable. Raises NotFound and BadRequest.
        """
        self._check("SELECT", "index", name, "queryVectorIndex")
        _check_query(text_or_vector, k)
        if isinstance(text_or_vector, str):
            text_or_vector = self._open(name).embed([text_or_vector])[0]
        result: QueryResult = self._call(name, "query", (text_or_vector, k, exact), timeout_seconds)
        return result

    async def query_async(
        self,
        name: str,
        text_or_vector: "str | npt.ArrayLike",
        k: int = 5,
        *,
        exact: bool = False,
        request_id: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> QueryResult:
        """The same for an event loop, which it does not block; `request_id` names the request that asks."""
        if self._acting is not None:
            await asyncio.to_thread(self._check, "SELECT", "index", name, "queryVectorIndex")
        _check_query(text_or_vector, k)
        deadline = time.monotonic() + timeout_seconds
        if isinstance(text_or_vector, str):
            opened = await self._open_async(name)
            embedded = await opened.embed.embed_async([text_or_vector], parent_request_id=request_id)
            text_or_vector = embedded[0]
        while True:
            opened = await self._open_async(name)
            try:
                with self._explained(name, deadline):
                    asked = opened.handle.query.remote(text_or_vector, k, exact)
                    result: QueryResult = await asyncio.wait_for(asked, max(0.0, deadline - time.monotonic()))
                    return result
            except _Again:
                await asyncio.sleep(_PAUSE_SECONDS)

    def sync(self, name: str, to_version: int | None = None, *, timeout_seconds: float = 3600.0) -> SyncResult:
        """Have the index follow its table now instead of at its next look; returns when it answers at that version."""
        self._check("MANAGE", "index", name, "syncVectorIndex")
        result: SyncResult = self._call(name, "sync", (to_version,), timeout_seconds)
        return result

    def status(self, name: str, *, timeout_seconds: float = 60.0) -> IndexStatus:
        """How the index stands; starts its actor if it does not run. Raises NotFound."""
        self._check("BROWSE", "index", name, "getVectorIndex")
        status: IndexStatus = self._call(name, "status", (), timeout_seconds)
        return status

    def list(self) -> list[str]:
        """The names of all indexes that may be browsed."""
        names = [index.name for index in self._catalog.list_indexes()]
        acting = self._acting
        if acting is None:
            return names
        return [name for name in names if self._catalog.grants.is_allowed(acting, "BROWSE", "index", name)]

    def delete(self, name: str) -> None:
        """Stop the actor, delete the snapshots, forget the name; the table stays. Raises NotFound."""
        by = self._check("MANAGE", "index", name, "deleteVectorIndex")
        settings = self._settings(name)
        self._opened.pop(settings.name, None)
        self._opened.pop(name, None)
        with contextlib.suppress(ValueError):  # it does not run
            ray.kill(ray.get_actor(actor_name(settings.name), namespace=NAMESPACE), no_restart=True)
        self._storage.delete(snapshots_address(self._storage, settings.name))
        self._catalog.delete_index(settings.name, by=by or self._principal)

    def _check(self, privilege: str, kind: str, name: str, action: str) -> Principal | None:
        """Who may; None for the platform itself, which is not asked."""
        if self._acting is None:
            return None
        return self._catalog.grants.check(self._acting, privilege, kind, name, action=action)

    def _call(self, name: str, method: str, arguments: tuple[Any, ...], timeout_seconds: float) -> Any:
        deadline = time.monotonic() + timeout_seconds
        while True:
            handle = self._open(name).handle
            try:
                with self._explained(name, deadline):
                    asked = getattr(handle, method).remote(*arguments)
                    return ray.get(asked, timeout=max(0.0, deadline - time.monotonic()))
            except _Again:
                time.sleep(_PAUSE_SECONDS)

    @contextlib.contextmanager
    def _explained(self, name: str, deadline: float) -> Iterator[None]:
        """Ray's errors as ours; _Again for what may pass by itself before the deadline."""
        try:
            yield
        except ray.exceptions.RayTaskError as error:
            ours = error.cause
            if not isinstance(ours, MosaicError):
                raise
            if ours.code == NOT_READY and time.monotonic() < deadline:
                raise _Again from None
            raise ours from None
        except ray.exceptions.ActorDiedError as error:
            self._opened.pop(name, None)  # for good: look its successor up
            if time.monotonic() < deadline:
                raise _Again from None
            raise Unavailable(f"index {name!r} does not run: {error}") from None
        except ray.exceptions.ActorUnavailableError as error:
            if time.monotonic() < deadline:
                raise _Again from None
            raise Unavailable(f"index {name!r} is restarting: {error}") from None
        except (ray.exceptions.GetTimeoutError, TimeoutError):
            raise Unavailable(f"index {name!r} did not answer in time") from None

    def _open(self, name: str) -> _Opened:
        if name in self._opened:
            return self._opened[name]
        settings = self._settings(name)
        try:
            handle = ray.get_actor(actor_name(settings.name), namespace=NAMESPACE)
        except ValueError:
            self.start(settings.name)
            opened = self._opened[settings.name]
        else:
            opened = _Opened(settings, handle, self._embed_factory(settings.embedding_endpoint))
        self._opened[name] = opened
        return opened

    async def _open_async(self, name: str) -> _Opened:
        if name in self._opened:
            return self._opened[name]
        return await asyncio.to_thread(self._open, name)

    def _settings(self, name: str) -> IndexSettings:
        index = self._find(parse_object(name, "index"))
        if index is None:
            raise not_found("index", name, self.list())
        return IndexSettings.parse(index.spec, source=f"index {name}")

    def _find(self, name: str) -> Index | None:
        try:
            return self._catalog.get_index(name)
        except NotFound:
            return None


class _Again(Exception):
    """What was asked may succeed a moment later."""


def _check_query(text_or_vector: "str | npt.ArrayLike", k: int) -> None:
    if k < 1:
        raise BadRequest(f"k = {k}: must be at least 1", param="k")
    if isinstance(text_or_vector, str) and not text_or_vector.strip():
        raise BadRequest("the query text is empty", param="query_text")
