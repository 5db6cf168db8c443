"""What has a name, an owner, and numbered versions that never change, with aliases: prompts and policies.

Versions and aliases are kept in the tables that models keep theirs in (`of=`); what a version holds is its `spec`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import sqlalchemy as sa

from mosaic.catalog import models, names, securables
from mosaic.catalog.audit import change, of_securable
from mosaic.catalog.names import ModelReference
from mosaic.catalog.objects import as_securable
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import AliasEvent, ModelVersion, Securable
from mosaic.catalog.store import Store
from mosaic.catalog.updates import update
from mosaic.errors import NotFound
from mosaic.protocol import Wire

Version = TypeVar("Version", bound=Wire)


class Versioned(ABC, Generic[Version]):
    """Of one kind. What registers a version is the kind's own, and calls `_register` with what it has checked."""

    kind: ClassVar[str]

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    @staticmethod
    @abstractmethod
    def _as_version(found: ModelVersion) -> Version:
        """The kind's own record of a version."""

    def _check_unused(self, connection: sa.Connection, name: str, alias: str | None = None) -> None:
        """Raises Conflict where something needs it, or needs it by this alias."""

    def _register(
        self, name: str, spec: Mapping[str, Any], *, owner: str, comment: str, new: bool | None, by: Caller | None
    ) -> Version:
        """The next version of what is called so, which is made if it is not there.

        The comment is the version's, and the whole's own if that is made. With `new` true raises AlreadyExists if
        there is one, with `new` false NotFound if there is none.
        """
        name, caller, now = names.parse_object(name, self.kind), as_principal(by or owner), self._now()
        names.check_principal(owner)
        with change(self._store, self._action("create", "Version"), self._params(name), by=caller, now=now) as going:
            if new or (new is None and securables.find(going.connection, self.kind, name) is None):
                made_by = {"owner": owner, "comment": comment, "created_by": caller.name}
                securables.insert(going.connection, self.kind, name, now=now, **made_by)
            made = models.add_version(
                going.connection,
                name,
                now=now,
                of=self.kind,
                source="",
                kind=self.kind,
                spec=dict(spec),
                checksums={},
                comment=comment,
                created_by=caller.name,
            )
            going.params["version"] = str(made.version)
            return self._as_version(made)

    def update(
        self,
        name: str,
        *,
        by: Caller,
        comment: str | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> Securable:
        """Change what is given of the whole, not of a version. Raises NotFound, StaleEtag."""
        name, caller, now = names.parse_object(name, self.kind), as_principal(by), self._now()
        changes = {} if comment is None else {"comment": comment}
        with change(self._store, self._action("update"), self._params(name), by=caller, now=now) as going:
            row = securables.get(going.connection, self.kind, name, lock=True)
            return as_securable(update(going, row, expected_etag, owner=owner, by=caller, now=now, **changes))

    def whole(self, name: str) -> Securable:
        """Itself, not one of its versions; raises NotFound."""
        name = names.parse_object(name, self.kind)
        with self._store.read() as connection:
            return as_securable(securables.get(connection, self.kind, name))

    def get(self, reference: str) -> Version:
        """By number (`main.ml.greeting/3`), by alias (`main.ml.greeting@live`), or the newest (`main.ml.greeting`).

        Raises NotFound with what exists.
        """
        asked = names.parse_version(reference, self.kind)
        with self._store.read() as connection:
            if asked.version is None and asked.alias is None:
                versions = models.list_versions(connection, asked.model, of=self.kind)
                if not versions:
                    raise NotFound(f"{self.kind} {asked.model!r} has no version yet")
                asked = ModelReference(asked.model, versions[-1].version, None)
            return self._as_version(models.get_version(connection, asked, of=self.kind))

    def list(self, schema: str | None = None) -> Sequence[Securable]:
        """By name; of one schema if given, which must exist."""
        parsed = None if schema is None else names.parse_schema(schema)
        with self._store.read() as connection:
            return [as_securable(row) for row in securables.list_rows(connection, self.kind, parsed)]

    def versions(self, name: str) -> Sequence[Version]:
        """Oldest first; raises NotFound."""
        name = names.parse_object(name, self.kind)
        with self._store.read() as connection:
            return [self._as_version(found) for found in models.list_versions(connection, name, of=self.kind)]

    def set_alias(self, name: str, alias: str, version: int | None, *, by: Caller = ADMIN) -> None:
        """Point an alias at a version, or remove it (None); its history stays.

        Raises NotFound, and Conflict for one that is to be removed while something needs it.
        """
        name, alias, caller = names.parse_object(name, self.kind), names.parse_alias(alias), as_principal(by)
        if version is not None:
            version = names.parse_number(str(version), name)
        action = self._action("delete" if version is None else "set", "Alias")
        params = self._params(name, alias=alias, version=str(version or ""))
        with change(self._store, action, params, by=caller, now=self._now()) as going:
            if version is None:
                self._check_unused(going.connection, name, alias)
            going.happened = models.set_alias(
                going.connection, name, alias, version, principal=caller.name, now=self._now(), of=self.kind
            )

    def alias_history(self, name: str, alias: str | None = None) -> Sequence[AliasEvent]:
        """Every change of its aliases, or of one, oldest first."""
        name, asked = names.parse_object(name, self.kind), None if alias is None else names.parse_alias(alias)
        with self._store.read() as connection:
            return models.alias_history(connection, name, asked, of=self.kind)

    def delete(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away with all versions; `catalog.undrop` brings them back.

        Raises NotFound, StaleEtag, and Conflict where something needs it.
        """
        name, caller, now = names.parse_object(name, self.kind), as_principal(by), self._now()
        with change(self._store, self._action("delete"), self._params(name), by=caller, now=now) as going:
            self._check_unused(going.connection, name)
            securables.delete(going.connection, self.kind, name, now=now, by=caller.name, expected_etag=expected_etag)

    def _action(self, verb: str, part: str = "") -> str:
        """As the audit calls it: `createPromptVersion`."""
        return f"{verb}{self.kind.capitalize()}{part}"

    def _params(self, name: str, **more: str) -> dict[str, str]:
        return of_securable(self.kind, name, **more)
