"""Models into the catalog: a folder on this machine becomes the next version of a name, with the sums of its files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic.catalog import Catalog, ModelVersion, files
from mosaic.catalog.names import parse_object
from mosaic.errors import BadRequest
from mosaic.ids import new_id
from mosaic.models import ModelResolver
from mosaic.models.cache import digests
from mosaic.protocol import Principal
from mosaic.serving.classify import label_count
from mosaic.storage import Storage


class Models:
    """`platform.models`: models by name, and registering them; acts for a principal, within its grants."""

    def __init__(self, catalog: Catalog, storage: Storage, resolver: ModelResolver, principal: Principal) -> None:
        self._catalog, self._storage, self._resolver, self._principal = catalog, storage, resolver, principal

    def resolve(self, name: str) -> Path:
        """The local folder of a model; see `ModelResolver.resolve`."""
        return self._resolver.resolve(name)

    def register(
        self,
        name: str,
        source: Path | str,
        *,
        alias: str | None = None,
        base_model: str | None = None,
        run_id: str | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """The next version of the model `name`, which is made if it is not there, of a folder that transformers, PEFT
        or MLflow wrote; `alias` then points at it.

        The files are copied, so that the folder is free afterwards. An adapter needs `base_model`, which it was trained
        on. With a run, which must be running, the version is what that made. Raises BadRequest for a folder that is no
        model's, PermissionDenied unless the principal may MANAGE the model, or CREATE MODEL in its schema.
        """
        name, folder = parse_object(name, "model"), Path(source)
        kind = kind_of(folder)
        if (kind == "adapter") != (base_model is not None):
            raise BadRequest(
                f"{str(folder)!r} is of kind {kind!r}; base_model is for adapters, which need it", param="base_model"
            )
        self._may(name)
        address = self._storage.address("models", *name.split("."), new_id("mdl"))
        checksums = digests(folder)
        self._storage.upload(folder, address)
        looked = files.look(self._storage, address)
        found = {"signature": looked.signature, "pickles": looked.pickles, "pickles_rule": files.RULE}
        made = self._catalog.create_model_version(
            name,
            source=address,
            kind=kind,
            base_model=base_model,
            run_id=run_id,
            spec={**found, **(spec or {})},
            checksums=checksums,
            by=self._ensured(name),
        )
        if alias is not None:
            self._catalog.set_alias(name, alias, made.version, principal=self._may(name))
        return made

    def _may(self, name: str) -> Principal:
        """Who may make a version; raises PermissionDenied."""
        check = self._catalog.grants.check
        if self._catalog.find_model(name) is not None:
            return check(self._principal, "MANAGE", "model", name, action="createModelVersion")
        schema = name.rpartition(".")[0]
        if self._principal.is_admin:
            self._catalog.ensure_schema(schema, by=self._principal)
        return check(self._principal, "CREATE MODEL", "schema", schema, action="createModelVersion")

    def _ensured(self, name: str) -> Principal:
        """The model is there; who may make a version of it."""
        by = self._may(name)
        if self._catalog.find_model(name) is None:
            self._catalog.create_model(name, owner=self._principal.name, by=by)
        return self._may(name)


def kind_of(folder: Path) -> str:
    """What a folder holds, as versions of models call it; raises BadRequest for one without a model."""
    if (folder / "MLmodel").is_file():
        return "mlflow"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if not (folder / "config.json").is_file():
        there = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no folder"
        raise BadRequest(
            f"{str(folder)!r} is no model's folder: it has none of config.json (transformers), adapter_config.json "
            f"(PEFT), MLmodel (MLflow); there is {there}",
            param="source",
        )
    try:
        described = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise BadRequest(f"{str(folder / 'config.json')!r} is no JSON: {error}", param="source") from None
    return "classifier" if label_count(described) > 1 else "full"
