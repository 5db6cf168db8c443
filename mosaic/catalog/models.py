"""Immutable versions numbered from 1 without gaps, and aliases with their history: of registered models, of prompts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import securables, tables
from mosaic.catalog.bearers import bearer_at, list_bearers
from mosaic.catalog.names import ModelReference
from mosaic.catalog.records import AliasEvent, Model, ModelVersion
from mosaic.catalog.schema import model_alias, model_alias_event, model_version, securable
from mosaic.catalog.securables import Row
from mosaic.errors import BadRequest, NotFound, not_found


def as_models(connection: sa.Connection, rows: Iterable[Row]) -> list[Model]:
    """Records with their versions and aliases, in two queries however many models there are."""
    rows = list(rows)
    ids = [row.id for row in rows]
    versions: dict[str, list[int]] = defaultdict(list)
    aliases: dict[str, dict[str, int]] = defaultdict(dict)
    live = model_version.c.model_id.in_(ids) & model_version.c.deleted_at.is_(None)
    numbers = sa.select(model_version.c.model_id, model_version.c.version).where(live)
    for model_id, version in connection.execute(numbers.order_by(model_version.c.version)):
        versions[model_id].append(version)
    named = sa.select(model_alias).where(model_alias.c.model_id.in_(ids)).order_by(model_alias.c.alias)
    for model_id, alias, version in connection.execute(named):
        aliases[model_id][alias] = version
    return [
        Model(
            id=row.id,
            etag=securables.etag(row),
            name=row.full_name,
            owner=row.owner,
            comment=row.comment,
            versions=versions[row.id],
            aliases=aliases[row.id],
            created_at=row.created_at,
            created_by=row.created_by,
            updated_at=row.updated_at,
            updated_by=row.updated_by,
        )
        for row in rows
    ]


def add_version(
    connection: sa.Connection, model: str, *, now: datetime, created_by: str, of: str = "model", **columns: Any
) -> ModelVersion:
    """The next version of a model, or of what else has versions (`of`); the model has another etag then.

    Its row is locked, so that numbers have no gaps and no duplicates.
    """
    row = securables.get(connection, of, model, lock=True)
    newest = sa.select(sa.func.max(model_version.c.version)).where(model_version.c.model_id == row.id)
    version = (connection.execute(newest).scalar() or 0) + 1
    stamped = {"created_at": now, "created_by": created_by}
    connection.execute(model_version.insert().values(model_id=row.id, version=version, **stamped, **columns))
    securables.touch(connection, row, now=now, by=created_by)
    return get_version(connection, ModelReference(model, version, None), of=of)


def get_version(connection: sa.Connection, asked: ModelReference, *, of: str = "model") -> ModelVersion:
    """The version by number or alias; raises NotFound with the versions or aliases that exist."""
    row = securables.get(connection, of, asked.model)
    number = asked.version
    if asked.alias is not None:
        aliases = _aliases(connection, row.id)
        if asked.alias not in aliases:
            raise not_found(
                f"{of} alias", f"{asked.model}@{asked.alias}", [f"{asked.model}@{name}" for name in aliases]
            )
        number = aliases[asked.alias]
    return _as_version(version_row(connection, row, number), asked.model)


def version_row(connection: sa.Connection, row: Row, number: int | None, *, lock: bool = False) -> Row:
    """A version of a model's row; raises NotFound with those that exist."""
    chosen = (model_version.c.model_id == row.id) & (model_version.c.version == number)
    query = sa.select(model_version).where(chosen, model_version.c.deleted_at.is_(None))
    found = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if found is None:
        raise _no_version(connection, row, number)
    return found


def list_versions(connection: sa.Connection, model: str, *, of: str = "model") -> list[ModelVersion]:
    """All versions of a model, oldest first."""
    row = securables.get(connection, of, model)
    live = (model_version.c.model_id == row.id) & model_version.c.deleted_at.is_(None)
    query = sa.select(model_version).where(live).order_by(model_version.c.version)
    return [_as_version(found, model) for found in connection.execute(query)]


def versions_of_run(connection: sa.Connection, run_id: str) -> list[ModelVersion]:
    """The model versions that a run registered."""
    query = (
        sa.select(*model_version.c, securable.c.full_name.label("model_name"))
        .join(securable, securable.c.id == model_version.c.model_id)
        .where(model_version.c.run_id == run_id)
        .order_by(model_version.c.created_at)
    )
    return [_as_version(found, found.model_name) for found in connection.execute(query)]


def set_alias(
    connection: sa.Connection,
    model: str,
    alias: str,
    version: int | None,
    *,
    principal: str,
    now: datetime,
    of: str = "model",
) -> bool:
    """Point an alias at a version, or remove it (None); the change is remembered with its time and principal.

    Whether it changed anything.
    """
    row = securables.get(connection, of, model, lock=True)
    aliases = _aliases(connection, row.id)
    if version == aliases.get(alias):
        if version is None:
            raise not_found(f"{of} alias", f"{model}@{alias}", [f"{model}@{name}" for name in aliases])
        return False
    if version is None and of == "model":
        tables.check_not_served(connection, lambda served: (served.model, served.alias) == (model, alias))
    chosen = (model_alias.c.model_id == row.id) & (model_alias.c.alias == alias)
    connection.execute(model_alias.delete().where(chosen))
    if version is not None:
        if version_row(connection, row, version).status != "READY":
            raise BadRequest(
                f"version {version} of {of} {model!r} is still being uploaded; an alias names only a READY version",
                param="version",
                code="failed_precondition",
            )
        connection.execute(model_alias.insert().values(model_id=row.id, alias=alias, version=version))
    happened: Mapping[str, Any] = {"alias": alias, "version": version, "principal": principal, "at": now}
    connection.execute(model_alias_event.insert().values(model_id=row.id, **happened))
    securables.touch(connection, row, now=now, by=principal)
    return True


def alias_history(
    connection: sa.Connection, model: str, alias: str | None, *, of: str = "model", at: datetime | None = None
) -> list[AliasEvent]:
    """Every change of a model's aliases, or of one of them, oldest first; of what bore the name at a moment, if given,
    also if it was dropped."""
    bearer = None if at is None else bearer_at(list_bearers(connection, of, model), at)
    model_id = bearer.id if bearer is not None else securables.get(connection, of, model).id
    query = sa.select(model_alias_event).where(model_alias_event.c.model_id == model_id)
    if alias is not None:
        query = query.where(model_alias_event.c.alias == alias)
    return [
        AliasEvent(model=model, alias=found.alias, version=found.version, principal=found.principal, at=found.at)
        for found in connection.execute(query.order_by(model_alias_event.c.sequence))
    ]


def alias_at(connection: sa.Connection, model: str, alias: str, moment: datetime) -> ModelVersion:
    """The version that an alias pointed at in a past moment; raises NotFound if it did not exist then."""
    row = securables.get(connection, "model", model)
    query = (
        sa.select(model_alias_event.c.version)
        .where(
            model_alias_event.c.model_id == row.id,
            model_alias_event.c.alias == alias,
            model_alias_event.c.at <= moment,
        )
        .order_by(model_alias_event.c.at.desc(), model_alias_event.c.sequence.desc())
        .limit(1)
    )
    version = connection.execute(query).scalar_one_or_none()
    if version is None:
        raise NotFound(f"{model}@{alias} pointed at nothing at {moment.isoformat()}", code="model_alias_not_found")
    return get_version(connection, ModelReference(model, version, None))


def _aliases(connection: sa.Connection, model_id: str) -> dict[str, int]:
    query = sa.select(model_alias.c.alias, model_alias.c.version).where(model_alias.c.model_id == model_id)
    return {row.alias: row.version for row in connection.execute(query)}


def _no_version(connection: sa.Connection, row: Row, version: int | None) -> NotFound:
    live = (model_version.c.model_id == row.id) & model_version.c.deleted_at.is_(None)
    query = sa.select(model_version.c.version).where(live).order_by(model_version.c.version)
    numbers = list(connection.execute(query).scalars())
    there = f"there are {numbers[:20]}" + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")
    return NotFound(
        f"no version {version} of {row.kind} {row.full_name!r}; {there if numbers else 'it has no version yet'}",
        param="version",
        code=f"{row.kind}_version_not_found",
    )


def _as_version(found: Row, model: str) -> ModelVersion:
    return ModelVersion(
        model=model,
        version=found.version,
        full_name=f"{model}/{found.version}",
        source=found.source,
        kind=found.kind,
        base_model=found.base_model,
        run_id=found.run_id,
        spec=found.spec,
        checksums=found.checksums,
        status=found.status,
        comment=found.comment,
        created_at=found.created_at,
        created_by=found.created_by,
        updated_at=found.updated_at or found.created_at,
        updated_by=found.updated_by,
    )
