"""Models into the catalog: a folder, or a Python class, becomes the next version of a name, with its files' sums."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic.catalog import Catalog, ModelVersion
from mosaic.catalog import files as files_of
from mosaic.catalog.names import is_model_version, parse_model_version, parse_object
from mosaic.errors import BadRequest, PermissionDenied
from mosaic.ids import new_id
from mosaic.models import ModelResolver
from mosaic.models.cache import digests
from mosaic.protocol import Principal
from mosaic.serving.classify import label_count
from mosaic.serving.endpoint import is_place
from mosaic.serving.presets import read_config
from mosaic.serving.python_model import write_model
from mosaic.storage import Storage


class Models:
    """`platform.models`: models by name, and registering them; acts for a principal, within its grants."""

    def __init__(self, catalog: Catalog, storage: Storage, resolver: ModelResolver, principal: Principal) -> None:
        self._catalog, self._storage, self._resolver, self._principal = catalog, storage, resolver, principal

    def resolve(self, name: str) -> Path:
        """The local folder of a model, as `ModelResolver.resolve` says; a registered one takes EXECUTE."""
        if is_model_version(name):
            model = parse_model_version(name).model
            self._catalog.grants.check(self._principal, "EXECUTE", "model", model, action="loadModelVersion")
        return self._resolver.resolve(name)

    def register(
        self,
        name: str,
        source: Path | str | type,
        *,
        alias: str | None = None,
        base_model: str | None = None,
        columns: Mapping[str, str] | None = None,
        example: Sequence[Mapping[str, Any]] = (),
        files: Path | str | None = None,
        run_id: str | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """The next version of the model `name`, which is made if it is not there; `alias` then points at it.

        `source` is a folder that transformers, PEFT or MLflow wrote, or a Python class (itself, or `module.py:Class`;
        `python_model.py` says what it has to offer). The files are copied, so that the originals are free afterwards.
        An adapter needs `base_model`, which it was trained on; a class needs `columns`, the type of each by name, and
        may have an `example`, rows that a rollout asks about, and a folder of `files`, which its `load` is given. With
        a run, which must be running, the version is what that made. Raises BadRequest for what is no model,
        PermissionDenied unless the principal may MANAGE the model, or CREATE MODEL in its schema, and for a base model
        that is a place (a folder, an address, a model of the hub) unless it is an administrator.
        """
        name = parse_object(name, "model")
        self._may(name)
        with tempfile.TemporaryDirectory() as scratch:
            if isinstance(source, type) or ".py:" in str(source):
                model = source if isinstance(source, type) else str(source)
                folder = Path(scratch) / "model"
                given = None if files is None else Path(files)
                write_model(model, folder, columns=columns or {}, example=example, files=given)
            elif columns is not None or example or files is not None:
                raise BadRequest("columns, example and files are for Python classes", param="columns")
            else:
                folder = Path(source)
            return self._register(name, folder, alias, base_model, run_id, spec or {})

    def _register(
        self,
        name: str,
        folder: Path,
        alias: str | None,
        base_model: str | None,
        run_id: str | None,
        spec: Mapping[str, Any],
    ) -> ModelVersion:
        kind = kind_of(folder)
        if (kind == "adapter") != (base_model is not None):
            raise BadRequest(
                f"{str(folder)!r} is of kind {kind!r}; base_model is for adapters, which need it", param="base_model"
            )
        if base_model is not None and is_place(base_model):
            self._require_administrator(name, base_model)
        address = self._storage.address("models", *name.split("."), new_id("mdl"))
        checksums = digests(folder)
        self._storage.upload(folder, address)
        looked = files_of.look(self._storage, address)
        found = {"signature": looked.signature, "pickles": looked.pickles, "pickles_rule": files_of.RULE}
        made = self._catalog.create_model_version(
            name,
            source=address,
            kind=kind,
            base_model=base_model,
            run_id=run_id,
            spec={**found, **spec},
            checksums=checksums,
            by=self._ensured(name),
        )
        if alias is not None:
            self._catalog.set_alias(name, alias, made.version, principal=self._may(name))
        return made

    def _require_administrator(self, name: str, base_model: str) -> None:
        if self._catalog.principals.is_administrator(self._principal):
            return
        error = PermissionDenied(
            f"base_model {base_model!r} is a place, which only administrators may name; register the base model, and "
            "name its version, such as main.ml.base/1",
            param="base_model",
        )
        self._catalog.audit.deny("createModelVersion", {"full_name": name}, error, by=self._principal)
        raise error

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
    if (folder / files_of.PYTHON_MODEL).is_file():
        return "python"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if not (folder / "config.json").is_file():
        there = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no folder"
        raise BadRequest(
            f"{str(folder)!r} is no model's folder: it has none of config.json (transformers), adapter_config.json "
            f"(PEFT), MLmodel (MLflow); there is {there}",
            param="source",
        )
    return "classifier" if label_count(read_config(folder, param="source")) > 1 else "full"
