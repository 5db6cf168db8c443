"""The audit trail: every change and every denial is a row, written in the transaction of the change itself.

The columns are those of Databricks' system.access.audit. Parameters are what an action names (securables, principals,
privileges), never a secret, a comment or a body.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

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
    request_id: str | None = None


class Audit:
    """`catalog.audit`: reading the trail."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, *, after: int = 0, limit: int = 100) -> list[AuditEvent]:
        """Events, oldest first, with a sequence greater than `after`: the last one's sequence asks for the next."""
        if not 1 <= limit <= _LARGEST_PAGE:
            raise BadRequest(f"limit = {limit} must be from 1 to {_LARGEST_PAGE}", param="limit")
        query = sa.select(audit).where(audit.c.sequence > after).order_by(audit.c.sequence).limit(limit)
        with self._store.read() as connection:
            return [_as_event(row) for row in connection.execute(query)]


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
            response_status_code=status_code,
            response_error_message=error_message,
            **action.model_dump(),
        )
    )


@contextmanager
def changing(store: Store, action: Action, *, by: Principal, now: Callable[[], datetime]) -> Iterator[sa.Connection]:
    """A transaction that changes things, in which the body appends its row.

    A PermissionDenied undoes the change and leaves the denial as a row of its own.
    """
    try:
        with store.write() as connection:
            yield connection
    except PermissionDenied as error:
        deny(store, action, error, by=by, now=now())
        raise


def deny(store: Store, action: Action, error: PermissionDenied, *, by: Principal, now: datetime) -> None:
    """Write down a denial; nothing that readers keep copies of has changed by it, so it is not counted."""
    with store.write(counted=False) as connection:
        append(connection, action, by=by, now=now, status_code=error.status, error_message=error.message)


def new_action(service_name: str, action_name: str, params: Mapping[str, str], request_id: str | None) -> Action:
    return Action(
        service_name=service_name, action_name=action_name, request_params=dict(params), request_id=request_id
    )


def _as_event(row: Row) -> AuditEvent:
    return AuditEvent(
        **{name: getattr(row, name) for name in _PLAIN},
        user_identity=UserIdentity(email=row.user_identity_email),
        response=AuditResponse(status_code=row.response_status_code, error_message=row.response_error_message),
    )


_PLAIN = (
    *("sequence", "event_id", "event_time", "event_date", "service_name", "action_name"),
    *("token_id", "request_id", "request_params"),
)

_IN_TURN = sa.select(revision.c.number).with_for_update()
