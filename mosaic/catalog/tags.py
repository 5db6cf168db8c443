"""Tags: a key with a value on any securable, or on one version of a model, prompt or policy."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from mosaic.catalog import models, names, privileges, securables
from mosaic.catalog.audit import Change, change, of_securable
from mosaic.catalog.names import METASTORE
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.schema import tag
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.errors import AlreadyExists, BadRequest, not_found
from mosaic.protocol import Principal

_LONGEST_KEY, _LONGEST_VALUE, _MOST = 255, 1000, 50
_VERSIONED = ("model", "prompt", "policy")


class Tags:
    """`catalog.tags`. A securable is named by its kind and name, as in `catalog.grants`."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def set(
        self, kind: str, name: str, tags: Mapping[str, str], *, version: int | None = None, by: Caller = ADMIN
    ) -> dict[str, str]:
        """Add tags, or give those that are there another value; all tags afterwards. Raises NotFound, BadRequest."""
        return self.change(kind, name, add=tags, version=version, by=by)

    def remove(
        self, kind: str, name: str, keys: Sequence[str], *, version: int | None = None, by: Caller = ADMIN
    ) -> dict[str, str]:
        """Take tags away; all that are left. Raises NotFound for a securable or a key that is not there."""
        return self.change(kind, name, remove=keys, version=version, by=by)

    def change(
        self,
        kind: str,
        name: str,
        *,
        add: Mapping[str, str] | None = None,
        remove: Sequence[str] = (),
        new: bool = False,
        version: int | None = None,
        by: Caller = ADMIN,
    ) -> dict[str, str]:
        """Take tags away and then set others, all or nothing; all tags afterwards.

        With `new` raises AlreadyExists for one that is there.
        """
        name, caller, now, add = _checked_name(kind, name, version), as_principal(by), self._now(), dict(add or {})
        check_tags(add)
        params = of_securable(kind, name, **_keys(add, remove), **_version_param(version))
        with change(self._store, "setTags" if add else "deleteTags", params, by=caller, now=now) as going:
            connection = going.connection
            row = _get(connection, kind, name, version)
            there = _read(connection, row.id, version)
            for key in remove:
                if key not in there:
                    raise not_found("tag", key, there, param="tags")
            for key in add if new else ():
                if key in there:
                    raise AlreadyExists(f"{kind} {name!r} has the tag {key!r}; change it instead", param="tag_key")
            left = {key: value for key, value in there.items() if key not in remove}
            after = dict(sorted((left | add).items()))
            if len(after) > _MOST:
                raise BadRequest(f"{kind} {name!r} would have {len(after)} tags; {_MOST} fit", param="tags")
            going.happened = after != there
            if going.happened:
                fresh = {key: value for key, value in add.items() if there.get(key) != value}
                gone = _of(row.id, version) & tag.c.key.in_([*remove, *fresh])
                connection.execute(tag.delete().where(gone))
                _insert(connection, row.id, version, fresh, by=caller.name, now=now)
                securables.touch(connection, row, now=now, by=caller.name)
            return after

    def list(self, kind: str, name: str, *, version: int | None = None) -> dict[str, str]:
        """By key; raises NotFound."""
        name = _checked_name(kind, name, version)
        with self._store.read() as connection:
            return _read(connection, _get(connection, kind, name, version, lock=False).id, version)


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises BadRequest for a key or a value that no tag can have, and for too many."""
    for key, value in tags.items():
        _check_tag(key, value)
    if len(tags) > _MOST:
        raise BadRequest(f"there are {len(tags)} tags; {_MOST} fit", param="tags")


def set_tags(
    going: Change, securable_id: str, version: int | None, tags: Mapping[str, str], *, by: Principal, now: datetime
) -> None:
    """Those of something that is being made; they are checked already."""
    if tags:
        going.params["tags"] = ", ".join(sorted(tags))
        _insert(going.connection, securable_id, version, tags, by=by.name, now=now)


def _insert(
    connection: sa.Connection,
    securable_id: str,
    version: int | None,
    tags: Mapping[str, str],
    *,
    by: str,
    now: datetime,
) -> None:
    common = {"securable_id": securable_id, "version": _text(version), "set_by": by, "set_at": now}
    for key, value in tags.items():
        connection.execute(tag.insert().values(key=key, value=value, **common))


def _keys(add: Mapping[str, str], remove: Sequence[str]) -> dict[str, str]:
    """What a change names: its keys, and those that go where others come."""
    if not add:
        return {"tags": ", ".join(sorted(remove))}
    return {"tags": ", ".join(sorted(add)), **({"removed": ", ".join(sorted(remove))} if remove else {})}


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
