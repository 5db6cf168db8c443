"""What `why` and `impact` cost: 200,000 answers in 100 files, 64 versions of an index, 50 model versions; and the
lineage of a table that 2,000 runs appended to.

    python benchmarks/lineage.py

One table of 50,000 rows, every version of which an index has followed; an answer names one of the newest 8, five rows,
and a model version that is not downstream. Questions take turns for five rounds; printed are medians and ranges, in
milliseconds.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from mosaic.catalog import Catalog, lineage
from mosaic.catalog.lineage import Thing
from mosaic.catalog.store import Store
from mosaic.data import Tables
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA
from mosaic.monitoring.impact import impact
from mosaic.monitoring.thread import why
from mosaic.storage import Storage

ROWS, VERSIONS, ANSWERED_AT, MODELS = 50_000, 64, 8, 50
FILES, ANSWERS_EACH = 100, 2_000
ROUNDS = 5
APPENDS, GROWING, APPENDED = 2_000, "main.bench.growing", "main.bench.appended"
TABLE, INDEX, MODEL = "main.bench.rows", "main.bench.index", "main.bench.bot"
START = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog.open(f"sqlite:///{folder}/catalog.db")
        tables = Tables(Storage(folder), catalog)
        newest = fill_table(catalog, tables)
        fill_lineage(catalog, newest)
        fill_appends(catalog)
        fill_answers(catalog, tables, newest, random.Random(7))
        questions: dict[str, Callable[[], Any]] = {
            "why": lambda: why(tables, catalog, f"req_{FILES - 1:04d}_{ANSWERS_EACH - 1:04d}"),
            "trace of 2,000 appends": lambda: catalog.trace("table", APPENDED, APPENDS),
            "ancestors of these": lambda: catalog.ancestors("table", APPENDED, APPENDS),
            "descendants alone": lambda: catalog.descendants("table", TABLE, None),
            "impact of the table": lambda: impact(tables, catalog, TABLE),
            "impact of one version": lambda: impact(tables, catalog, TABLE, version=newest),
            "impact of 50 rows": lambda: impact(tables, catalog, TABLE, where="module = 'm7'"),
        }
        taken: dict[str, list[float]] = {name: [] for name in questions}
        for _ in range(ROUNDS):
            for name, ask in questions.items():
                started = time.perf_counter()
                ask()
                taken[name].append((time.perf_counter() - started) * 1e3)
        for name, times in taken.items():
            print(f"{name:<24} {statistics.median(times):8,.0f} ms ({min(times):,.0f} to {max(times):,.0f})")
        found = impact(tables, catalog, TABLE, where="module = 'm7'")
        print(f"answers {found.answers.total:,}, given such rows {found.answers.given_rows:,}; notes {found.notes[1:]}")


def fill_table(catalog: Catalog, tables: Tables) -> int:
    catalog.ensure_schema("main.bench")
    keys = [f"k{number}" for number in range(ROWS)]
    rows = pa.table({"key": keys, "module": [f"m{number % 1_000}" for number in range(ROWS)], "text": keys})
    tables.create(TABLE, rows.schema, primary_key="key", owner="admin")
    tables.append(TABLE, rows)
    for number in range(VERSIONS - 1):
        tables.append(TABLE, pa.table({"key": [f"n{number}"], "module": ["new"], "text": ["new"]}))
    return VERSIONS


def fill_lineage(catalog: Catalog, newest: int) -> None:
    catalog.put_index(INDEX, table=TABLE, spec={"primary_key": "key"}, owner="admin")
    catalog.create_model(MODEL, owner="admin")
    store = Store(catalog.url)
    with store.write() as connection:
        for number in range(1, newest + 1):
            record(connection, number, Thing("index", INDEX, number))
        for number in range(1, MODELS + 1):
            record(connection, newest, Thing("model", MODEL, number))
    store.close()


def fill_appends(catalog: Catalog) -> None:
    """One table from a source, another one from each of its versions."""
    store = Store(catalog.url)
    with store.write() as connection:
        for number in range(1, APPENDS + 1):
            read = Thing("table", GROWING, number)
            step(connection, Thing("source", "s3://raw", None), read, {"mode": "append"})
            step(connection, read, Thing("table", APPENDED, number), {"mode": "append"})
    store.close()


def record(connection: Any, version: int, made: Thing) -> None:
    step(connection, Thing("table", TABLE, version), made, None)


def step(connection: Any, read: Thing, made: Thing, detail: dict[str, Any] | None) -> None:
    run_id = lineage.start(connection, now=START, kind="step", name="s", principal="admin", params={})
    lineage.add_edge(connection, run_id, "input", read, None)
    lineage.add_edge(connection, run_id, "output", made, detail)


def fill_answers(catalog: Catalog, tables: Tables, newest: int, chance: random.Random) -> None:
    catalog.ensure_schema("system.serving", owner="system")
    tables.create(INFERENCE_TABLE, SCHEMA, primary_key="request_id", owner="system")
    moment = START + timedelta(days=1)
    for file in range(FILES):
        rows = []
        for number in range(ANSWERS_EACH):
            moment += timedelta(seconds=1)
            rows.append(
                {
                    "request_id": f"req_{file:04d}_{number:04d}",
                    "request_time": moment,
                    "request_date": moment.date(),
                    "status_code": 200,
                    "principal": "bob",
                    "endpoint": "main.serving.assistant",
                    "model": MODEL,
                    "model_version": MODELS + 1 + chance.randrange(3),
                    "request": "x" * 500,
                    "response": "y" * 500,
                    "retrieved_index": INDEX,
                    "retrieved_version": newest - chance.randrange(ANSWERED_AT),
                    "retrieved_ids": [f"k{chance.randrange(ROWS)}" for _ in range(5)],
                }
            )
        tables.append(INFERENCE_TABLE, pa.Table.from_pylist(rows, schema=SCHEMA))


if __name__ == "__main__":
    main()
