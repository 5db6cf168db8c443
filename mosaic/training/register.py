"""From settings to a registered model version: the run, its inputs at exact versions, the adapter's files, the
alias."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from mosaic.catalog import Catalog, ModelVersion, parse_table_version
from mosaic.data import Tables
from mosaic.ids import new_id
from mosaic.models import ModelResolver
from mosaic.protocol import Principal, Wire
from mosaic.storage import Storage
from mosaic.training.result import TrainResult
from mosaic.training.run import OnProgress, fit
from mosaic.training.settings import TrainSettings
from mosaic.training.tracking import Tracking

RESULT_FILE = "mosaic-result.json"
"""Lies beside the adapter: what the run measured."""


class FineTuned(Wire):
    """A registered outcome."""

    version: ModelVersion
    result: TrainResult
    reused: bool
    """Whether an earlier run with the same settings and table versions is given back."""


class FineTuning:
    """Fine-tunes and registers. `work_folder` must be reachable by every worker."""

    def __init__(
        self,
        catalog: Catalog,
        tables: Tables,
        storage: Storage,
        models: ModelResolver,
        *,
        work_folder: Path,
        tracking: Tracking | None,
    ) -> None:
        self._catalog, self._tables, self._storage, self._models = catalog, tables, storage, models
        self._work_folder, self._tracking = work_folder, tracking

    def run(
        self,
        settings: TrainSettings,
        *,
        register_to: str,
        alias: str,
        principal: Principal,
        spec: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
    ) -> FineTuned:
        """Fine-tune, register the adapter as the next version of `register_to` and point `alias` at it.

        `spec` is how to serve it, kept with the version. With the same settings (which name the tables' versions) as an
        earlier run that finished, that run's version is given back. Raises what `fit` raises; the run is then `failed`.
        Raises PermissionDenied before anything starts, unless the principal may SELECT from the tables, and MANAGE the
        model or make it.
        """
        self._check(settings, register_to, principal)
        found = self.find(settings, register_to)
        if found is not None:
            by = self._manager(register_to, principal)
            self._catalog.set_alias(register_to, alias, found.version.version, principal=by)
            return found
        params = settings.model_dump(mode="json")
        run_id = self._catalog.start_run("training", register_to, principal=principal.name, params=params)
        for role, table in (("train", settings.train_table), ("eval", settings.eval_table)):
            if table is not None:
                self._catalog.add_input(run_id, "table", *parse_table_version(table), detail={"role": role})
        self._catalog.add_input(run_id, "base_model", settings.model, None)
        status = "failed"
        try:
            version, result = self._train(settings, register_to, run_id, dict(spec or {}), principal, on_progress)
            status = "finished"
        except KeyboardInterrupt:
            status = "cancelled"
            raise
        finally:
            if status != "finished":
                self._catalog.finish_run(run_id, status)  # type: ignore[arg-type]
        self._catalog.finish_run(run_id, "finished", mlflow_run_id=result.mlflow_run_id, metrics=_metrics(result))
        by = self._manager(register_to, principal)
        self._catalog.set_alias(register_to, alias, version.version, principal=by)
        return FineTuned(version=version, result=result, reused=False)

    def find(self, settings: TrainSettings, register_to: str) -> FineTuned | None:
        """The newest version that a finished run with exactly these settings made, or None."""
        wanted = settings.model_dump(mode="json")
        for run in self._catalog.list_runs(kind="training", status="finished", limit=1000):
            made = [edge for edge in run.outputs if edge.kind == "model" and edge.name == register_to]
            if run.params != wanted or not made:
                continue
            version = self._catalog.get_model_version(f"{register_to}/{made[0].version}")
            result = self._storage.read_bytes(f"{version.source}/{RESULT_FILE}")
            return FineTuned(version=version, result=TrainResult.model_validate_json(result), reused=True)
        return None

    def _check(self, settings: TrainSettings, register_to: str, principal: Principal) -> None:
        check, action = self._catalog.grants.check, "fineTuneModel"
        for table in (settings.train_table, settings.eval_table):
            if table is not None:
                check(principal, "SELECT", "table", parse_table_version(table)[0], action=action)
        schema = register_to.rpartition(".")[0]
        if self._catalog.find_model(register_to) is not None:
            check(principal, "MANAGE", "model", register_to, action=action)
        elif not principal.is_admin:  # who makes a schema that is not there
            check(principal, "CREATE MODEL", "schema", schema, action=action)

    def _manager(self, register_to: str, principal: Principal) -> Principal:
        """Who may MANAGE the model now: a training is long, and another may have made one of that name meanwhile."""
        return self._catalog.grants.check(principal, "MANAGE", "model", register_to, action="fineTuneModel")

    def _train(
        self,
        settings: TrainSettings,
        register_to: str,
        run_id: str,
        spec: dict[str, Any],
        principal: Principal,
        on_progress: OnProgress | None,
    ) -> tuple[ModelVersion, TrainResult]:
        output = self._work_folder / "adapters" / new_id("adapter")
        tables = self._tables.acting(principal, run_id)
        result = fit(
            settings,
            model_folder=self._models.resolve(settings.model),
            read_rows=lambda table: tables.read(*parse_table_version(table), columns=list(settings.columns)),
            storage_folder=self._work_folder / "checkpoints",
            output=output,
            tracking=replace(self._tracking, owner=principal.name) if self._tracking else None,
            on_progress=on_progress,
        )
        measured = result.model_dump_json().encode()
        (output / RESULT_FILE).write_bytes(measured)
        source = self._storage.address("models", *register_to.split("."), run_id)
        self._storage.upload(output, source)
        if self._catalog.find_model(register_to) is None:
            self._catalog.ensure_schema(register_to.rpartition(".")[0], by=principal)
            schema = register_to.rpartition(".")[0]
            by = self._catalog.grants.check(principal, "CREATE MODEL", "schema", schema, action="fineTuneModel")
            self._catalog.create_model(register_to, owner=principal.name, by=by)
        version = self._catalog.create_model_version(
            register_to,
            source=source,
            kind="adapter",
            base_model=settings.model,
            run_id=run_id,
            spec=spec,
            checksums={**result.checksums, RESULT_FILE: sha256(measured).hexdigest()},
            by=self._manager(register_to, principal),
        )
        self._catalog.add_output(run_id, "model", register_to, version.version)
        return version, result


def _metrics(result: TrainResult) -> dict[str, float]:
    names = ("eval_loss_base", "eval_loss_tuned", "train_loss_first", "train_loss_last", "seconds", "seconds_per_step")
    return {name: value for name in names if (value := getattr(result, name)) is not None}
