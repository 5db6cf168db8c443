"""Tags: a key with a value on any securable, or on one version of a model or prompt."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from mosaic.catalog import models, names, privileges, securables
from mosaic.catalog.audit import change, of_securable
from mosaic.catalog.names import METASTORE
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.schema import tag
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest, not_found

_LONGEST_KEY, _LONGEST_VALUE, _MOST = 255, 1000, 50
_VERSIONED = ("model", "prompt")


class Tags:
    """`catalog.tags`. A securable is named by its kind and name, as in `catalog.grants`."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def set(
        self, kind: str, name: str, tags: Mapping[str, str], *, version: int | None = None, by: Caller = ADMIN
    ) -> dict[str, str]:
        """Add tags, or give those that are there another value; all tags afterwards. Raises NotFound, BadRequest."""
        name, caller, now = _checked_name(kind, name, version), as_principal(by), self._now()
        for key, value in tags.items():
            _check_tag(key, value)
        params = of_securable(kind, name, tags=", ".join(sorted(tags)), **_version_param(version))
        with change(self._store, "setTags", params, by=caller, now=now) as going:
            row = _get(going.connection, kind, name, version)
            there = _read(going.connection, row.id, version)
            fresh = {key: value for key, value in tags.items() if there.get(key) != value}
            if len(there | fresh) > _MOST:
                raise BadRequest(f"{kind} {name!r} would have {len(there | fresh)} tags; {_MOST} fit", param="tags")
            for key, value in fresh.items():
                going.connection.execute(tag.delete().where(_of(row.id, version), tag.c.key == key))
                values = {"key": key, "value": value, "set_by": caller.name, "set_at": now}
                going.connection.execute(tag.insert().values(securable_id=row.id, version=_text(version), **values))
            going.happened = bool(fresh)
            return dict(sorted((there | fresh).items()))

    def remove(
        self, kind: str, name: str, keys: Sequence[str], *, version: int | None = None, by: Caller = ADMIN
    ) -> dict[str, str]:
        """Take tags away; all that are left. Raises NotFound for a securable or a key that is not there."""
        name, caller = _checked_name(kind, name, version), as_principal(by)
        params = of_securable(kind, name, tags=", ".join(sorted(keys)), **_version_param(version))
        with change(self._store, "deleteTags", params, by=caller, now=self._now()) as going:
            row = _get(going.connection, kind, name, version)
            there = _read(going.connection, row.id, version)
            for key in keys:
                if key not in there:
                    raise not_found("tag", key, there, param="tags")
                going.connection.execute(tag.delete().where(_of(row.id, version), tag.c.key == key))
            return {key: value for key, value in there.items() if key not in keys}

    def list(self, kind: str, name: str, *, version: int | None = None) -> dict[str, str]:
        """By key; raises NotFound."""
        name = _checked_name(kind, name, version)
        with self._store.read() as connection:
            return _read(connection, _get(connection, kind, name, version, lock=False).id, version)


def _checked_name(kind: str, name: str, version: int | None) -> str:
    privileges.check_kind(kind)
    if kind == METASTORE:
        raise BadRequest("the metastore has no tags", param="kind")
    if version is not None and kind not in _VERSIONED:
        raise BadRequest(f"a {kind} has no versions in the catalog; leave the version out", param="version")
    return names.parse_securable(kind, name)


def _check_tag(key: str, value: str) -> None:
    if not isinstance(key, str) or not 1 <= len(key) <= _LONGEST_KEY or not key.isprintable() or key != key.strip():
        raise BadRequest(f"tag {key!r} must have 1 to {_LONGEST_KEY} printable characters", param="tags")
    if not isinstance(value, str) or len(value) > _LONGEST_VALUE:
        raise BadRequest(f"the value of tag {key!r} must be text of up to {_LONGEST_VALUE} characters", param="tags")


def _get(connection: sa.Connection, kind: str, name: str, version: int | None, *, lock: bool = True) -> Row:
    row = securables.get(connection, kind, name, lock=lock)
    if version is not None:
        models.version_row(connection, row, version)
    return row


def _read(connection: sa.Connection, securable_id: str, version: int | None) -> dict[str, str]:
    query = sa.select(tag.c.key, tag.c.value).where(_of(securable_id, version)).order_by(tag.c.key)
    return {row.key: row.value for row in connection.execute(query)}


def _of(securable_id: str, version: int | None) -> sa.ColumnElement[bool]:
    return (tag.c.securable_id == securable_id) & (tag.c.version == _text(version))


def _text(version: int | None) -> str:
    return "" if version is None else str(version)


def _version_param(version: int | None) -> dict[str, str]:
    return {} if version is None else {"version": str(version)}
