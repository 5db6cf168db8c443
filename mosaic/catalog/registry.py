"""The registry's side of models: versions that are uploaded after they were numbered, descriptions, deletions."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import models, names, securables, tables, values
from mosaic.catalog.audit import Change, change, of_securable
from mosaic.catalog.names import ModelReference
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import Model, ModelVersion
from mosaic.catalog.schema import model_alias, model_version
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.catalog.tags import check_tags, set_tags
from mosaic.catalog.updates import update
from mosaic.errors import BadRequest
from mosaic.protocol import Principal


class Registry:
    """`catalog.registry`: what a client of a model registry does beyond `catalog.create_model` and its like.

    A version is opened (numbered, PENDING_REGISTRATION), its files are uploaded to the folder that it was given, and
    it is finalized (READY).
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def update_model(
        self,
        name: str,
        *,
        by: Caller,
        comment: str | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> Model:
        """Change what is given. Raises NotFound, StaleEtag."""
        name, caller = names.parse_object(name, "model"), as_principal(by)
        changes = {} if comment is None else {"comment": comment}
        with self._change("updateRegisteredModel", "model", name, caller) as going:
            row = securables.get(going.connection, "model", name, lock=True)
            after = update(going, row, expected_etag, owner=owner, by=caller, now=self._now(), **changes)
            return models.as_models(going.connection, [after])[0]

    def delete_model(
        self, name: str, *, force: bool = False, by: Caller = ADMIN, expected_etag: str | None = None
    ) -> None:
        """Take a model's name away; one that has versions only with `force`. Raises NotFound, StaleEtag."""
        name, caller = names.parse_object(name, "model"), as_principal(by)
        with self._change("deleteRegisteredModel", "model", name, caller) as going:
            row = securables.get(going.connection, "model", name, lock=True)
            versions = models.as_models(going.connection, [row])[0].versions
            if versions and not force:
                raise BadRequest(
                    f"model {name!r} has the versions {versions[:20]}; delete them first, or use force (`--force`)",
                    code="failed_precondition",
                )
            tables.check_not_served(going.connection, lambda served: served.model == name)
            securables.delete(
                going.connection, "model", name, now=self._now(), by=caller.name, expected_etag=expected_etag
            )

    def open_version(
        self,
        name: str,
        *,
        folder: str,
        by: Caller,
        comment: str = "",
        spec: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """The next version of a model that exists, with tags, its files still to come.

        `folder` is the address that they will have. Raises NotFound.
        """
        name, caller = names.parse_object(name, "model"), as_principal(by)
        kept = values.json_object(spec or {}, "spec")
        check_tags(tags or {})
        columns: dict[str, Any] = {
            "source": folder,
            "kind": "mlflow",
            "spec": kept,
            "checksums": {},
            "comment": comment,
        }
        with self._change("createModelVersion", "model", name, caller) as going:
            now = self._now()
            opened = models.add_version(
                going.connection,
                name,
                now=now,
                status="PENDING_REGISTRATION",
                created_by=caller.name,
                **columns,
            )
            going.params["version"] = str(opened.version)
            model_id = securables.get(going.connection, "model", name).id
            set_tags(going, model_id, opened.version, tags or {}, by=caller, now=now)
            return opened

    def finalize_version(
        self,
        name: str,
        version: int,
        *,
        by: Caller,
        checksums: Mapping[str, str] | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """All files are there; again is fine, and changes nothing. `spec` is added to what is kept. Raises NotFound."""
        checked, more = values.checksums(checksums or {}), values.json_object(spec or {}, "spec")

        def finalized(row: Row) -> dict[str, Any]:
            if row.status == "READY":
                return {}
            return {"status": "READY", "checksums": checked, "spec": {**row.spec, **more}}

        return self._update_version("finalizeModelVersion", name, version, by, finalized)

    def update_version(self, name: str, version: int, *, by: Caller, comment: str) -> ModelVersion:
        """Describe a version. Raises NotFound."""
        return self._update_version(
            "updateModelVersion",
            name,
            version,
            by,
            lambda row: {} if row.comment == comment else {"comment": comment},
        )

    def delete_version(self, name: str, version: int, *, by: Caller) -> None:
        """Take a version away with the aliases that name it; its number is not given again, its files stay."""
        name, caller, now = names.parse_object(name, "model"), as_principal(by), self._now()
        with self._change("deleteModelVersion", "model", name, caller, version=str(version)) as going:
            connection = going.connection
            row = securables.get(connection, "model", name, lock=True)
            models.version_row(connection, row, version)
            tables.check_not_served(connection, lambda served: (served.model, served.version) == (name, version))
            chosen = (model_alias.c.model_id == row.id) & (model_alias.c.version == version)
            for alias in list(connection.execute(sa.select(model_alias.c.alias).where(chosen)).scalars()):
                models.set_alias(connection, name, alias, None, principal=caller.name, now=now)
            _write(connection, row.id, version, {"deleted_at": now, "updated_at": now, "updated_by": caller.name})
            securables.touch(connection, row, now=now, by=caller.name)

    def _change(
        self, action: str, kind: str, name: str, by: Principal, **params: str
    ) -> "AbstractContextManager[Change, bool | None]":
        return change(self._store, action, of_securable(kind, name, **params), by=by, now=self._now())

    def _update_version(
        self, action: str, name: str, version: int, by: Caller, changes_of: Callable[[Row], dict[str, Any]]
    ) -> ModelVersion:
        name, caller = names.parse_object(name, "model"), as_principal(by)
        with self._change(action, "model", name, caller, version=str(version)) as going:
            connection = going.connection
            row, now = securables.get(connection, "model", name, lock=True), self._now()
            changes = changes_of(models.version_row(connection, row, version, lock=True))
            going.happened = bool(changes)
            if changes:
                _write(connection, row.id, version, {**changes, "updated_at": now, "updated_by": caller.name})
                securables.touch(connection, row, now=now, by=caller.name)
            return models.get_version(connection, ModelReference(name, version, None))


def _write(connection: sa.Connection, model_id: str, version: int, changes: Mapping[str, Any]) -> None:
    chosen = (model_version.c.model_id == model_id) & (model_version.c.version == version)
    connection.execute(model_version.update().where(chosen).values(changes))
