"""Registered models of the protocol, their versions and aliases: what MLflow's `uc:` and `databricks-uc` clients call.

A client creates a version, uploads its files to the storage_location that it was given, and finalizes it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.routing import Route

from mosaic.catalog import Model, ModelVersion, files, names
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import FORCE, PAGE, Call, Query, route
from mosaic.catalog.unity.places import is_local, to_uri
from mosaic.catalog.unity.surface import Surface, described, milliseconds, split
from mosaic.errors import BadRequest
from mosaic.ids import new_id
from mosaic.protocol import Principal

_SAID_BY_CLIENT = ("source", "run_id", "model_id", "run_tracking_server_id", "feature_deps")
"""What a client says about a version's origin; kept in its spec."""

_SCHEMA = (
    Query("catalog_name", "the catalog of the schema"),
    Query("schema_name", "whose models; without both, all that the caller may know of"),
)


class ModelRoutes:
    def __init__(self, surface: Surface) -> None:
        self._catalog, self._storage, self._authorize = surface.catalog, surface.storage, surface.authorize
        self._seen, self._given = surface.seen, surface.given

    def routes(self, base: str) -> list[Route]:
        model, version = f"{base}/models/{{full_name}}", f"{base}/models/{{full_name}}/versions/{{version}}"
        return [
            route("POST", f"{base}/models", self.create, asked=shapes.CreateModel),
            route("GET", f"{base}/models", self.list, query=(*_SCHEMA, *PAGE)),
            route("POST", f"{base}/models/versions", self.create_version, asked=shapes.CreateModelVersion),
            route("GET", model, self.get),
            route("PATCH", model, self.update, asked=shapes.UpdateModel, conditional=True),
            route("DELETE", model, self.delete, query=(FORCE,), conditional=True),
            route("GET", f"{model}/versions", self.list_versions, query=PAGE),
            route("GET", version, self.get_version),
            route("PATCH", version, self.update_version, asked=shapes.UpdateModelVersion),
            route("DELETE", version, self.delete_version),
            route("PATCH", f"{version}/finalize", self.finalize_version, asked=shapes.Finalize),
            route("GET", f"{model}/aliases/{{alias}}", self.get_alias),
            route("PUT", f"{model}/aliases/{{alias}}", self.set_alias, asked=shapes.SetAlias),
            route("DELETE", f"{model}/aliases/{{alias}}", self.delete_alias),
        ]

    def create(self, call: Call) -> shapes.RegisteredModelInfo:
        asked = call.parse(shapes.CreateModel)
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.name}", "model")
        by = self._authorize(call.principal, "CREATE_MODEL", "schema", name.rpartition(".")[0])
        tags = _asked_tags(asked.tags)
        made = self._catalog.create_model(name, owner=by.name, by=by, comment=asked.comment or "", tags=tags)
        return self._shown(made, tags)

    def list(self, call: Call) -> shapes.RegisteredModels:
        """Of a schema, or of all: MLflow asks without naming one."""
        schema = None
        if call.find("catalog_name") or call.find("schema_name"):
            schema = names.parse_schema(f"{call.asked('catalog_name')}.{call.asked('schema_name')}")
        kind, of = ("metastore", "") if schema is None else ("schema", schema)
        self._authorize(call.principal, "BROWSE", kind, of)
        models = self._seen(call.principal, "model", self._catalog.list_models(schema))
        page, token = call.page(f"models of {of}", models, lambda model: model.name)
        return shapes.RegisteredModels(
            registered_models=[self._shown(model, None) for model in page], next_page_token=token
        )

    def get(self, call: Call) -> shapes.RegisteredModelInfo:
        name, _ = self._model(call, "BROWSE")
        return self._shown(self._catalog.get_model(name), self._tags(name))

    def update(self, call: Call) -> shapes.RegisteredModelInfo:
        name, by = self._model(call, "MANAGE")
        asked = call.parse(shapes.UpdateModel, full_name=name)
        given = self._given(call, asked)
        return self._shown(self._catalog.registry.update_model(name, by=by, **given), self._tags(name))

    def delete(self, call: Call) -> shapes.Nothing:
        """Also with versions, when `force` says so; the protocol refuses a model that still has some."""
        name, by = self._model(call, "MANAGE")
        self._catalog.registry.delete_model(name, force=call.flag("force"), by=by, expected_etag=call.expected_etag)
        return shapes.Nothing()

    def create_version(self, call: Call) -> shapes.ModelVersionInfo:
        asked = call.parse(shapes.CreateModelVersion)
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.model_name}", "model")
        by = self._authorize(call.principal, "CREATE_MODEL_VERSION", "model", name)
        tags = _asked_tags(asked.tags)
        version = self._catalog.registry.open_version(
            name,
            folder=self._storage.address("models", *name.split("."), new_id("upload")),
            by=by,
            comment=asked.comment or "",
            spec={field: getattr(asked, field) for field in _SAID_BY_CLIENT},
            tags=tags,
        )
        return self._version(version)

    def list_versions(self, call: Call) -> shapes.ModelVersions:
        name, _ = self._model(call, "BROWSE")
        aliases = self._catalog.get_model(name).aliases
        versions = self._catalog.list_model_versions(name)
        page, token = call.page(f"versions of {name}", versions, lambda version: f"{version.version:010}")
        return shapes.ModelVersions(
            model_versions=[_version(version, aliases, None) for version in page], next_page_token=token
        )

    def get_version(self, call: Call) -> shapes.ModelVersionInfo:
        name, _ = self._model(call, "BROWSE")
        version = self._catalog.get_model_version(f"{name}/{_number(call, name)}")
        return self._version(version)

    def update_version(self, call: Call) -> shapes.ModelVersionInfo:
        name, by = self._model(call, "MANAGE")
        number = _number(call, name)
        asked = call.parse(shapes.UpdateModelVersion, full_name=name, version=str(number))
        if asked.comment is not None:
            self._catalog.registry.update_version(name, number, by=by, comment=asked.comment)
        return self.get_version(call)

    def delete_version(self, call: Call) -> shapes.Nothing:
        name, by = self._model(call, "MANAGE")
        self._catalog.registry.delete_version(name, _number(call, name), by=by)
        return shapes.Nothing()

    def finalize_version(self, call: Call) -> shapes.ModelVersionInfo:
        """READY, with its signature, what of it runs code when loaded, and checksums where it is on this disk."""
        name, by = self._model(call, "CREATE_MODEL_VERSION")
        number = _number(call, name)
        call.parse(shapes.Finalize, full_name=name, version=str(number))
        version = self._catalog.get_model_version(f"{name}/{number}")
        if version.status != "READY":
            looked = files.look(self._storage, version.source)
            if not looked.names:
                raise BadRequest(f"nothing was uploaded to {to_uri(version.source)!r} yet", code="failed_precondition")
            # Objects in a store are not read back here: that could take longer than the client waits.
            here = _checksums(Path(version.source)) if is_local(version.source) else {}
            found = {"signature": looked.signature, "pickles": looked.pickles, "pickles_rule": files.RULE}
            version = self._catalog.registry.finalize_version(name, number, by=by, checksums=here, spec=found)
        return self._version(version)

    def get_alias(self, call: Call) -> shapes.ModelVersionInfo:
        (name, _), alias = self._model(call, "BROWSE"), names.parse_alias(call.path["alias"])
        version = self._catalog.get_model_version(f"{name}@{alias}")
        return self._version(version)

    def set_alias(self, call: Call) -> shapes.Alias:
        (name, by), alias = self._model(call, "MANAGE"), names.parse_alias(call.path["alias"])
        asked = call.parse(shapes.SetAlias, full_name=name, alias=alias)
        self._catalog.set_alias(name, alias, asked.version_num, principal=by)
        return shapes.Alias(alias_name=alias, version_num=asked.version_num)

    def delete_alias(self, call: Call) -> shapes.Nothing:
        (name, by), alias = self._model(call, "MANAGE"), names.parse_alias(call.path["alias"])
        self._catalog.delete_alias(name, alias, principal=by)
        return shapes.Nothing()

    def _model(self, call: Call, privilege: str) -> tuple[str, Principal]:
        """The path's model, once the caller may do this with it, and who does it."""
        name = names.parse_object(call.path["full_name"], "model")
        return name, self._authorize(call.principal, privilege, "model", name)

    def _tags(self, name: str, version: int | None = None) -> Mapping[str, str]:
        return self._catalog.tags.list("model", name, version=version)

    def _version(self, version: ModelVersion) -> shapes.ModelVersionInfo:
        aliases = self._catalog.get_model(version.model).aliases
        return _version(version, aliases, self._tags(version.model, version.version))

    def _shown(self, model: Model, tags: Mapping[str, str] | None) -> shapes.RegisteredModelInfo:
        return shapes.RegisteredModelInfo(
            **split(model.name),
            id=model.id,
            storage_location=to_uri(self._storage.address("models", *model.name.split("."))),
            aliases=_aliases(model.aliases),
            tags=_pairs(tags),
            **described(model),
        )


def _version(
    version: ModelVersion, aliases: Mapping[str, int], tags: Mapping[str, str] | None
) -> shapes.ModelVersionInfo:
    catalog, schema, model = version.model.split(".")
    said = {field: version.spec.get(field) if version.kind == "mlflow" else None for field in _SAID_BY_CLIENT}
    return shapes.ModelVersionInfo(
        model_name=model,
        catalog_name=catalog,
        schema_name=schema,
        version=version.version,
        id=f"{version.model}/{version.version}",
        status=version.status,
        storage_location=to_uri(version.source),
        comment=version.comment or None,
        created_at=milliseconds(version.created_at),
        created_by=version.created_by,
        updated_at=milliseconds(version.updated_at),
        updated_by=version.updated_by,
        aliases=_aliases({alias: number for alias, number in aliases.items() if number == version.version}),
        tags=_pairs(tags),
        # A version that the platform made is where it came from.
        **{**said, "source": said["source"] or to_uri(version.source), "run_id": said["run_id"] or version.run_id},
    )


def _aliases(aliases: Mapping[str, int]) -> list[shapes.Alias]:
    return [shapes.Alias(alias_name=alias, version_num=version) for alias, version in sorted(aliases.items())]


def _asked_tags(tags: Sequence[shapes.TagKeyValue]) -> dict[str, str]:
    return dict(sorted((tag.key, tag.value) for tag in tags))


def _pairs(tags: Mapping[str, str] | None) -> list[shapes.TagKeyValue] | None:
    return None if tags is None else [shapes.TagKeyValue(key=key, value=value) for key, value in tags.items()]


def _number(call: Call, model: str) -> int:
    return names.parse_number(call.path["version"], f"{model}/{call.path['version']}")


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of the files in a folder."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        with file.open("rb") as stream:
            found[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
