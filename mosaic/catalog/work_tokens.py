"""Tokens by which a piece of work, such as a batch job, asks endpoints as its user, for as long as it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.identity import ALL_APIS
from mosaic.errors import PermissionDenied
from mosaic.protocol import Principal

SCOPE = "model-serving"


def check_may_ask(catalog: Catalog, principal: Principal, action: str) -> None:
    """Raises PermissionDenied for who came with a token that opens no endpoints: what it starts opens none either."""
    if ALL_APIS in principal.scopes or SCOPE in principal.scopes:
        return
    error = PermissionDenied(
        f"this asks endpoints, which needs a token with the scope {SCOPE!r}, and token {principal.token_id} has the "
        f"scopes {list(principal.scopes)}",
        code="insufficient_scope",
    )
    catalog.audit.deny(action, {}, error, by=principal)
    raise error


@contextmanager
def work_token(catalog: Catalog, principal: Principal, *, comment: str, lasts: timedelta, action: str) -> Iterator[str]:
    """The secret of a token that is revoked at the end; after a kill it ends when `lasts` is over, or the caller's
    own token is if that is sooner. Raises what `check_may_ask` raises."""
    check_may_ask(catalog, principal, action)
    ends = datetime.now(UTC) + lasts
    if principal.token_id is not None:
        own = catalog.get_token(principal.token_id).expires_at
        ends = ends if own is None else min(ends, own)
    token, secret = catalog.create_token(
        principal.name,
        kind=principal.kind,
        is_admin=principal.is_admin,
        comment=comment,
        expires_at=ends,
        scopes=(SCOPE,),
        by=principal,
    )
    try:
        yield secret
    finally:
        catalog.revoke_token(token.id, by=principal)


def revoke_left(catalog: Catalog, principal: Principal, *, comment: str, silent: timedelta = timedelta()) -> None:
    """Revoke a principal's tokens of a work that was killed, told by their comment: those of no use for so long."""
    before = datetime.now(UTC) - silent
    for one in catalog.list_tokens():
        used = one.last_used_at or one.created_at
        if (one.principal, one.comment, one.revoked_at) == (principal.name, comment, None) and used <= before:
            catalog.revoke_token(one.id, by=principal)
