"""Access tokens: random secrets of which only the SHA-256 is kept."""

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from mosaic.catalog.records import Token
from mosaic.catalog.schema import principal, token
from mosaic.catalog.securables import Row
from mosaic.errors import PermissionDenied, Unauthenticated, not_found
from mosaic.ids import new_id

SECRET_PREFIX = "mosaic_"
"""So that scanners for leaked secrets can know one."""

_USE_NOTED_EVERY = timedelta(minutes=1)


def create(
    connection: sa.Connection, *, now: datetime, expires_at: datetime | None, parent_id: str | None, **columns: Any
) -> tuple[Token, str]:
    """A token and its secret, which cannot be had again.

    One that is made with another ends with that at the latest. Raises PermissionDenied if it is to end later, and
    Unauthenticated if the other opens nothing any more.
    """
    if parent_id is not None:
        expires_at = _within(connection, parent_id, expires_at, now=now)
    # 32 random bytes: guessing is out of reach, so a plain fast hash is enough to keep.
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    values = {"id": new_id("tok"), "created_at": now, "expires_at": expires_at, "parent_id": parent_id, **columns}
    connection.execute(token.insert().values(secret_sha256=_digest(secret), **values))
    return Token(**values, revoked_at=None, last_used_at=None), secret


def check(connection: sa.Connection, secret: str, *, now: datetime) -> Row:
    """The row of a secret's token; raises Unauthenticated if it or its principal may not be used (any more)."""
    # Looking up the hash leaks nothing by its timing: a guesser does not choose the hash's digits.
    row = connection.execute(_LOOKUP, {"digest": _digest(secret)}).one_or_none()
    if row is None:
        raise Unauthenticated(
            f"the token is unknown; tokens begin with {SECRET_PREFIX!r} and are made by an administrator"
        )
    _check_valid(row, now=now)
    if row.principal_kind == "group" or not row.principal_active:
        why = "a group" if row.principal_kind == "group" else "deactivated"
        raise Unauthenticated(f"principal {row.principal!r} of token {row.id} is {why}", code="principal_inactive")
    return row


def is_use_to_note(row: Row, now: datetime) -> bool:
    """Whether the use of a token is to be written down: the first, and then one a minute."""
    return bool(row.last_used_at is None or row.last_used_at <= now - _USE_NOTED_EVERY)


def note_use(connection: sa.Connection, token_id: str, *, now: datetime) -> None:
    """Write down that a token was used."""
    connection.execute(token.update().where(token.c.id == token_id).values(last_used_at=now))


def revoke(connection: sa.Connection, token_id: str, *, now: datetime) -> int:
    """From now on the token is refused, and all that were made with it, and with those; how many opened something.

    Again is fine, and 0. Raises NotFound.
    """
    if connection.execute(sa.select(token.c.id).where(token.c.id == token_id)).one_or_none() is None:
        raise not_found("token", token_id, connection.execute(sa.select(token.c.id)).scalars(), param="token_id")
    # What is made meanwhile is seen: all changes of the catalog wait for each other (`Store.write`).
    line = sa.select(token.c.id).where(token.c.id == token_id).cte("line", recursive=True)
    line = line.union(sa.select(token.c.id).where(token.c.parent_id == line.c.id))
    chosen = token.c.id.in_(sa.select(line.c.id)) & token.c.revoked_at.is_(None)
    revoked = connection.execute(sa.select(token.c.id).where(chosen)).scalars().all()
    connection.execute(token.update().where(chosen).values(revoked_at=now))
    return len(revoked)


def get(connection: sa.Connection, token_id: str) -> Token:
    """Raises NotFound."""
    row = connection.execute(sa.select(*_SHOWN).where(token.c.id == token_id)).one_or_none()
    if row is None:
        raise not_found("token", token_id, connection.execute(sa.select(token.c.id)).scalars(), param="token_id")
    return Token(**row._mapping)


def list_all(connection: sa.Connection) -> list[Token]:
    """Every token, also revoked and expired ones, oldest first."""
    return [Token(**row._mapping) for row in connection.execute(sa.select(*_SHOWN).order_by(token.c.id))]


def _within(
    connection: sa.Connection, parent_id: str, expires_at: datetime | None, *, now: datetime
) -> datetime | None:
    """When a token ends that is made with another."""
    parent = connection.execute(sa.select(token).where(token.c.id == parent_id)).one_or_none()
    if parent is None:
        raise Unauthenticated(f"token {parent_id} is unknown, so that none can be made with it")
    _check_valid(parent, now=now)
    if parent.expires_at is not None and expires_at is not None and expires_at > parent.expires_at:
        raise PermissionDenied(
            f"token {parent_id} ends at {parent.expires_at.isoformat()}, so that it cannot make one that ends at "
            f"{expires_at.isoformat()}; leave lifetime_seconds out for one that ends with it",
            param="lifetime_seconds",
        )
    return parent.expires_at if expires_at is None else expires_at


def _check_valid(row: Row, *, now: datetime) -> None:
    if row.revoked_at is not None:
        raise Unauthenticated(f"token {row.id} was revoked at {row.revoked_at.isoformat()}", code="token_revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise Unauthenticated(f"token {row.id} expired at {row.expires_at.isoformat()}", code="token_expired")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_SHOWN = [column for column in token.c if column.name != "secret_sha256"]
_LOOKUP = (
    sa.select(token, principal.c.kind.label("principal_kind"), principal.c.active.label("principal_active"))
    .join(principal, principal.c.name == token.c.principal)
    .where(token.c.secret_sha256 == sa.bindparam("digest"))
)
