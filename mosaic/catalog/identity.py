"""Who presents a bearer token: the one place where a secret becomes a Principal.

Today every bearer is a token of ours. Sign-in by a company's OpenID Connect issuer has its place here: a bearer that is
a JWT (three parts with dots, never `mosaic_...`) would be checked against the issuer's keys in `identify`, before any
token of ours is looked for, and answer with the Principal of the catalog that its subject names.
"""

from collections.abc import Sequence
from datetime import datetime

from mosaic.catalog import tokens
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest, Unauthenticated
from mosaic.protocol import Principal
from mosaic.runtime.asgi import ALL_APIS, SCOPES

__all__ = ["ALL_APIS", "SCOPES", "check_scopes", "identify"]


def identify(store: Store, bearer: str, *, now: datetime) -> Principal:
    """Raises Unauthenticated for what is unknown, expired, revoked, or of somebody who is deactivated."""
    if bearer.count(".") == 2 and not bearer.startswith(tokens.SECRET_PREFIX):
        raise Unauthenticated(
            f"the token looks like a JWT, and no issuer is set up here; tokens begin with {tokens.SECRET_PREFIX!r}"
        )
    with store.read() as connection:
        row = tokens.check(connection, bearer, now=now)
    if tokens.is_use_to_note(row, now):
        with store.write(counted=False) as connection:
            tokens.note_use(connection, row.id, now=now)
    return Principal(
        name=row.principal, kind=row.kind, is_admin=row.is_admin, token_id=row.id, scopes=tuple(row.scopes)
    )


def check_scopes(scopes: Sequence[str]) -> list[str]:
    """In the order of SCOPES; raises BadRequest with those that there are."""
    asked = [scopes] if isinstance(scopes, str) else list(scopes)
    unknown = [scope for scope in asked if scope not in SCOPES]
    if unknown or not asked:
        wrong = f"scope {unknown[0]!r} does not exist" if unknown else "a token needs a scope"
        raise BadRequest(f"{wrong}; there are {list(SCOPES)}", param="scopes")
    return [scope for scope in SCOPES if scope in asked]
