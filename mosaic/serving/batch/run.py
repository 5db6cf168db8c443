"""A batch job from table to table: start reading here, at `BatchInference.infer`.

    the grants -> the version and who answers, pinned -> the plan, kept with the output table -> the pieces that are
    missing, on Ray Data -> each committed once, in their order -> the last commit says that all are done

Killed anywhere, the same job goes on after the last piece that is committed.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray

from mosaic.catalog import Catalog, Table
from mosaic.catalog.names import parse_object, parse_table_version
from mosaic.catalog.work_tokens import revoke_left, work_token
from mosaic.client import Client
from mosaic.data import Tables
from mosaic.data.delta import arrow_schema, check_columns, dataset
from mosaic.errors import Conflict, MosaicError
from mosaic.ids import new_id
from mosaic.protocol import Principal
from mosaic.serving.apps import require_fit
from mosaic.serving.batch.calls import EndpointSetup
from mosaic.serving.batch.engine import EngineSetup
from mosaic.serving.batch.pieces import PieceReader, check_where
from mosaic.serving.batch.pin import (
    ACTION,
    INPUT_VERSION,
    Answerer,
    check_output,
    output_schema,
    pin_endpoint,
    pin_model,
    require_chat_model,
)
from mosaic.serving.batch.plan import PLAN_PROPERTY, Piece, Plan
from mosaic.serving.batch.result import BatchProgress, BatchResult, further
from mosaic.serving.batch.settings import BatchSettings
from mosaic.serving.batch.work import Done, Place, Setup, run_pieces
from mosaic.serving.nodes import cluster_nodes
from mosaic.serving.plan import plan_engine, require_memory
from mosaic.serving.settings import EngineSettings
from mosaic.storage import Storage

KILL_POINTS = ("planned", "before-commit", "after-commit", "before-end")
"""The output table is there with the plan; a piece is answered and not committed; it is; all are, the run is open."""

RUN_KIND = "batch_inference"
_ROWS_AHEAD = 512
"""Of one engine: as many as vLLM computes at once on most machines, and as many again."""
_CALLER_CPUS = 0.1
_TOKEN_LASTS, _TOKEN_SILENT = timedelta(days=7), timedelta(hours=1)
_PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class _Job:
    settings: BatchSettings
    plan: Plan
    answerer: Answerer
    reader: PieceReader
    keep: list[str]
    schema: pa.Schema
    output: str


class BatchInference:
    """`platform.batch`: acts for a principal, within its grants."""

    def __init__(
        self,
        catalog: Catalog,
        tables: Tables,
        storage: Storage,
        principal: Principal,
        *,
        engines: Mapping[str, EngineSettings],
        resolve: Callable[[str], Path],
        base_url: str,
    ) -> None:
        """`engines` are the platform's settings by model; `resolve` turns a model's name into a local folder, and must
        pickle; `base_url` is the gateway's."""
        self._catalog, self._tables, self._storage, self._principal = catalog, tables, storage, principal
        self._engines, self._resolve, self._base_url = engines, resolve, base_url
        self.at: Callable[[str], None] = lambda point: None
        """Told each of KILL_POINTS."""

    def infer(
        self, settings: BatchSettings, on_progress: Callable[[BatchProgress], None] = lambda progress: None
    ) -> BatchResult:
        """One answer for each row of the input's version, in the output table; returns when all are there.

        The same settings again go on with a job that was stopped, or give back what a finished one made. Raises
        Conflict for an output table that is something else's, or another job's (`batch_differs`, with what differs);
        PermissionDenied, NotFound, BadRequest before work starts; EngineFailed and Unavailable when it cannot go on.
        """
        began = time.monotonic()
        job = self._prepare(settings)
        self.at("planned")
        before = self._tables.position(job.output, job.plan.job_id)
        if self._is_done(job):
            self._end_others(job)
            return self._result(job, None, min(before, job.plan.pieces), began)
        with self._run(job) as run_id:
            try:
                self._work(job, before, run_id, on_progress, began)
            except MosaicError:
                # Whoever came to the same job and did the rest has ended this run, and its token, meanwhile.
                if not self._is_done(job):
                    raise
            self.at("before-end")
            result = self._result(job, run_id, before, began)
            told = {name: float(getattr(result, name)) for name in ("rows", "errors", "completion_tokens", "seconds")}
            with suppress(Conflict):  # whoever came to the same job just now has ended it (`_end_others`)
                self._catalog.finish_run(run_id, "finished", metrics=told)
        self._end_others(job)
        return result

    def _is_done(self, job: _Job) -> bool:
        return self._tables.position(job.output, job.plan.job_id) > job.plan.pieces

    def _prepare(self, settings: BatchSettings) -> _Job:
        """Grants, pins and plan; nothing has been made where this raises."""
        table, version = parse_table_version(settings.table)
        output = parse_object(settings.output_table, "table")
        self._catalog.grants.check(self._principal, "SELECT", "table", table, action="readTable")
        check_output(self._catalog, settings, self._principal)
        there = self._catalog.find_table(output)
        plan = None if there is None else self._plan_of(there, settings, table, version)
        pinned = None if plan is None else plan.answered_by
        if settings.model is not None:
            answerer = pin_model(self._catalog, settings, self._principal, pinned)
            assert answerer.engine_model is not None
            require_chat_model(self._resolve, answerer.engine_model, self._engine(settings, answerer))
        else:
            answerer = pin_endpoint(self._catalog, settings, self._principal)
        opened = self._tables.acting(self._principal).open(table, plan.version if plan is not None else version)
        given = arrow_schema(opened.delta)
        for field, names in (("prompt", settings.reads), ("keep", settings.keep)):
            try:
                check_columns(given, names, table)
            except MosaicError as error:
                raise type(error)(f"{field}: {error.message}", param=field) from None
        if settings.where is not None:
            check_where(settings.where, given, table)
        schema, keep = output_schema(settings, given, answerer.task)
        columns = [name for name in given.names if name in {*keep, *settings.reads} or settings.where is not None]
        reader = PieceReader(self._storage, opened.record.location, opened.delta, columns, settings.where)
        if plan is None:
            self._place(settings, answerer)
            plan = self._take(
                settings,
                Plan(
                    job_id=new_id("batch"),
                    table=table,
                    version=opened.delta.version(),
                    rows=reader.rows,
                    answered_by=answerer.name,
                    settings=settings.model_dump(mode="json"),
                ),
                schema,
                output,
            )
        return _Job(settings, plan, answerer, reader, keep, schema, output)

    def _take(self, settings: BatchSettings, plan: Plan, schema: pa.Schema, output: str) -> Plan:
        """The plan under which the output table was made: this one, or that of whoever was faster with the same job."""
        made = self._tables.acting(self._principal).create(
            output,
            schema,
            primary_key=None,
            owner=self._principal.name,
            comment=f"Answers of {settings.served_by} for {plan.table}@{plan.version}.",
            properties={PLAN_PROPERTY: plan.dump()},
        )
        return self._plan_of(made, settings, plan.table, plan.version)

    def _plan_of(self, there: Table, settings: BatchSettings, table: str, version: int | None) -> Plan:
        if PLAN_PROPERTY not in there.properties:
            raise Conflict(
                f"output_table {there.name!r} is there and no batch job's; name one that is not", param="output_table"
            )
        plan = Plan.load(there.properties[PLAN_PROPERTY])
        plan.require_same(settings, table, version)
        return plan

    def _work(
        self, job: _Job, before: int, run_id: str, on_progress: Callable[[BatchProgress], None], began: float
    ) -> None:
        plan, writing = job.plan, self._tables.acting(self._principal, run_id)
        progress = BatchProgress(pieces_done=before, pieces=plan.pieces)
        on_progress(progress)
        committed = before
        missing = list(plan.left(before))
        with self._setup(job) if missing else nullcontext((None, None)) as (setup, place):
            for done in self._answered(job, missing, setup, place):
                rows = done.rows.append_column(INPUT_VERSION, pa.array([plan.version] * done.rows.num_rows, pa.int64()))
                if rows.num_rows:  # `where` may leave none
                    self.at("before-commit")
                    writing.append_once(job.output, rows, plan.job_id, done.number, after=committed)
                    committed = done.number
                    self.at("after-commit")
                progress = further(progress, done.number, done.rows, time.monotonic() - began)
                on_progress(progress)
        # One past the last piece: pieces without rows, at the end too, are known to be done.
        writing.append_once(job.output, job.schema.empty_table(), plan.job_id, plan.pieces + 1, after=committed)

    def _answered(self, job: _Job, missing: list[Piece], setup: Setup | None, place: Place | None) -> Iterator[Done]:
        if setup is None or place is None:
            return iter(())
        return run_pieces(missing, setup, job.settings, job.reader, job.keep, job.schema, place)

    @contextmanager
    def _setup(self, job: _Job) -> Iterator[tuple[Setup, Place]]:
        settings, answerer = job.settings, job.answerer
        engine, place = self._place(settings, answerer)
        if engine is not None:
            yield engine, place
            return
        assert answerer.served_name is not None
        patience, comment = min(_PATIENCE_SECONDS, settings.stall_seconds / 8), _token_comment(job)
        # Of drivers that were killed; one that runs uses its own more often than that.
        revoke_left(self._catalog, self._principal, comment=comment, silent=_TOKEN_SILENT)
        with work_token(self._catalog, self._principal, comment=comment, lasts=_TOKEN_LASTS, action=ACTION) as secret:
            client = Client(self._base_url, secret, timeout_seconds=600, patience_seconds=patience)
            yield EndpointSetup(client, answerer.served_name, answerer.task), place

    def _engine(self, settings: BatchSettings, answerer: Answerer) -> EngineSettings:
        return settings.engine or self._engines.get(answerer.engine_model or "", EngineSettings())

    def _place(self, settings: BatchSettings, answerer: Answerer) -> tuple[EngineSetup | None, Place]:
        """Where the job's actors run, and of a model how its engine does; raises what `plan_engine` raises, and
        with the sum if there is no room, for which Ray Data would wait for ever."""
        at_once = max(2, -(-_ROWS_AHEAD // settings.piece_rows))
        if answerer.engine_model is None:
            asking = max(2, min(at_once, -(-2 * settings.concurrency // settings.piece_rows)))
            place = Place(1, _CALLER_CPUS, 0.0, asking)
            _require_room(answerer.name, place)
            return None, place
        rank = 0 if answerer.adapter is None else _rank(self._resolve(answerer.adapter))
        # All that a job needs: adapters cost, also unused.
        engine = self._engine(settings, answerer).model_copy(update={"max_lora_rank": rank, "max_loras": 1})
        nodes = cluster_nodes()
        plan = plan_engine(engine, self._resolve(answerer.engine_model), nodes)
        cpus, gpus = (0.0, plan.workers * plan.gpu_share) if plan.on_gpu else (engine.num_cpus, 0.0)
        place = Place(engine.num_replicas, cpus, gpus, at_once)
        _require_room(answerer.name, place)
        require_memory({answerer.name: (plan, engine.num_replicas)}, nodes)
        return EngineSetup(answerer.engine_model, answerer.adapter, answerer.name, engine, plan, self._resolve), place

    @contextmanager
    def _run(self, job: _Job) -> Iterator[str]:
        """The run of one attempt, with what it reads; whoever opens it finishes it, unless it fails."""
        plan, settings = job.plan, job.settings
        params = {"job_id": plan.job_id, **settings.model_dump(mode="json")}
        run_id = self._catalog.start_run(RUN_KIND, job.output, principal=self._principal.name, params=params)
        status = "failed"
        try:
            reading = self._tables.acting(self._principal, run_id)
            columns = list(dict.fromkeys([*job.keep, *settings.reads]))
            reading.open(plan.table, plan.version, columns=columns, predicate=settings.where)
            for kind, name, version in job.answerer.used:
                self._catalog.add_input(run_id, kind, name, version)
            yield run_id
            status = "finished"
        except (KeyboardInterrupt, SystemExit):
            status = "cancelled"
            raise
        finally:
            if status != "finished":
                with suppress(Conflict):  # another driver has ended it
                    self._catalog.finish_run(run_id, status)  # type: ignore[arg-type]

    def _end_others(self, job: _Job) -> None:
        """Runs of this job that were killed say that they run, and their tokens open endpoints: now there is nothing
        left that they could do. Those of other principals are theirs to end."""
        revoke_left(self._catalog, self._principal, comment=_token_comment(job))
        for run in self._catalog.list_runs(kind=RUN_KIND, status="running", limit=1000):
            if (run.params.get("job_id"), run.principal) == (job.plan.job_id, self._principal.name):
                with suppress(Conflict):  # it ended by itself meanwhile
                    self._catalog.finish_run(run.run_id, "failed")

    def _result(self, job: _Job, run_id: str | None, before: int, began: float) -> BatchResult:
        opened = self._tables.open(job.output)
        names = ["error", "prompt_tokens", "completion_tokens"]
        rows = errors = prompt = completion = 0
        for batch in dataset(self._storage, opened.record.location, opened.delta).to_batches(columns=names):
            rows += batch.num_rows
            errors += batch.num_rows - batch["error"].null_count
            prompt += pc.sum(batch["prompt_tokens"]).as_py() or 0
            completion += pc.sum(batch["completion_tokens"]).as_py() or 0
        return BatchResult(
            job_id=job.plan.job_id,
            run_id=run_id,
            input_table=job.plan.table,
            input_version=job.plan.version,
            output_table=job.output,
            output_version=opened.delta.version(),
            rows=rows,
            errors=errors,
            prompt_tokens=prompt,
            completion_tokens=completion,
            pieces=job.plan.pieces,
            pieces_before=before,
            seconds=time.monotonic() - began,
        )


def _token_comment(job: _Job) -> str:
    return f"batch job {job.plan.job_id}"


def _rank(adapter: Path) -> int:
    """Of an adapter's files, as PEFT writes them."""
    return int(json.loads((adapter / "adapter_config.json").read_text())["r"])


def _require_room(name: str, place: Place) -> None:
    free = ray.available_resources()
    require_fit({name: place.num_cpus * place.actors}, free.get("CPU", 0.0), "free")
    require_fit({name: place.num_gpus * place.actors}, free.get("GPU", 0.0), "free", "GPUs")
