"""API tokens in Databricks' shape, as databricks-sdk's `tokens` asks for them: each makes and revokes one's own.

A token that is made here opens no more than the one that it is made with, and ends with it, whether that expires or is
revoked; administrators see and revoke all of them.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pydantic import Field
from starlette.routing import Route

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.identity import ALL_APIS, check_scopes
from mosaic.catalog.names import METASTORE
from mosaic.catalog.records import Token
from mosaic.catalog.unity.authorize import Authorize
from mosaic.catalog.unity.call import Call, route
from mosaic.catalog.unity.shapes import Answer, Asked, Nothing
from mosaic.catalog.unity.surface import milliseconds
from mosaic.errors import PermissionDenied, not_found

BASE = "/2.0/token"
_LONGEST_LIFE_SECONDS = 10 * 365 * 24 * 3600


class CreateToken(Asked):
    comment: str = Field(default="", max_length=1000)
    lifetime_seconds: int | None = Field(default=None, ge=1, le=_LONGEST_LIFE_SECONDS)
    """Without it the token ends with the calling one, if that has an end."""
    scopes: list[str] | None = Field(default=None, max_length=50)
    """Those of the calling token if not given."""
    is_admin: bool = False
    """Whether it is to be an administrator's, as only an administrator's token can say."""


class DeleteToken(Asked):
    token_id: str


class TokenInfo(Answer):
    token_id: str
    comment: str
    creation_time: int
    expiry_time: int
    """-1 for never."""
    scopes: list[str]
    principal: str
    is_admin: bool
    last_used_time: int | None


class CreatedToken(Answer):
    token_value: str
    """The secret, which is shown only here."""
    token_info: TokenInfo


class ListedTokens(Answer):
    token_infos: list[TokenInfo]


class TokenRoutes:
    def __init__(
        self, catalog: Catalog, authorize: Authorize, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._catalog, self._authorize, self._now = catalog, authorize, now

    def routes(self) -> list[Route]:
        return [
            route("POST", f"{BASE}/create", self.create, asked=CreateToken),
            route("GET", f"{BASE}/list", self.list_valid),
            route("POST", f"{BASE}/delete", self.delete, asked=DeleteToken),
        ]

    def create(self, call: Call) -> CreatedToken:
        """For the caller."""
        self._authorize(call.principal, "BROWSE", METASTORE, "")
        asked, caller = call.parse(CreateToken), call.principal
        scopes = check_scopes(caller.scopes if asked.scopes is None else asked.scopes)
        beyond = [scope for scope in scopes if ALL_APIS not in caller.scopes and scope not in caller.scopes]
        if beyond or (asked.is_admin and not caller.is_admin):
            more = f"the scopes {beyond}" if beyond else "an administrator's rights"
            error = PermissionDenied(
                f"a token cannot make one with {more}: it has the scopes {list(caller.scopes)}, and is_admin is "
                f"{str(caller.is_admin).lower()}",
                param="scopes" if beyond else "is_admin",
            )
            self._catalog.audit.deny("generateDbToken", {"principal": caller.name}, error, by=caller)
            raise error
        life = asked.lifetime_seconds
        made, secret = self._catalog.create_token(
            caller.name,
            kind=caller.kind,
            is_admin=asked.is_admin,
            comment=asked.comment,
            expires_at=None if life is None else self._now() + timedelta(seconds=life),
            scopes=scopes,
            by=caller,
        )
        return CreatedToken(token_value=secret, token_info=_shown(made))

    def list_valid(self, call: Call) -> ListedTokens:
        """Those that open something; everybody's for administrators, one's own for others."""
        self._authorize(call.principal, "BROWSE", METASTORE, "")
        now = self._now()
        valid = [
            one
            for one in self._within_reach(call)
            if one.revoked_at is None and (one.expires_at is None or one.expires_at > now)
        ]
        return ListedTokens(token_infos=[_shown(one) for one in valid])

    def delete(self, call: Call) -> Nothing:
        """From now on it is refused, and what was made with it. Somebody else's is as one that is not there."""
        self._authorize(call.principal, "BROWSE", METASTORE, "")
        asked = call.parse(DeleteToken)
        reached = [one.id for one in self._within_reach(call)]
        if asked.token_id not in reached:
            raise not_found("token", asked.token_id, reached, param="token_id")
        self._catalog.revoke_token(asked.token_id, by=call.principal)
        return Nothing()

    def _within_reach(self, call: Call) -> list[Token]:
        every = self._catalog.list_tokens()
        if self._catalog.principals.is_administrator(call.principal):
            return every
        return [one for one in every if one.principal == call.principal.name]


def _shown(token: Token) -> TokenInfo:
    used = token.last_used_at
    return TokenInfo(
        token_id=token.id,
        comment=token.comment,
        creation_time=milliseconds(token.created_at),
        expiry_time=-1 if token.expires_at is None else milliseconds(token.expires_at),
        scopes=[*token.scopes],
        principal=token.principal,
        is_admin=token.is_admin,
        last_used_time=None if used is None else milliseconds(used),
    )
