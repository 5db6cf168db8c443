"""Serving endpoints: a name, and numbered configurations of which one is live and one may be on its way.

A configuration is proposed, rolled out by whoever runs the engines (`mosaic.serving.rollout`), and then goes live or
has failed, in one transaction. So what callers reach changes from one whole configuration to the next, never in parts.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import names, securables, values
from mosaic.catalog.audit import Change, change, of_securable
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import Endpoint, EndpointConfig
from mosaic.catalog.schema import endpoint_config, securable
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.errors import Conflict, NotFound
from mosaic.protocol import Principal

ENDPOINT = "endpoint"
PLATFORM = Principal(name=names.SYSTEM_OWNER, kind="service")
_LONGEST_REASON = 4000


class Endpoints:
    """`catalog.endpoints`; a name of one word stands in the serving schema, which is made if needed."""

    def __init__(self, store: Store, now: Callable[[], datetime], serving_schema: str) -> None:
        self._store, self._now, self._schema = store, now, serving_schema

    def full_name(self, name: str) -> str:
        """The whole name of an endpoint that callers may write as one word."""
        return names.parse_object(name if "." in name else f"{self._schema}.{name}", ENDPOINT)

    def propose(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        owner: str,
        new: bool | None = None,
        by: Caller | None = None,
    ) -> Endpoint:
        """Make an endpoint, or give one a new configuration, which is `pending` until it is rolled out.

        One that was pending is replaced. With `new` true raises AlreadyExists if there is an endpoint of the name, with
        `new` false NotFound if there is none.
        """
        return self._put(name, config, owner, by, new=new)

    def put(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        owner: str,
        expected_config_version: int | None = None,
        by: Caller | None = None,
    ) -> Endpoint:
        """As `propose`, and live at once: for engines that run already.

        With `expected_config_version` (0: none is live yet) raises Conflict if another one is live by now.
        """
        return self._put(name, config, owner, by, at_once=True, expected=expected_config_version)

    def renew(self, endpoint_id: str, version: int) -> bool:
        """The live configuration once more, as the next one: an alias that it names has moved.

        False, with nothing done, if another one is live or on its way by now.
        """
        try:
            with self._store.read() as connection:
                name = securables.get_by_id(connection, ENDPOINT, endpoint_id).full_name
            with self._change("updateServingEndpointConfig", name, PLATFORM) as going:
                row = securables.get_by_id(going.connection, ENDPOINT, endpoint_id, lock=True)
                (now,) = self._as_endpoints(going.connection, [row])
                going.happened = now.config_version == version and now.pending is None
                if going.happened:
                    added = self._add(going.connection, row, now.config, PLATFORM.name, self._now())
                    going.params["config_version"] = str(added)
                    securables.touch(going.connection, row, now=self._now(), by=PLATFORM.name)
                return going.happened
        except NotFound:
            return False

    def pin(self, endpoint_id: str, version: int, pinned: Mapping[str, str]) -> bool:
        """What the models of the pending configuration mean from here on; False if it is pending no more."""
        this = (endpoint_config.c.endpoint_id == endpoint_id) & (endpoint_config.c.version == version)
        pending = this & (endpoint_config.c.state == "pending")
        with self._store.write() as connection:
            changed = connection.execute(endpoint_config.update().where(pending).values(pinned=dict(pinned)))
            return changed.rowcount == 1

    def activate(self, endpoint_id: str, version: int) -> bool:
        """The pending configuration goes live; False if it is pending no more."""
        return self._decide(endpoint_id, version, "live", None)

    def fail(self, endpoint_id: str, version: int, reason: str) -> bool:
        """The pending configuration has failed, and what was live stays so; False if it is pending no more."""
        return self._decide(endpoint_id, version, "failed", reason.strip()[-_LONGEST_REASON:])

    def get(self, name: str) -> Endpoint:
        """By its whole name, or by one word in the serving schema; raises NotFound."""
        full = self.full_name(name)
        with self._store.read() as connection:
            row = securables.find(connection, ENDPOINT, full)
            if row is None:
                raise NotFound(f"no endpoint {name!r}", param="model", code="endpoint_not_found")
            return self._as_endpoints(connection, [row])[0]

    def find(self, name: str) -> Endpoint | None:
        """None if there is none of that name."""
        full = self.full_name(name)
        with self._store.read() as connection:
            row = securables.find(connection, ENDPOINT, full)
            return None if row is None else self._as_endpoints(connection, [row])[0]

    def list(self, schema: str | None = None) -> Sequence[Endpoint]:
        """By name; of one schema if given, which must exist."""
        parsed = None if schema is None else names.parse_schema(schema)
        with self._store.read() as connection:
            return self._as_endpoints(connection, securables.list_rows(connection, ENDPOINT, parsed))

    def configs(self, name: str) -> Sequence[EndpointConfig]:
        """Every configuration that the endpoint had or was to have, oldest first. Raises NotFound."""
        found = self.get(name)
        query = sa.select(endpoint_config).where(endpoint_config.c.endpoint_id == found.id)
        with self._store.read() as connection:
            return [_as_config(row) for row in connection.execute(query.order_by(endpoint_config.c.version))]

    def delete(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away; `catalog.undrop` brings it back. Raises NotFound, StaleEtag."""
        full, caller = self.full_name(name), as_principal(by)
        with self._change("deleteServingEndpoint", full, caller) as going:
            securables.delete(
                going.connection, ENDPOINT, full, now=self._now(), by=caller.name, expected_etag=expected_etag
            )

    def _put(
        self,
        name: str,
        config: Mapping[str, Any],
        owner: str,
        by: Caller | None,
        *,
        at_once: bool = False,
        new: bool | None = None,
        expected: int | None = None,
    ) -> Endpoint:
        full, caller, now = self.full_name(name), as_principal(by or owner), self._now()
        names.check_principal(owner)
        wanted = values.json_object(config, "config")
        action = "createServingEndpoint" if self.find(full) is None else "updateServingEndpointConfig"
        with self._change(action, full, caller) as going:
            connection = going.connection
            if full.rpartition(".")[0] == self._schema:
                securables.ensure_schema(connection, self._schema, owner=owner, now=now)
            row = self._row(connection, full, new, owner=owner, by=caller.name, now=now)
            if expected is not None and expected != row.config_version:
                raise Conflict(
                    f"endpoint {full!r} is at config version {row.config_version}, not at {expected}; read it again",
                    param="expected_config_version",
                )
            before = self._as_endpoints(connection, [row])[0]
            goal = before.pending or (before if before.config_version else None)
            if goal is not None and goal.config == wanted and not before.failed and not (at_once and before.pending):
                going.happened = False
                return before
            version = self._add(connection, row, wanted, caller.name, now)
            going.params["config_version"] = str(version)
            securables.touch(connection, row, now=now, by=caller.name)
            if at_once:
                _settle(connection, row.id, version, "live", None, now=now, by=caller.name)
            return self._as_endpoints(connection, [securables.get(connection, ENDPOINT, full)])[0]

    def _row(
        self, connection: sa.Connection, full: str, new: bool | None, *, owner: str, by: str, now: datetime
    ) -> Row:
        """The endpoint's, locked; made without a configuration if there is none of the name."""
        securables.check_reserved(full, owner)
        if new or (new is None and securables.find(connection, ENDPOINT, full) is None):
            securables.insert(connection, ENDPOINT, full, owner=owner, created_by=by, config_version=0, now=now)
        return securables.get(connection, ENDPOINT, full, lock=True)

    def _add(self, connection: sa.Connection, row: Row, config: dict[str, Any], by: str, now: datetime) -> int:
        of_this = endpoint_config.c.endpoint_id == row.id
        pending = of_this & (endpoint_config.c.state == "pending")
        connection.execute(endpoint_config.update().where(pending).values(state="replaced", decided_at=now))
        newest = connection.execute(sa.select(sa.func.max(endpoint_config.c.version)).where(of_this)).scalar()
        version = int(newest or 0) + 1
        values = {"config": config, "pinned": {}, "state": "pending", "created_at": now, "created_by": by}
        connection.execute(endpoint_config.insert().values(endpoint_id=row.id, version=version, **values))
        return version

    def _decide(self, endpoint_id: str, version: int, state: str, reason: str | None) -> bool:
        try:
            with self._store.read() as connection:
                name = securables.get_by_id(connection, ENDPOINT, endpoint_id).full_name
            action = "activateServingEndpointConfig" if state == "live" else "failServingEndpointConfig"
            with self._change(action, name, PLATFORM, config_version=str(version)) as going:
                # Under the row's lock: a proposal at the same time is before or after this as a whole.
                securables.get_by_id(going.connection, ENDPOINT, endpoint_id, lock=True)
                going.happened = _settle(
                    going.connection, endpoint_id, version, state, reason, now=self._now(), by=PLATFORM.name
                )
                return going.happened
        except NotFound:
            return False

    def _as_endpoints(self, connection: sa.Connection, rows: Sequence[Row]) -> Sequence[Endpoint]:
        live, newest = _live_and_newest(connection, [row.id for row in rows])
        return [self._as_endpoint(row, live.get(row.id), newest.get(row.id)) for row in rows]

    def _as_endpoint(self, row: Row, live: EndpointConfig | None, newest: EndpointConfig | None) -> Endpoint:
        return Endpoint(
            id=row.id,
            etag=securables.etag(row),
            name=row.full_name,
            served_name=row.name if row.full_name == f"{self._schema}.{row.name}" else row.full_name,
            config=row.spec,
            pinned={} if live is None else live.pinned,
            owner=row.owner,
            config_version=row.config_version,
            pending=newest if newest is not None and newest.state == "pending" else None,
            failed=newest if newest is not None and newest.state == "failed" else None,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def _change(
        self, action: str, name: str, by: Principal, **params: str
    ) -> "AbstractContextManager[Change, bool | None]":
        return change(self._store, action, of_securable(ENDPOINT, name, **params), by=by, now=self._now())


def _settle(
    connection: sa.Connection,
    endpoint_id: str,
    version: int,
    state: str,
    reason: str | None,
    *,
    now: datetime,
    by: str,
) -> bool:
    of_this = endpoint_config.c.endpoint_id == endpoint_id
    this = of_this & (endpoint_config.c.version == version) & (endpoint_config.c.state == "pending")
    found = connection.execute(sa.select(endpoint_config).where(this)).one_or_none()
    if found is None:
        return False
    row = securables.get_by_id(connection, ENDPOINT, endpoint_id)
    if state == "live":
        was_live = of_this & (endpoint_config.c.state == "live")
        connection.execute(endpoint_config.update().where(was_live).values(state="replaced", decided_at=now))
        securables.put_spec(connection, row, found.config, config_version=version, now=now, by=by)
    else:
        securables.touch(connection, row, now=now, by=by)
    changed = {"state": state, "reason": reason, "decided_at": now}
    connection.execute(endpoint_config.update().where(this).values(changed))
    return True


def models_in_use(connection: sa.Connection) -> list[tuple[str, str]]:
    """(endpoint, model), of every model that a live or pending configuration names or means."""
    query = (
        sa.select(securable.c.full_name, endpoint_config.c.config, endpoint_config.c.pinned)
        .join(securable, securable.c.id == endpoint_config.c.endpoint_id)
        .where(endpoint_config.c.state.in_(("pending", "live")), securable.c.deleted_at.is_(None))
    )
    return [
        (row.full_name, model)
        for row in connection.execute(query)
        for model in (*(entity["model"] for entity in row.config.get("served_entities", ())), *row.pinned.values())
        if model
    ]


def _live_and_newest(
    connection: sa.Connection, ids: Sequence[str]
) -> tuple[dict[str, EndpointConfig], dict[str, EndpointConfig]]:
    """The live configuration of each endpoint that has one, and the last one of each."""
    newest = sa.select(endpoint_config.c.endpoint_id, sa.func.max(endpoint_config.c.version).label("version"))
    newest = newest.group_by(endpoint_config.c.endpoint_id)
    query = sa.select(endpoint_config).order_by(endpoint_config.c.version)
    if len(ids) == 1:
        newest, query = (one.where(endpoint_config.c.endpoint_id == ids[0]) for one in (newest, query))
    last = newest.subquery()
    query = query.join(last, last.c.endpoint_id == endpoint_config.c.endpoint_id)
    query = query.where((endpoint_config.c.state == "live") | (last.c.version == endpoint_config.c.version))
    rows = connection.execute(query).all() if ids else []
    live = {row.endpoint_id: _as_config(row) for row in rows if row.state == "live"}
    return live, {row.endpoint_id: _as_config(row) for row in rows}


def _as_config(row: Row) -> EndpointConfig:
    return EndpointConfig(
        version=row.version,
        config=row.config,
        pinned=row.pinned,
        state=row.state,
        reason=row.reason,
        created_at=row.created_at,
        created_by=row.created_by,
        decided_at=row.decided_at,
    )
