"""The registry's side of models: versions that are uploaded after they were numbered, descriptions, deletions."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mosaic.catalog import models, names, securables, values
from mosaic.catalog.names import ModelReference
from mosaic.catalog.records import Model, ModelVersion
from mosaic.catalog.schema import model_alias, model_version
from mosaic.catalog.securables import Row
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest


class Registry:
    """`catalog.registry`: what a client of a model registry does beyond `catalog.create_model` and its like.

    A version is opened (numbered, PENDING_REGISTRATION), its files are uploaded to the folder that it was given, and
    it is finalized (READY).
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def update_model(self, name: str, *, by: str, comment: str | None = None) -> Model:
        """Change what is given (the owner: `catalog.grants.set_owner`). Raises NotFound."""
        name = names.parse_object(name, "model")
        changes = {} if comment is None else {"comment": comment}
        with self._store.write() as connection:
            row = securables.get(connection, "model", name, lock=True)
            return models.as_models(
                connection, [securables.update(connection, row, now=self._now(), by=by, **changes)]
            )[0]

    def delete_model(self, name: str, *, force: bool = False) -> None:
        """Take a model's name away; one that has versions only with `force`. Raises NotFound."""
        name = names.parse_object(name, "model")
        with self._store.write() as connection:
            row = securables.get(connection, "model", name, lock=True)
            versions = models.as_models(connection, [row])[0].versions
            if versions and not force:
                raise BadRequest(
                    f"model {name!r} has the versions {versions[:20]}; delete them first, or say force=true",
                    code="failed_precondition",
                )
            securables.delete(connection, "model", name, now=self._now())

    def open_version(
        self, name: str, *, folder: str, by: str, comment: str = "", spec: Mapping[str, Any] | None = None
    ) -> ModelVersion:
        """The next version of a model that exists, its files still to come.

        `folder` is the address that they will have. Raises NotFound.
        """
        name = names.parse_object(name, "model")
        names.check_principal(by, "principal")
        kept = values.json_object(spec or {}, "spec")
        columns = {"source": folder, "kind": "mlflow", "spec": kept, "checksums": {}, "comment": comment}
        with self._store.write() as connection:
            return models.add_version(
                connection, name, now=self._now(), status="PENDING_REGISTRATION", created_by=by, **columns
            )

    def finalize_version(
        self, name: str, version: int, *, by: str, checksums: Mapping[str, str] | None = None
    ) -> ModelVersion:
        """All files are there; again is fine, and changes nothing. Raises NotFound."""
        checked = values.checksums(checksums or {})

        def finalized(row: Row) -> dict[str, Any]:
            return {} if row.status == "READY" else {"status": "READY", "checksums": checked}

        return self._update_version(name, version, by, finalized)

    def update_version(self, name: str, version: int, *, by: str, comment: str) -> ModelVersion:
        """Describe a version. Raises NotFound."""
        return self._update_version(
            name, version, by, lambda row: {} if row.comment == comment else {"comment": comment}
        )

    def delete_version(self, name: str, version: int, *, by: str) -> None:
        """Take a version away with the aliases that name it; its number is not given again, its files stay."""
        name = names.parse_object(name, "model")
        now = self._now()
        with self._store.write() as connection:
            row = securables.get(connection, "model", name, lock=True)
            models.version_row(connection, row, version)
            chosen = (model_alias.c.model_id == row.id) & (model_alias.c.version == version)
            for alias in list(connection.execute(sa.select(model_alias.c.alias).where(chosen)).scalars()):
                models.set_alias(connection, name, alias, None, principal=by, now=now)
            _write(connection, row.id, version, {"deleted_at": now, "updated_at": now, "updated_by": by})

    def _update_version(
        self, name: str, version: int, by: str, change: Callable[[Row], dict[str, Any]]
    ) -> ModelVersion:
        name = names.parse_object(name, "model")
        with self._store.write() as connection:
            row = securables.get(connection, "model", name)
            changes = change(models.version_row(connection, row, version, lock=True))
            if changes:
                _write(connection, row.id, version, {**changes, "updated_at": self._now(), "updated_by": by})
            return models.get_version(connection, ModelReference(name, version, None))


def _write(connection: sa.Connection, model_id: str, version: int, changes: Mapping[str, Any]) -> None:
    chosen = (model_version.c.model_id == model_id) & (model_version.c.version == version)
    connection.execute(model_version.update().where(chosen).values(changes))
