"""A small real history, made through the public API: a raw source, tables, a trained model, an index, answers."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.data import Tables
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA, to_arrow
from mosaic.storage import Storage

ENTRIES, TRAIN, SOURCES = "main.docs.entries", "main.docs.train", "main.docs.sources"
INDEX, MODEL = "main.docs.entries_index", "main.docs.bot"
START = datetime(2026, 11, 1, 10, 0, tzinfo=UTC)


def sha(text: str) -> str:
    """Stands for the checksum of a docstring, or of a file."""
    return hashlib.sha256(text.encode()).hexdigest()


class History:
    """A catalog, tables and an inference table; each step moves the clock by a minute."""

    def __init__(self, folder: Path, *, served: bool = True) -> None:
        self.folder = folder
        self.clock = FixedClock(START)
        self.catalog = Catalog.open(f"sqlite:///{folder / 'catalog.db'}", now=self.clock)
        self.tables = Tables(Storage(str(folder)), self.catalog)
        self.catalog.ensure_schema("main.docs")
        self.catalog.ensure_schema("system.serving", owner="system")
        if served:
            self.tables.create(INFERENCE_TABLE, SCHEMA, primary_key="request_id", owner="system")
        self._answers = 0

    def pass_time(self) -> None:
        self.clock.now += timedelta(minutes=1)

    def run(self, kind: str, name: str, **params: Any) -> str:
        self.pass_time()
        return self.catalog.start_run(kind, name, principal="ann", params=params)

    def ingest(self, entries: dict[str, str]) -> int:
        """Entry ids with their modules, as the table's new rows."""
        run_id = self.run("ingest", ENTRIES, python="3.11.9")
        tables = self.tables.acting(None, run_id)
        rows = [
            {"entry_id": name, "module": module, "source": f"python:3.11.9/{module}#{name}", "sha256": sha(name)}
            for name, module in entries.items()
        ]
        schema = pa.schema([(name, pa.string()) for name in ("entry_id", "module", "source", "sha256")])
        tables.create(ENTRIES, schema, primary_key="entry_id", owner="ann")
        version = tables.overwrite(ENTRIES, pa.Table.from_pylist(rows, schema=schema))
        modules = sorted(set(entries.values()))
        files = [
            {"uri": f"python:3.11.9/{name}", "sha256": sha(f"{name}.py"), "file": f"{name}.py", "bytes": 10}
            for name in modules
        ]
        manifest_schema = pa.schema(
            [(name, pa.string()) for name in ("uri", "sha256", "file")] + [("bytes", pa.int64())]
        )
        tables.create(SOURCES, manifest_schema, primary_key="uri", owner="ann")
        written = tables.overwrite(SOURCES, pa.Table.from_pylist(files, schema=manifest_schema))
        detail = {"documents": len(files), "manifest": f"{SOURCES}@{written}", "sha256": sha("manifest")}
        self.catalog.add_input(run_id, "source", "python:3.11.9", None, detail=detail)
        self.catalog.finish_run(run_id, "finished")
        return version

    def examples(self, version: int | None = None) -> int:
        """Training examples from all entries at a version."""
        run_id = self.run("examples", TRAIN)
        tables = self.tables.acting(None, run_id)
        rows = tables.to_arrow(ENTRIES, version, columns=["entry_id", "module"])
        tables.create(TRAIN, rows.schema, primary_key="entry_id", owner="ann")
        made = tables.overwrite(TRAIN, rows)
        self.catalog.finish_run(run_id, "finished")
        return made

    def train(self, version: int, alias: str | None = None) -> int:
        """A model version from the examples at a version."""
        run_id = self.run("training", MODEL, train_table=f"{TRAIN}@{version}", learning_rate=0.002)
        self.catalog.add_input(run_id, "table", TRAIN, version, detail={"role": "train"})
        self.catalog.add_input(run_id, "base_model", "smollm2-135m-instruct", None)
        if self.catalog.find_model(MODEL) is None:
            self.catalog.create_model(MODEL, owner="ann")
        made = self.catalog.create_model_version(
            MODEL, source="memory://bot", kind="adapter", base_model="smollm2-135m-instruct", run_id=run_id
        )
        self.catalog.finish_run(run_id, "finished", mlflow_run_id=f"mlflow{made.version}", metrics={"loss": 0.5})
        if alias is not None:
            self.catalog.set_alias(MODEL, alias, made.version, principal="ann")
        return made.version

    def index(self, version: int) -> None:
        """The index is made, or follows, to a version of the entries."""
        spec = {"name": INDEX, "table": ENTRIES, "primary_key": "entry_id", "text_columns": ["entry_id"]}
        self.catalog.put_index(INDEX, table=ENTRIES, spec=spec, owner="ann")
        run_id = self.run("index", INDEX)
        self.catalog.add_input(run_id, "table", ENTRIES, version)
        self.catalog.add_output(run_id, "index", INDEX, version)
        self.catalog.finish_run(run_id, "finished")

    def answer(self, **columns: Any) -> str:
        """A request of bob's to the endpoint `assistant` that was answered; its id."""
        self.pass_time()
        self._answers += 1
        request_id = f"req_{self._answers:04d}"
        row = {
            "request_id": request_id,
            "request_time": int(self.clock.now.timestamp() * 1e6),
            "status_code": 200,
            "principal": "bob",
            "endpoint": "main.serving.assistant",
            "endpoint_config_version": 1,
            "served_entity": "tuned",
            **columns,
        }
        self.tables.append(INFERENCE_TABLE, to_arrow([row]))
        return request_id

    def tuned(self, version: int, alias: str | None = "champion") -> dict[str, Any]:
        """Columns of an answer of the model."""
        return {"model": MODEL, "model_version": version, "model_alias": alias, "adapter": f"{MODEL}/{version}"}

    def retrieved(self, version: int, *ids: str) -> dict[str, Any]:
        """Columns of an answer that was given these entries."""
        return {"retrieved_index": INDEX, "retrieved_version": version, "retrieved_ids": list(ids)}
