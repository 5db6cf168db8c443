"""Why a principal may or may not do something: the path of grants to each need, or the need that is missing."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

from mosaic.catalog.access import USERS
from mosaic.catalog.privileges import (
    ALL_PRIVILEGES,
    EXECUTE_UNSAFE,
    OWNED_UNSAFE,
    PRIVILEGES,
    Need,
    covering,
    level,
    needs,
)
from mosaic.catalog.securables import Row
from mosaic.protocol import Wire


class Reason(Wire):
    """What satisfies a need: a grant or an ownership, on `name` or above it, or an administrator's token."""

    how: Literal["grant", "owner", "admin"]
    members: tuple[str, ...]
    """From who asks, up through groups, to who was granted or owns."""
    kind: str
    """Of the securable that was granted or is owned."""
    name: str
    privilege: str | None = None
    """As it was granted."""
    granted_by: str | None = None

    def __str__(self) -> str:
        if self.how == "admin":
            return f"{self.members[0]} has an administrator's token"
        who = " in ".join(self.members)
        if self.how == "owner":
            return f"{who}, owner of {self.kind} {self.name}"
        return f"{who}, granted {self.privilege} on {self.kind} {self.name} by {self.granted_by}"


class Link(Wire):
    """One need, and what satisfies it; None: nothing does."""

    privilege: str
    kind: str
    name: str
    reason: Reason | None

    @property
    def needed(self) -> str:
        return f"{self.privilege} on {self.kind} {self.name}"

    def __str__(self) -> str:
        return f"{self.needed}: {'missing' if self.reason is None else self.reason}"


class Explanation(Wire):
    """The answer of a check with its reasons; prints as a small tree."""

    principal: str
    privilege: str
    kind: str
    name: str
    allowed: bool
    problem: str | None
    """Why nothing has effect for this principal at all, such as that it is deactivated."""
    links: tuple[Link, ...]
    """Each need from the catalog down; what was asked is last."""

    @property
    def missing(self) -> str:
        """What would have to be there, in words; empty if it is allowed."""
        return self.problem or ", ".join(link.needed for link in self.links if link.reason is None)

    def __str__(self) -> str:
        may = "may" if self.allowed else "may not"
        lines = [f"{self.principal} {may} {self.privilege} on {self.kind} {self.name}"]
        told = [*([] if self.problem is None else [self.problem]), *map(str, self.links)]
        lines += [f"|-- {line}" for line in told[:-1]] + [f"`-- {line}" for line in told[-1:]]
        return "\n".join(lines)


class EffectivePrivilege(Wire):
    """A privilege that a principal holds on a securable, from where, and whether it has effect."""

    privilege: str
    usable: bool
    """False while something else that it needs, such as USE SCHEMA, is missing."""
    reason: Reason


class Access:
    """All that decides about one principal and one securable, read in one transaction."""

    def __init__(
        self,
        principal: str,
        chain: Sequence[Row],
        grants: Iterable[Row],
        memberships: Iterable[Row],
        *,
        problem: str | None,
        is_admin: bool,
    ) -> None:
        self._principal = principal
        self._chain = chain  # the metastore first
        self._problem = problem
        self._is_admin = is_admin and problem is None
        self._reasons = [] if problem else _reasons(chain, list(grants), shortest_paths(principal, memberships))

    def explain(self, privilege: str) -> Explanation:
        """Every need of a privilege that fits the securable's kind, with its reason."""
        asked = self._chain[-1]
        names = {row.kind: row.full_name for row in self._chain}
        links = tuple(
            Link(privilege=need.privilege, kind=need.kind, name=names[need.kind], reason=self._reason(need))
            for need in needs(privilege, asked.kind)
        )
        return Explanation(
            principal=self._principal,
            privilege=privilege,
            kind=asked.kind,
            name=asked.full_name,
            allowed=self._problem is None and all(link.reason for link in links),
            problem=self._problem,
            links=() if self._problem else links,
        )

    def effective(self) -> list[EffectivePrivilege]:
        """All privileges held on the securable, in the order of PRIVILEGES."""
        found = []
        for privilege in PRIVILEGES[self._chain[-1].kind]:
            told = self.explain(privilege)
            if told.links and told.links[-1].reason is not None:
                found.append(EffectivePrivilege(privilege=privilege, usable=told.allowed, reason=told.links[-1].reason))
        return found

    def _reason(self, need: Need) -> Reason | None:
        if self._is_admin:
            root = self._chain[0]
            return Reason(how="admin", members=(self._principal,), kind=root.kind, name=root.full_name)
        fits = [one for one in self._reasons if level(one.kind) <= level(need.kind) and _covers(one, need)]
        return min(fits, key=lambda one: _preference(one, need), default=None)


def _covers(reason: Reason, need: Need) -> bool:
    if reason.privilege is None:  # owners hold everything
        return need.privilege != EXECUTE_UNSAFE or reason.kind in OWNED_UNSAFE
    return reason.privilege in covering(need)


def _preference(reason: Reason, need: Need) -> tuple[int, int, int, str]:
    """The nearest reason first; of those the shortest path of groups, then the plainest privilege."""
    plain = {None: 0, need.privilege: 1, ALL_PRIVILEGES: 3}.get(reason.privilege, 2)
    return (-level(reason.kind), len(reason.members), plain, reason.members[-1])


def _reasons(chain: Sequence[Row], grants: list[Row], paths: dict[str, tuple[str, ...]]) -> list[Reason]:
    found = []
    for row in chain:
        if row.owner in paths:
            found.append(Reason(how="owner", members=paths[row.owner], kind=row.kind, name=row.full_name))
        for grant in grants:
            if grant.securable_id == row.id:
                found.append(
                    Reason(
                        how="grant",
                        members=paths[grant.principal],
                        kind=row.kind,
                        name=row.full_name,
                        privilege=grant.privilege,
                        granted_by=grant.granted_by,
                    )
                )
    return found


def shortest_paths(principal: str, memberships: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """For the principal and each group above it the shortest way there, given the edges (member, group)."""
    groups: dict[str, list[str]] = {}
    for member, group in memberships:
        groups.setdefault(member, []).append(group)
    groups.setdefault(principal, []).append(USERS)
    paths: dict[str, tuple[str, ...]] = {principal: (principal,)}
    waiting = deque([principal])
    while waiting:
        at = waiting.popleft()
        for group in groups.get(at, ()):
            if group not in paths:
                paths[group] = (*paths[at], group)
                waiting.append(group)
    return paths
