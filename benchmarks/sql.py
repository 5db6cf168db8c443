"""What SQL over the catalog costs beside the engine alone: a million rows, the same Arrow dataset, the same rounds.

    python benchmarks/sql.py

Rounds of `Sql.query` (read, grants, pinned version, lineage, a locked engine made anew) and of a bare DuckDB connection
that is open already take turns. Printed are the medians of the rounds, their range, and the rounds' ratios.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.data.sql import Sql, SqlSettings
from mosaic.protocol import Principal
from mosaic.storage import Storage

ROWS, FILES, ROUNDS = 1_000_000, 4, 7
ADMIN = Principal(name="admin", is_admin=True)
QUESTIONS = {
    "count": "SELECT count(*) FROM {0}",
    "filter": "SELECT count(*), sum(price) FROM {0} WHERE id < 10000 AND kind = 'kind7'",
    "group": "SELECT kind, count(*), avg(price) FROM {0} GROUP BY kind ORDER BY kind",
    "1,000 rows": "SELECT * FROM {0} WHERE id >= 500000 LIMIT 1000",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog.open(f"sqlite:///{folder}/catalog.db")
        storage = Storage(str(Path(folder) / "root"))
        tables = Tables(storage, catalog)
        fill(catalog, tables)
        sql = Sql(storage, tables, catalog)
        dataset = tables.delta("main.lake.items").to_pyarrow_dataset()
        print(f"{ROWS:,} rows in {FILES} files, DuckDB {duckdb.__version__}, {ROUNDS} rounds, milliseconds")
        for name, question in QUESTIONS.items():
            measure(name, asked(sql, question), alone(dataset, question))
        catalog.close()


def measure(name: str, ours: Callable[[], object], engine: Callable[[], object]) -> None:
    ours(), engine()
    rounds = [(timed(ours), timed(engine)) for _ in range(ROUNDS)]
    ratios = [mine / bare for mine, bare in rounds]
    print(
        f"  {name:12} SQL {shown([mine for mine, _ in rounds])}   bare {shown([bare for _, bare in rounds])}   "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def asked(sql: Sql, question: str) -> Callable[[], object]:
    return lambda: sql.query(question.format("main.lake.items"), principal=ADMIN).rows


def alone(dataset: ds.Dataset, question: str) -> Callable[[], object]:
    connection = duckdb.connect(":memory:", config={"threads": str(SqlSettings().threads)})
    connection.register("items", dataset)
    return lambda: connection.sql(question.format("items")).to_arrow_table()


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):6.1f} ({min(times):.1f} to {max(times):.1f})"


def fill(catalog: Catalog, tables: Tables) -> None:
    catalog.ensure_schema("main.lake")
    catalog.create_token("admin", is_admin=True)
    chance = np.random.default_rng(7)
    schema = pa.schema([("id", pa.int64()), ("kind", pa.string()), ("price", pa.float64()), ("text", pa.string())])
    tables.create("main.lake.items", schema, primary_key="id", owner="admin")
    each = ROWS // FILES
    for file in range(FILES):
        ids = np.arange(file * each, (file + 1) * each)
        columns = {"id": ids, "kind": [f"kind{one % 50}" for one in ids], "price": chance.random(each) * 100}
        tables.append("main.lake.items", pa.table({**columns, "text": [f"item number {one}" for one in ids]}))


if __name__ == "__main__":
    main()
