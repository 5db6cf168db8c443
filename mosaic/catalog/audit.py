"""The audit trail: every change and every denial is a row, written in the transaction of the change itself.

The columns are those of Databricks' system.access.audit. Parameters are what an action names (securables, principals,
privileges), never a secret, a comment or a body. Lineage (runs and their edges) is a record of its own and is not
audited.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

from mosaic.catalog.checks import ask_again
from mosaic.catalog.records import AuditEvent, AuditResponse, UserIdentity
from mosaic.catalog.schema import audit, revision
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest, PermissionDenied
from mosaic.ids import new_id
from mosaic.protocol import Principal, Wire

CATALOG_SERVICE = "unityCatalog"
ACCOUNTS_SERVICE = "accounts"

_LARGEST_PAGE = 10_000


class Action(Wire):
    """What somebody did or tried, as the audit row will say it."""

    service_name: str
    action_name: str
    request_params: dict[str, str]


class Audit:
    """`catalog.audit`: reading the trail, and writing down what changes nothing but has to be known."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def list(self, *, after: int = 0, limit: int = 100) -> Sequence[AuditEvent]:
        """Events, oldest first, with a sequence greater than `after`: the last one's sequence asks for the next."""
        if not 1 <= limit <= _LARGEST_PAGE:
            raise BadRequest(f"limit = {limit} must be from 1 to {_LARGEST_PAGE}", param="limit")
        query = sa.select(audit).where(audit.c.sequence > after).order_by(audit.c.sequence).limit(limit)
        with self._store.read() as connection:
            return [_as_event(row) for row in connection.execute(query)]

    def newest(self, limit: int = 100) -> Sequence[AuditEvent]:
        """The last events, oldest first."""
        if not 1 <= limit <= _LARGEST_PAGE:
            raise BadRequest(f"limit = {limit} must be from 1 to {_LARGEST_PAGE}", param="limit")
        query = sa.select(audit).order_by(audit.c.sequence.desc()).limit(limit)
        with self._store.read() as connection:
            return [_as_event(row) for row in connection.execute(query)][::-1]

    def note(self, action_name: str, params: Mapping[str, str], *, by: Principal) -> None:
        """Write down that something was given out, such as credentials, before it is."""
        with self._store.write(counted=False) as connection:
            append(connection, new_action(CATALOG_SERVICE, action_name, params), by=by, now=self._now())

    def deny(self, action_name: str, params: Mapping[str, str], error: PermissionDenied, *, by: Principal) -> None:
        """Write down a denial that another room decided."""
        deny(self._store, new_action(CATALOG_SERVICE, action_name, params), error, by=by, now=self._now())


def append(
    connection: sa.Connection,
    action: Action,
    *,
    by: Principal,
    now: datetime,
    status_code: int = 200,
    error_message: str | None = None,
) -> None:
    """Write down what was done in this transaction, or what was refused."""
    # Numbers are given out in the order of the commits, or who reads after a number could miss a row for ever.
    connection.execute(_IN_TURN)
    connection.execute(
        audit.insert().values(
            event_id=new_id("evt"),
            event_time=now,
            event_date=now.date(),
            user_identity_email=by.name,
            token_id=by.token_id,
            request_id=by.request_id,
            source_ip_address=by.source_ip_address,
            user_agent=by.user_agent,
            response_status_code=status_code,
            response_error_message=error_message,
            **action.model_dump(),
        )
    )


class Change:
    """A change on its way: its transaction, and what its row will name."""

    def __init__(self, connection: sa.Connection, params: dict[str, str]) -> None:
        self.connection, self.params = connection, params
        self.happened = True
        """False: all was as asked before, so that there is nothing to write down."""


@contextmanager
def change(
    store: Store,
    action_name: str,
    params: Mapping[str, str],
    *,
    by: Principal,
    now: datetime,
    service_name: str = CATALOG_SERVICE,
) -> Iterator[Change]:
    """A transaction that changes things, and its row. A PermissionDenied undoes the change and leaves the denial.

    Whoever acts by leave of a check (`checks.Acting`) is asked again first: then a change is done to what was checked.
    """
    named = dict(params)
    try:
        with store.write() as connection:
            ask_again(connection, by)
            going = Change(connection, named)
            yield going
            if going.happened:
                append(connection, new_action(service_name, action_name, named), by=by, now=now)
    except PermissionDenied as error:
        deny(store, new_action(service_name, action_name, named), error, by=by, now=now)
        raise


def deny(store: Store, action: Action, error: PermissionDenied, *, by: Principal, now: datetime) -> None:
    """Write down a denial; nothing that readers keep copies of has changed by it, so it is not counted."""
    with store.write(counted=False) as connection:
        append(connection, action, by=by, now=now, status_code=error.status, error_message=error.message)


def new_action(service_name: str, action_name: str, params: Mapping[str, str]) -> Action:
    return Action(service_name=service_name, action_name=action_name, request_params=dict(params))


def of_securable(kind: str, name: str, **more: str) -> dict[str, str]:
    """The parameters that name a securable."""
    return {"securable_type": kind, "securable_full_name": name, **more}


def _as_event(row: Row) -> AuditEvent:
    return AuditEvent(
        **{name: getattr(row, name) for name in _PLAIN},
        user_identity=UserIdentity(email=row.user_identity_email),
        response=AuditResponse(status_code=row.response_status_code, error_message=row.response_error_message),
    )


_PLAIN = (
    *("sequence", "event_id", "event_time", "event_date", "service_name", "action_name"),
    *("token_id", "request_id", "request_params", "source_ip_address", "user_agent"),
)

_IN_TURN = sa.select(revision.c.number).with_for_update()
